"""Trained adapters taken back towards zero, as far as held-out data asks, and certified there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.present import check_known, record_of
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights, settle, unsettle
from lowrank_opt.nn.basis.sharded import check_whole
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Certificate, Parameterization
from lowrank_opt.parameterizations.certificate import certify
from lowrank_opt.sets import FeasibleSet, RankAtMost, SchattenBall

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
    same parameterizations; where an adapter has a settled part (an earlier link, a start that was
    subtracted), both together are projected, and what the update cannot hold is settled. After any
    error they hold what they held.

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
    check_whole(model, "rewind")
    check_known(model, names)
    found = adapted_weights(model, names or None, tied=False)
    trained = [[total().detach().clone() for total in w.totals()] for w in found]
    kept = [(x, x.detach().clone()) for w in found for u in w.updates for x in _tensors(u)]
    path = _Path(model, found, trained, p, validation, source)
    try:
        if radius is not None:
            limits = _limits(trained, lambda norm: min(norm, check_radius(radius)), p)
            return path.measured(limits, math.nan)
        return path.searched(sorted(fractions, reverse=True))
    except BaseException:
        for x, before in kept:
            x.copy_(before)
        for weight in found:
            if weight.settled:
                _settle_anew(model, weight, [fixed().detach() for fixed in weight.settled])
        raise


@dataclass(frozen=True)
class _Path:
    """What was trained, and how it is moved, measured and certified."""

    model: nn.Module
    found: Sequence[AdaptedWeight]
    trained: list[list[LowRankOperator]]
    p: float
    validation: Callable[[], float | Tensor] | None
    source: Callable[[], float | Tensor] | None

    def searched(self, fractions: Sequence[float]) -> RewindReport:
        """Go along the path and back to its best point."""
        limits = [_limits(self.trained, lambda norm, f=f: f * norm, self.p) for f in fractions]
        pairs = zip(limits, fractions, strict=True)
        reports = [self.measured(limit, f) for limit, f in pairs]
        points = tuple(report.chosen for report in reports)
        # The last of equal losses is the smallest update.
        best = min(reversed(points), key=lambda point: point.target)
        at = points.index(best)
        self.move(limits[at])
        return RewindReport(self.p, points, best, reports[at].certificates)

    def measured(self, limits: list[list[float]], fraction: float) -> RewindReport:
        """Move to one point, measure and certify it."""
        ops = self.move(limits)
        pair = (self.validation, self.source)
        losses = [math.nan if loss is None else float(loss()) for loss in pair]
        largest = max((x for row in limits for x in row), default=0.0)
        point = RewindPoint(fraction, largest, *losses)
        certificates: dict[str, Certificate] = {}
        for weight, made, row in zip(self.found, ops, limits, strict=True):
            for name, op, limit in zip(weight.matrix_names, made, row, strict=True):
                key = name if name not in certificates else f"{name} ({weight.adapter})"
                certificates[key] = certify(op, _ball(op, limit, self.p))
        return RewindReport(self.p, (point,), point, certificates)

    def move(self, limits: list[list[float]]) -> list[list[LowRankOperator]]:
        """Store the projections on balls of these radii, and return what is stored."""
        return [
            self._moved(weight, [_shrunk(op, x, self.p) for op, x in zip(ops, row, strict=True)])
            for weight, ops, row in zip(self.found, self.trained, limits, strict=True)
        ]

    def _moved(
        self, weight: AdaptedWeight, targets: list[LowRankOperator]
    ) -> list[LowRankOperator]:
        stored: list[LowRankOperator] = []
        for update, target in zip(weight.updates, targets, strict=True):
            update.assign(target, project=True)
            stored.append(update().detach())
        if not weight.settled:
            return stored
        rest = [t - op for t, op in zip(targets, stored, strict=True)]
        _settle_anew(self.model, weight, rest)
        return [op + r for op, r in zip(stored, rest, strict=True)]


def _settle_anew(
    model: nn.Module, weight: AdaptedWeight, ops: Sequence[LowRankOperator | None]
) -> None:
    unsettle(model, weight)
    settle(model, replace(weight, settled=()), ops)


def _limits(
    trained: list[list[LowRankOperator]], limit: Callable[[float], float], p: float
) -> list[list[float]]:
    return [[limit(float(op.schatten_norm(p))) for op in ops] for ops in trained]


def _ball(op: LowRankOperator, limit: float, p: float) -> FeasibleSet:
    rank = min(op.rank, *op.shape)
    return SchattenBall(p, limit, rank) if limit > 0 else RankAtMost(rank)


def _shrunk(op: LowRankOperator, limit: float, p: float) -> LowRankOperator:
    return _ball(op, limit, p).project(op) if limit > 0 else op * 0.0


def _tensors(update: Parameterization) -> list[Tensor]:
    return [*update.parameters(), *update.buffers()]
