"""Trained adapters taken back towards zero, as far as held-out data asks, and certified there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.present import check_known, record_of
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Certificate, Parameterization
from lowrank_opt.parameterizations.certificate import certify
from lowrank_opt.sets import RankAtMost, SchattenBall

_NORMS = {1.0: "nuclear", 2.0: "Frobenius", math.inf: "spectral"}


@dataclass(frozen=True)
class RewindPoint:
    """One point of the path.

    Attributes
    ----------
    fraction : float
        Of each matrix's trained norm; NaN for one radius for all.
    radius : float
        The largest norm of any matrix.
    target, source : float
        Held-out losses; NaN where none was given.
    """

    fraction: float
    radius: float
    target: float
    source: float


@dataclass(frozen=True)
class RewindReport:
    """The path, the point that was chosen, and a certificate of every matrix there.

    Attributes
    ----------
    p : float
        Order of the Schatten norm.
    path : tuple of RewindPoint
        From the trained norm to zero.
    chosen : RewindPoint
    certificates : dict of str to Certificate
        By the name of the matrix; of the ball that it was projected on.
    """

    p: float
    path: tuple[RewindPoint, ...]
    chosen: RewindPoint
    certificates: dict[str, Certificate]

    @property
    def holds(self) -> bool:
        """Whether every certificate holds."""
        return all(certificate.holds for certificate in self.certificates.values())

    def table(self) -> str:
        """Return target against source loss along the path, a line for each point."""
        norm = _NORMS.get(self.p, f"Schatten-{self.p:g}")
        lines = [f"{'fraction':>9} {norm + ' <=':>13} {'target':>10} {'source':>10}"]
        for point in self.path:
            mark = "  <- chosen" if point is self.chosen else ""
            lines.append(
                f"{point.fraction:9.3g} {point.radius:13.4g} {point.target:10.4g} "
                f"{point.source:10.4g}{mark}"
            )
        return "\n".join(lines)


@torch.no_grad()
def rewind(
    model: nn.Module,
    radius: float | None = None,
    *,
    validation: Callable[[], float | Tensor] | None = None,
    source: Callable[[], float | Tensor] | None = None,
    fractions: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0),
    p: float = 2.0,
    names: Sequence[str] = (),
) -> RewindReport:
    r"""Project trained adapters on smaller balls and keep the point with the least held-out loss.

    Along the path every update keeps its singular vectors and its values shrink: by a factor for
    p = 2, by the same amount for p = 1, by a cap for p = inf. The chosen point is stored in the
    same parameterizations. After any error they hold what they held.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    radius : float, optional
        One bound for all matrices; nothing is searched then. Matrices inside are left alone.
    validation : callable, optional
        Returns the held-out loss on the adapters' task, for the model as it is; decides.
    source : callable, optional
        Returns a loss on what the base model could do before; reported.
    fractions : sequence of float
        In [0, 1], of each matrix's trained norm; of equal losses the smallest one is taken.
    p : float
        Order of the Schatten norm, in [1, inf].
    names : sequence of str
        Of adapters; all by default.

    Raises
    ------
    OptionError
        Unless exactly one of `radius` and `validation` is given, or if a fraction is not in [0, 1].
    AdapterStateError
        If the model has no such adapter.
    NoRightInverseError
        If a parameterization cannot be assigned to.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(3, 3, bias=False), lambda s: Factored(s, 2), targets=".*")
    >>> update = next(x for x in model.modules() if isinstance(x, Factored))
    >>> _ = update.assign(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
    >>> report = rewind(model, 2.0, p=1)
    >>> report.holds, update().detach().singular_values()
    (True, tensor([2., 0.]))
    """
    if (radius is None) == (validation is None):
        raise OptionError(
            "rewind takes a radius or a validation loss that chooses one; got "
            f"{'both' if validation is not None else 'neither'}"
        )
    if not fractions or not all(0 <= f <= 1 for f in fractions):
        raise OptionError(f"fractions must be in [0, 1], at least one; got {list(fractions)}")
    record_of(model)
    check_known(model, names)
    found = adapted_weights(model, names or None, tied=False)
    trained = [[update().detach().clone() for update in w.updates] for w in found]
    kept = [(x, x.detach().clone()) for w in found for u in w.updates for x in _tensors(u)]
    try:
        if radius is not None:
            limits = _limits(trained, lambda norm: min(norm, check_radius(radius)), p)
            return _settle(found, trained, limits, p, math.nan, validation, source)
        return _search(found, trained, sorted(fractions, reverse=True), p, validation, source)
    except BaseException:
        for x, before in kept:
            x.copy_(before)
        raise


def _search(
    found: Sequence[AdaptedWeight],
    trained: list[list[LowRankOperator]],
    fractions: Sequence[float],
    p: float,
    validation: Callable[[], float | Tensor] | None,
    source: Callable[[], float | Tensor] | None,
) -> RewindReport:
    limits = {f: _limits(trained, lambda norm, f=f: f * norm, p) for f in fractions}
    reports = [_settle(found, trained, limits[f], p, f, validation, source) for f in fractions]
    path = tuple(report.chosen for report in reports)
    # The last of equal losses is the smallest update.
    best = min(reversed(path), key=lambda point: point.target)
    at = path.index(best)
    _move(found, trained, limits[fractions[at]], p)
    return RewindReport(p, path, best, reports[at].certificates)


def _limits(
    trained: list[list[LowRankOperator]], limit: Callable[[float], float], p: float
) -> list[list[float]]:
    return [[limit(float(op.schatten_norm(p))) for op in ops] for ops in trained]


def _settle(
    found: Sequence[AdaptedWeight],
    trained: list[list[LowRankOperator]],
    limits: list[list[float]],
    p: float,
    fraction: float,
    validation: Callable[[], float | Tensor] | None,
    source: Callable[[], float | Tensor] | None,
) -> RewindReport:
    """Move to one point, measure and certify it."""
    _move(found, trained, limits, p)
    losses = [math.nan if loss is None else float(loss()) for loss in (validation, source)]
    largest = max((x for row in limits for x in row), default=0.0)
    point = RewindPoint(fraction, largest, *losses)
    certificates: dict[str, Certificate] = {}
    for weight, row in zip(found, limits, strict=True):
        parts = zip(weight.matrix_names, weight.updates, row, strict=True)
        for name, update, limit in parts:
            key = name if name not in certificates else f"{name} ({weight.adapter})"
            certificates[key] = _certified(update, limit, p)
    return RewindReport(p, (point,), point, certificates)


def _certified(update: Parameterization, limit: float, p: float) -> Certificate:
    op, rank = update().detach(), update.feasible_set.rank
    ball = SchattenBall(p, limit, rank) if limit > 0 else RankAtMost(rank)
    return certify(op, ball)


def _move(
    found: Sequence[AdaptedWeight],
    trained: list[list[LowRankOperator]],
    limits: list[list[float]],
    p: float,
) -> None:
    for weight, ops, row in zip(found, trained, limits, strict=True):
        for update, op, limit in zip(weight.updates, ops, row, strict=True):
            if limit > 0:
                ball = SchattenBall(p, limit, update.feasible_set.rank)
                update.assign(ball.project(op), project=True)
            else:
                update.assign(op * 0.0, project=True)


def _tensors(update: Parameterization) -> list[Tensor]:
    return [*update.parameters(), *update.buffers()]
