"""New rows and columns of a completed matrix, in closed form, without fitting it again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_opt.completion.loop.history import History
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

# A direction in which the factors do not vary at all is pinned, but not with an infinite number.
_LEAST_VARIANCE = 1e-8


@dataclass(frozen=True, eq=False)
class FactorPrior:
    r"""A penalty :math:`n_i^{\text{exponent}} (x_i - \bar x)^T P (x_i - \bar x)` on each new row.

    :math:`x_i` is the row's factor with its bias as the last number, :math:`n_i` the number of its
    entries. It is compared with the sum of squared residuals.

    Parameters
    ----------
    precision : Tensor, shape (K, K), float64
        P, positive definite; K is the rank, and one more for the bias.
    mean : Tensor, shape (K,) or (k, K), float64
        Of all rows, or of each of the k new ones.
    exponent : float

    Examples
    --------
    >>> FactorPrior.ridge(2, penalty=3.0, bias_penalty=1.0).precision.diagonal().tolist()
    [3.0, 3.0, 1.0]
    """

    precision: Tensor
    mean: Tensor
    exponent: float = 0.0

    @classmethod
    def ridge(
        cls, rank: int, *, penalty: float, bias_penalty: float | None, exponent: float = 0.0
    ) -> FactorPrior:
        """Return the penalty of `als`, for which new rows are as if they had been fitted.

        Parameters
        ----------
        rank : int
        penalty : float
            Positive.
        bias_penalty : float or None
            Positive, ``penalty * bias_ratio`` of `als`; None for no biases.
        exponent : float

        Raises
        ------
        OptionError
            If a penalty is not positive.
        """
        amounts = [penalty] * rank + ([] if bias_penalty is None else [bias_penalty])
        if not min(amounts) > 0:
            raise OptionError(f"penalties must be positive; got {penalty!r} and {bias_penalty!r}")
        diagonal = torch.tensor(amounts, dtype=torch.float64)
        return cls(diagonal.diag(), torch.zeros_like(diagonal), exponent)

    @classmethod
    def empirical(
        cls,
        result: CompletionResult,
        observations: Observations,
        *,
        biased: bool = True,
        means: Tensor | None = None,
    ) -> FactorPrior:
        r"""Return the Gaussian prior with mean and covariance of the rows that were fitted.

        :math:`P = \sigma^2 \Sigma^{-1}` with the residual variance :math:`\sigma^2` and the
        covariance :math:`\Sigma` of the factors and biases of all rows with entries.

        Parameters
        ----------
        result : CompletionResult, shape (m, n)
        observations : Observations, shape (m, n)
            What it was fitted to.
        biased : bool
            Whether rows have biases.
        means : Tensor, shape (m, K), optional
            What each row varies around, such as what its features say; the mean by default.
        """
        left, _ = balanced_factors(result.operator)
        rows = torch.cat((left, result.bias.rows.double().unsqueeze(1)), 1) if biased else left
        seen = observations.row_counts > 0
        rows = rows[seen]
        errors = result.predict(observations.rows, observations.cols) - observations.values
        noise = float(errors.double().square().mean())
        mean = rows.mean(0)
        deviations = rows - (mean if means is None else means[seen])
        covariance = deviations.mT @ deviations / max(len(rows) - 1, 1)
        sigma, Q = torch.linalg.eigh(covariance)
        least = max(_LEAST_VARIANCE * float(sigma.max()), torch.finfo(torch.float64).tiny)
        ratio = max(noise, _LEAST_VARIANCE * least) / sigma.clamp_min(least)
        return cls(Q @ torch.diag(ratio) @ Q.mT, mean)


def fold_in_rows(
    result: CompletionResult, entries: Observations, prior: FactorPrior
) -> CompletionResult:
    r"""Return new rows of the matrix: each the minimiser over one row, columns as they are.

    Minimises :math:`\sum_k w_k (\mu + a_i + c_{j_k} + u_i^T v_{j_k} - y_k)^2` plus the penalty of
    the prior over :math:`(u_i, a_i)`; one factorisation of a K x K matrix for each new row, in
    float64. A row's result depends on its own entries only.

    Parameters
    ----------
    result : CompletionResult, shape (m, n)
    entries : Observations, shape (k, n)
        Of the new rows, on the device of the result.
    prior : FactorPrior

    Returns
    -------
    CompletionResult, shape (k, n)
        Rows without entries are at the prior's mean.

    Raises
    ------
    ShapeError
        If the number of columns is another one, or that of the prior does not fit.

    References
    ----------
    One half sweep of alternating least squares, Zhou et al. (2008), section 3.1; for new users,
    Takacs et al. (2009), Scalable collaborative filtering approaches, section 3.1.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.tensor([[1.0], [2.0], [3.0]]))
    >>> bias = AdditiveBias(0.0, torch.zeros(2), torch.zeros(3))
    >>> old = CompletionResult(op, bias, CompletionStatus.CONVERGED, History())
    >>> prior = FactorPrior.ridge(1, penalty=1e-9, bias_penalty=None)
    >>> fold_in_rows(old, Observations([0], [1], [8.0], (1, 3)), prior).predict(0, [0, 1, 2])
    tensor([ 4.,  8., 12.])
    """
    right = balanced_factors(result.operator)[1]
    rank, K = right.shape[1], prior.mean.shape[-1]
    if entries.shape[1] != result.shape[1] or K not in (rank, rank + 1):
        raise ShapeError(
            f"new rows must have {result.shape[1]} columns, and the prior {rank} or {rank + 1} "
            f"numbers; got {entries.shape} and {K}"
        )
    features = torch.cat((right, right.new_ones(len(right), K - rank)), 1)
    x = _solve(features.contiguous(), result.bias, entries, prior)
    bias = x[:, rank] if rank < K else x.new_zeros(len(x))
    dtype = result.operator.dtype
    operator = LowRankOperator(x[:, :rank], x.new_ones(rank), right).to(dtype=dtype)
    rows = AdditiveBias(result.bias.mean, bias.to(dtype), result.bias.cols)
    return CompletionResult(operator, rows, CompletionStatus.CONVERGED, History())


def fold_in_cols(
    result: CompletionResult, entries: Observations, prior: FactorPrior
) -> CompletionResult:
    """Return new columns of the matrix, as `fold_in_rows`, from entries of shape (m, k)."""
    shape = (entries.shape[1], entries.shape[0])
    flipped = Observations(entries.cols, entries.rows, entries.values, shape, entries.weights)
    return transposed(fold_in_rows(transposed(result), flipped, prior))


def put_rows(
    result: CompletionResult, rows: CompletionResult, positions: Tensor
) -> CompletionResult:
    """Return a result with rows replaced, or added below, by those that `fold_in_rows` made of it.

    Parameters
    ----------
    result : CompletionResult, shape (m, n)
    rows : CompletionResult, shape (k, n)
    positions : Tensor, shape (k,)
        Where they go. Beyond m, the matrix grows; rows in between without a position are zero.

    Raises
    ------
    ShapeError
        If the number of positions or of columns does not fit, or the column factors are others.
    """
    left, right = balanced_factors(result.operator)
    new, same = balanced_factors(rows.operator)
    tolerance = float(torch.finfo(result.operator.dtype).eps) ** 0.5 * float(right.abs().max())
    if right.shape != same.shape or not bool((right - same).abs().max() <= tolerance):
        raise ShapeError("both results must have the same columns: use fold_in_rows of the first")
    if len(positions) != len(new):
        raise ShapeError(f"each row needs a position; got {len(new)} and {len(positions)}")
    more = max(int(positions.max()) + 1 - len(left), 0)
    left = torch.cat((left, left.new_zeros(more, left.shape[1])))
    biases = torch.cat((result.bias.rows, result.bias.rows.new_zeros(more)))
    left[positions], biases[positions] = new, rows.bias.rows.to(biases.dtype)
    factors = LowRankOperator(left, left.new_ones(left.shape[1]), right)
    return replace(
        result,
        operator=factors.to(dtype=result.operator.dtype),
        bias=AdditiveBias(result.bias.mean, biases, result.bias.cols),
        problem=None,
        row_ids=None,
        col_ids=None,
    )


def transposed(result: CompletionResult) -> CompletionResult:
    """Return the completed transpose."""
    bias = AdditiveBias(result.bias.mean, result.bias.cols, result.bias.rows)
    return replace(
        result,
        operator=result.operator.mT,
        bias=bias,
        problem=None,
        row_ids=result.col_ids,
        col_ids=result.row_ids,
    )


def balanced_factors(operator: LowRankOperator) -> tuple[Tensor, Tensor]:
    """Return factors in float64 whose product is the matrix, the scale shared between them."""
    left, scale, right = operator.to(dtype=torch.float64)
    root = scale.abs().sqrt()
    return left * (root * scale.sign()), right * root


def _solve(
    features: Tensor, bias: AdditiveBias, entries: Observations, prior: FactorPrior
) -> Tensor:
    values = entries.to(dtype=torch.float64)
    centred = values.with_values(values.values - bias.mean)
    strengths = entries.row_counts.clamp_min(1).double() ** prior.exponent
    precision = prior.precision.to(features.device)
    # The precision is symmetric.
    target = prior.mean.to(features.device) @ precision
    x = features.new_zeros(entries.shape[0], target.shape[-1])
    RowProblems.of(centred, centred.csr, torch.float64).solve(
        x,
        features,
        bias.cols.double(),
        precision=precision,
        strengths=strengths,
        pull=strengths.unsqueeze(1) * target,
    )
    return x
