"""Alternating least squares: rows and columns in turn, each an exact or nearly exact minimum."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from torch import Tensor

from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.progress import Progress, reporting
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias, weighted_mean
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.errors import RadiusError, ShapeError
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

_CG_STEPS = 3
_PATIENCE = 2
_NEGLIGIBLE = 1e-6


def als(
    observations: Observations,
    rank: int,
    *,
    penalty: float,
    exponent: float = 1.0,
    bias_ratio: float = 1.0,
    sweeps: int = 20,
    method: Literal["exact", "cg"] = "exact",
    bias: Literal["additive"] | None = "additive",
    validation: Observations | None = None,
    tolerance: float = 1e-4,
    start: CompletionResult | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> CompletionResult:
    r"""Complete a matrix by alternating least squares with learned biases.

    Minimises :math:`\sum_k w_k (\mu + a_i + c_j + u_i^T v_j - y_k)^2
    + \sum_i \lambda_i (\|u_i\|^2 + \rho a_i^2) + \sum_j \lambda_j (\|v_j\|^2 + \rho c_j^2)` with
    :math:`\lambda_i = \text{penalty}\; n_i^{\text{exponent}}`; :math:`\mu` is the weighted mean.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    rank : int
    penalty : float
        Positive.
    exponent : float
        In [0, 1]: 1 is the weighted penalty, 0 the plain one.
    bias_ratio : float
        :math:`\rho > 0`, the penalty of a bias relative to that of a factor.
    sweeps : int
        Largest number of passes over rows and columns.
    method : {"exact", "cg"}
        Cholesky factorisation of each row's normal equations; or three steps of conjugate
        gradients from where the row is, which suits ranks above about 50.
    bias : {"additive"} or None
    validation : Observations, optional
        Stop when their error has not improved for two sweeps; the best sweep is returned.
    tolerance : float
        Stop when the objective falls by less than this share in a sweep.
    start : CompletionResult, optional
        Continue from its factors and column biases, columns of lower rank filled up at random; it
        may have fewer rows and columns. By default the start is random.
    generator : torch.Generator, optional
        For the random start.
    progress : bool or callable

    Returns
    -------
    CompletionResult
        In the dtype of the observations, which must be on the CPU. The objective in its history
        never increases, up to rounding.

    Raises
    ------
    RadiusError
        If a setting is outside its domain.
    ShapeError
        If the validation entries are of another shape, or observations are not on the CPU.

    References
    ----------
    Zhou et al. (2008), Large-scale parallel collaborative filtering for the Netflix prize,
    section 3; the conjugate gradient steps are those of Takacs, Pilaszy and Tikk (2011).

    Examples
    --------
    >>> observed = Observations.from_dense(torch.outer(torch.arange(1.0, 6.0), torch.ones(4)))
    >>> result = als(observed, 1, penalty=1e-3)
    >>> bool((result.predict([0, 4], [0, 0]) - torch.tensor([1.0, 5.0])).abs().max() < 0.02)
    True
    """
    _check(observations, rank, penalty, exponent, bias_ratio, sweeps, tolerance, method, bias)
    if validation is not None and validation.shape != observations.shape:
        raise ShapeError(
            f"validation entries must be of shape {observations.shape}; got {validation.shape}"
        )
    model = _Model(
        observations,
        rank,
        penalty=penalty,
        exponent=exponent,
        bias_ratio=bias_ratio,
        biased=bias is not None,
        exact=method == "exact",
        generator=generator,
    )
    if start is not None:
        model.start_from(start)
    with reporting(progress, sweeps) as report:
        return _iterate(model, sweeps, tolerance, validation, report)


class _Model:
    """Factors with the bias as a last column, and the half sweeps that improve them."""

    def __init__(
        self,
        observations: Observations,
        rank: int,
        *,
        penalty: float,
        exponent: float,
        bias_ratio: float,
        biased: bool,
        exact: bool,
        generator: torch.Generator | None,
    ) -> None:
        m, n = observations.shape
        self.dtype, self.rank, self.biased, self.exact = observations.dtype, rank, biased, exact
        self.mean = weighted_mean(observations) if biased else 0.0
        # Grams are summed in float64 whatever the data: the exact minimum keeps the descent.
        centred = observations.to(dtype=torch.float64)
        centred = centred.with_values(centred.values - self.mean)
        self.problems = tuple(
            RowProblems.of(centred, x, torch.float64) for x in (centred.csr, centred.csc)
        )
        counts = (observations.row_counts, observations.col_counts)
        self.strengths = tuple(_strengths(c, penalty, exponent) for c in counts)
        K = rank + int(biased)
        self.diagonal = centred.values.new_ones(K)
        self.diagonal[rank:] = bias_ratio
        start = torch.randn(m + n, rank, generator=generator, dtype=torch.float64)
        self.sides = [centred.values.new_zeros(size, K) for size in (m, n)]
        for x, part in zip(self.sides, (start * 0.1 / rank**0.5).split((m, n)), strict=True):
            x[:, :rank] = part

    def start_from(self, result: CompletionResult) -> None:
        """Take over as many leading factors as fit, balanced, and the biases."""
        operator = result.operator.to(dtype=torch.float64)
        U, scale, V = operator if operator.rank <= self.rank else operator.thin_svd()
        sizes = scale.abs() * U.norm(dim=0) * V.norm(dim=0)
        # A column of zeros on both sides would stay zero: those keep their random start.
        live = (sizes > _NEGLIGIBLE * sizes.max()).nonzero().squeeze(1)[: self.rank]
        k, root = len(live), scale[live].abs().sqrt()
        halves = (U[:, live] * root * scale[live].sign(), V[:, live] * root)
        for x, half, bias in zip(
            self.sides, halves, (result.bias.rows, result.bias.cols), strict=True
        ):
            known = len(half)
            x[:, k : self.rank] *= float(half.norm()) / max(k, 1) ** 0.5 if k else 1.0
            x[:known, :k] = half
            if self.biased:
                x[:known, self.rank] = bias

    def improve(self, side: int) -> float:
        """Update rows (0) or columns (1); return the weighted sum of squared residuals."""
        x, problems, strengths = self.sides[side], self.problems[side], self.strengths[side]
        features, offsets = self._as_features(self.sides[1 - side])
        if self.exact:
            precision = self.diagonal.diag()
            return problems.solve(x, features, offsets, precision=precision, strengths=strengths)
        settings = {"diagonal": self.diagonal, "strengths": strengths}
        return problems.improve(x, features, offsets, **settings, steps=_CG_STEPS)

    def penalties(self) -> float:
        """Return the sum of the penalty terms."""
        pairs = zip(self.sides, self.strengths, strict=True)
        return float(sum(float(s @ (x**2 @ self.diagonal)) for x, s in pairs))

    def result(self, status: CompletionStatus, history: History) -> CompletionResult:
        """Return the factors and biases in the dtype of the observations."""
        rows, cols = (x.to(self.dtype) for x in self.sides)
        r = self.rank
        operator = LowRankOperator(rows[:, :r], rows.new_ones(r), cols[:, :r])
        a, c = (x[:, r] if self.biased else x.new_zeros(len(x)) for x in (rows, cols))
        return CompletionResult(operator, AdditiveBias(self.mean, a, c), status, history)

    def _as_features(self, other: Tensor) -> tuple[Tensor, Tensor]:
        if not self.biased:
            return other, other.new_zeros(len(other))
        features = other.clone()
        features[:, -1] = 1.0
        return features, other[:, -1].clone()


def _iterate(
    model: _Model,
    sweeps: int,
    tolerance: float,
    validation: Observations | None,
    report: object,
) -> CompletionResult:
    assert callable(report), "reporting yields a function"
    history, started, status = History(), time.perf_counter(), CompletionStatus.MAX_ITERATIONS
    best, best_rmse, best_sweep = None, math.inf, 0
    for sweep in range(sweeps):
        model.improve(0)
        objective = model.improve(1) + model.penalties()
        rmse = math.nan
        if validation is not None:
            rmse = _rmse(model.result(status, history), validation)
            if rmse < best_rmse:
                best, best_rmse, best_sweep = [x.clone() for x in model.sides], rmse, sweep
        line = Iteration(objective, math.nan, rmse, time.perf_counter() - started)
        history.append(line)
        report(line)
        ended = _judge(history.objective, sweep - best_sweep, validation is not None, tolerance)
        if ended is not None:
            status = ended
            break
    model.sides = model.sides if best is None else best
    return model.result(status, history)


def _judge(
    objective: list[float], since_best: int, validated: bool, tolerance: float
) -> CompletionStatus | None:
    if not math.isfinite(objective[-1]):
        return CompletionStatus.NUMERICAL_TROUBLE
    if validated and since_best >= _PATIENCE:
        return CompletionStatus.STOPPED_BY_VALIDATION
    settled = len(objective) > 1 and objective[-2] - objective[-1] <= tolerance * objective[-2]
    return CompletionStatus.CONVERGED if settled else None


def _rmse(result: CompletionResult, held_out: Observations) -> float:
    errors = result.predict(held_out.rows, held_out.cols).double() - held_out.values.double()
    w = torch.ones_like(errors) if held_out.weights is None else held_out.weights.double()
    return math.sqrt(float((w * errors.square()).sum() / w.sum()))


def _strengths(counts: Tensor, penalty: float, exponent: float) -> Tensor:
    """Return the penalty of each row; a row without entries is penalised like one with one."""
    return penalty * counts.clamp_min(1).double() ** exponent


def _check(
    observations: Observations,
    rank: int,
    penalty: float,
    exponent: float,
    bias_ratio: float,
    sweeps: int,
    tolerance: float,
    method: str,
    bias: str | None,
) -> None:
    check_counts(rank=rank, sweeps=sweeps)
    check_amounts(penalty=penalty, exponent=exponent, bias_ratio=bias_ratio, tolerance=tolerance)
    if not (penalty > 0 and bias_ratio > 0):
        raise RadiusError(
            "penalty and bias_ratio must be positive, or rows with few entries have no unique "
            f"solution; got penalty={penalty!r}, bias_ratio={bias_ratio!r}"
        )
    if exponent > 1:
        raise RadiusError(f"exponent must be in [0, 1]; got exponent={exponent!r}")
    if method not in ("exact", "cg"):
        raise RadiusError(f"method must be 'exact' or 'cg'; got method={method!r}")
    if bias not in ("additive", None):
        raise RadiusError(f"bias must be 'additive' or None; got bias={bias!r}")
    if observations.device.type != "cpu":
        raise ShapeError(
            f"als needs observations on the CPU; got {observations.device}: use .to(device='cpu')"
        )
