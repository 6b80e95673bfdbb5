"""The feasible set: nearest members, and members that minimise a linear function."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import Chart
from lowrank_opt.testing.cases.members import MEMBERS, boundary_values, competitors
from lowrank_opt.testing.cases.oracle import Array, dense, random_frame
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# How far outside the drawn operators lie, in units of the set's size.
_FAR = (0.3, 2.0, 50.0)


def _projection(subject: Subject) -> None:
    module = subject.fresh()
    feasible_set, chart = module.feasible_set, subject.chart(module)
    member = subject.target(module)
    _expect_fixed(subject, module, member, "a member")
    outside = _outsider(subject, chart, _FAR[subject.seed % len(_FAR)])
    point = feasible_set.project(outside)
    _expect_member(subject, module, point, "the projection")
    _expect_fixed(subject, module, point, "a projected operator")
    _expect_nearest(subject, chart, outside, point)


def _lmo(subject: Subject) -> None:
    module = subject.fresh()
    feasible_set, chart = module.feasible_set, subject.chart(module)
    if not chart.bounded:
        raise NotApplicable("a linear function has no minimum over an unbounded set")
    gradient = _outsider(subject, chart, 1.0)
    G = dense(gradient)
    size = float(np.linalg.norm(chart.adjoint(G))) * chart.size(G) * len(G.T) ** 0.5
    for form in (gradient, gradient.to_dense()):
        try:
            found = feasible_set.lmo(form)
        except ShapeError as reason:
            raise NotApplicable(str(reason)) from None
        _expect_member(subject, module, found, "the minimiser")
        value, best = float((G * dense(found)).sum()), _best_value(chart, G)
        expect(
            value <= best + _rounding(subject) * size,
            f"lmo reaches <G, W> = {value:.9g}, but a member has {best:.9g}",
        )


def _outsider(subject: Subject, chart: Chart, far: float) -> LowRankOperator:
    """Return an operator of full rank, outside unless `far` is small."""
    (m, n), size = subject.case.shape, chart.size(np.zeros(subject.case.shape)) or 1.0
    k = min(m, n)
    scale = far * size / k * subject.normal(k, salt=20).abs()
    return LowRankOperator(subject.normal(m, k, salt=21), scale, subject.normal(n, k, salt=22))


def _expect_member(
    subject: Subject, module: Parameterization, op: LowRankOperator, what: str
) -> None:
    chart, W = subject.chart(module), dense(op)
    expect(bool(np.isfinite(W).all()), f"{what} is not finite")
    excess = chart.excess(W)
    allowed = chart.tolerance(W, subject.dtype, module.feasible_set.rank)
    expect(
        excess <= allowed, f"{what} leaves the set by {excess:.2e}, rounding explains {allowed:.1e}"
    )


def _expect_fixed(
    subject: Subject, module: Parameterization, op: LowRankOperator, what: str
) -> None:
    chart = subject.chart(module)
    change = float(np.linalg.norm(dense(module.feasible_set.project(op)) - dense(op)))
    size = chart.size(dense(op)) * chart.gain
    allowed = _rounding(subject) * size * subject.case.rank**0.5
    expect(change <= allowed, f"projecting moves {what} by {change:.2e}")


def _expect_nearest(
    subject: Subject, chart: Chart, op: LowRankOperator, point: LowRankOperator
) -> None:
    C = chart.pull(dense(op))
    distance = float(np.linalg.norm(C - chart.pull(dense(point))))
    rivals = competitors(chart, C, seed=subject.seed)
    best = min(float(np.linalg.norm(C - rival)) for rival in rivals)
    allowed = _rounding(subject) * float(np.linalg.norm(C))
    expect(
        distance <= best + allowed,
        f"the projection is at distance {distance:.9g}, but a member is at {best:.9g}",
    )


def _best_value(chart: Chart, G: Array) -> float:
    """Return the smallest inner product that members built for the purpose reach."""
    core, zero = chart.adjoint(G), chart.push(np.zeros_like(chart.pull(G)))
    U, _, Vh = np.linalg.svd(core, full_matrices=False)
    k, rng = min(chart.core.rank, len(Vh)), np.random.default_rng(0)
    values = list(boundary_values(chart, k))
    aligned = [chart.push(-(U[:, :k] * v) @ Vh[:k]) for v in values]
    m, n = core.shape
    others = [chart.push((random_frame(m, k, rng) * v) @ random_frame(n, k, rng).T) for v in values]
    return min(float((G * W).sum()) for W in (*aligned, *others, zero))


def _rounding(subject: Subject) -> float:
    m, n = subject.case.shape
    return 64 * max(subject.eps, torch.finfo(torch.float64).eps) * (m + n) ** 0.5


check_projection = Law(
    "projection",
    "project() leads into the set, to a nearest member, fixes members and is idempotent.",
    _projection,
    parameters=(FreeParameters("start"),),
    members=MEMBERS[:8],
)
check_lmo = Law(
    "lmo",
    "lmo(G) is a member W with the smallest <G, W>.",
    _lmo,
    parameters=(FreeParameters("start"), FreeParameters("normal")),
)
