"""Nearest members, and members that minimise a linear function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from lowrank_opt.errors import LowRankError, ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import RefusedCase
from lowrank_opt.testing.cases.charts import Chart
from lowrank_opt.testing.cases.members import MEMBERS, boundary_values, competitors
from lowrank_opt.testing.cases.oracle import Array, dense, random_frame
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.sets import SetTrial, declared_set, set_trial
from lowrank_opt.testing.search.expressions import operator_code
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

if TYPE_CHECKING:
    from lowrank_opt.sets.base import Gradient

# How far outside the drawn operators lie, in units of the set's size.
_FAR = (0.3, 2.0, 50.0)


def _projection(trial: SetTrial) -> None:
    member = trial.member()
    _expect_fixed(trial, member, "a member")
    outside = _outsider(trial, _FAR[trial.seed % len(_FAR)])
    point = trial.feasible_set.project(outside)
    shown = _shown(("operator", outside), ("projection", point))
    _expect_member(trial, point, "the projection", shown)
    _expect_fixed(trial, point, "a projected operator")
    _expect_nearest(trial, outside, point, shown)


def _lmo(trial: SetTrial) -> None:
    if not trial.chart.bounded:
        raise NotApplicable("a linear function has no minimum over an unbounded set")
    gradient = _outsider(trial, 1.0)
    _expect_least(trial, gradient)
    left, scale, right = gradient
    for name, other in (
        ("huge", LowRankOperator(left, 1e9 * scale, right)),
        ("tiny", LowRankOperator(left, 1e-9 * scale, right)),
        ("of rank one, with a sign", LowRankOperator(left[:, :1], -scale[:1], right[:, :1])),
    ):
        _expect_least(trial, other, _FEW, f" {name}")


def _expect_least(
    trial: SetTrial, gradient: LowRankOperator, forms: int | None = None, size_name: str = ""
) -> None:
    """Expect the minimiser of a gradient, in some of its forms, to be one."""
    chart, G = trial.chart, dense(gradient)
    slope = float(np.linalg.norm(chart.adjoint(G))) * len(G.T) ** 0.5
    best = math.inf if chart.turned is not None else _best_value(chart, G)
    for name, form, eps in islice(_forms(gradient), forms):
        try:
            found = trial.feasible_set.lmo(form)
        except ShapeError as reason:
            raise NotApplicable(str(reason)) from None
        shown = _shown(("gradient", gradient), ("minimiser", found))
        _expect_member(trial, found, f"the minimiser for {name}", shown)
        value = float((G * dense(found)).sum())
        # A set may have no size but that of what it is compared with: not of a tiny gradient.
        size = slope * max(chart.size(G), chart.size(dense(found)))
        if chart.turned is not None:
            rivals = chart.turned.rivals(chart.pull(dense(found)), trial.seed)
            best = min([value, *(float((G * chart.push(C)).sum()) for C in rivals)])
        expect(
            value <= best + _rounding(trial, eps) * size,
            f"lmo of {name}{size_name} reaches <G, W> = {value:.9g}, but a member has {best:.9g}",
            shown,
        )


def _forms(gradient: LowRankOperator) -> Iterator[tuple[str, Gradient, float]]:
    """Yield a gradient in every form that `FeasibleSet.lmo` takes, with its rounding."""
    G, eps = gradient.to_dense(), torch.finfo(gradient.dtype).eps
    yield "a dense tensor", G, eps
    yield "a sparse tensor", G.to_sparse(), eps
    yield "an operator", gradient, eps
    yield "a scipy array", sp.csr_array(G.cpu().double().numpy()), eps
    yield "a scipy matrix", sp.coo_matrix(G.cpu().double().numpy()), eps
    yield "a scipy array by columns", sp.csc_array(G.cpu().double().numpy()), eps
    other = torch.float32 if gradient.dtype == torch.float64 else torch.float64
    rounding = torch.finfo(torch.float32).eps
    yield f"an operator of {other}", gradient.to(dtype=other), rounding
    yield f"a dense tensor of {other}", G.to(other), rounding
    yield f"a sparse tensor of {other}", G.to(other).to_sparse(), rounding
    yield "a transposed tensor", G.mT.contiguous().mT, eps


def _outsider(trial: SetTrial, far: float) -> LowRankOperator:
    """Return an operator of full rank, outside unless `far` is small."""
    (m, n), size = trial.case.shape, trial.chart.size(np.zeros(trial.case.shape)) or 1.0
    k = min(m, n)
    scale = far * size / k * trial.normal(k, salt=20).abs()
    return LowRankOperator(trial.normal(m, k, salt=21), scale, trial.normal(n, k, salt=22))


def _shown(*operators: tuple[str, LowRankOperator]) -> str:
    """Return a program that prints operators: what came in, and what came out."""
    lines = ["from lowrank_opt import LowRankOperator", ""]
    for name, op in operators:
        lines += [f"{name} = {operator_code(op)}"]
        lines += [f'print("{name}:", {name}.to_dense().tolist())']
        lines += [f'print("its singular values:", {name}.singular_values().tolist())']
    return "\n".join(lines)


def _expect_member(trial: SetTrial, op: LowRankOperator, what: str, shown: str) -> None:
    chart, W = trial.chart, dense(op)
    expect(bool(np.isfinite(W).all()), f"{what} is not finite", shown)
    excess = chart.excess(W)
    coarser = max(trial.dtype, op.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    allowed = chart.tolerance(W, coarser, trial.feasible_set.rank)
    expect(
        excess <= allowed,
        f"{what} leaves the set by {excess:.2e}, rounding explains {allowed:.1e}",
        shown,
    )


def _expect_fixed(trial: SetTrial, op: LowRankOperator, what: str) -> None:
    chart, point = trial.chart, trial.feasible_set.project(op)
    change = float(np.linalg.norm(dense(point) - dense(op)))
    size = chart.size(dense(op)) * chart.gain
    allowed = _rounding(trial) * size * trial.case.rank**0.5
    shown = _shown(("member", op), ("projection", point))
    expect(change <= allowed, f"projecting moves {what} by {change:.2e}", shown)


def _expect_nearest(
    trial: SetTrial, op: LowRankOperator, point: LowRankOperator, shown: str
) -> None:
    chart = trial.chart
    C = chart.pull(dense(op))
    nearest = chart.pull(dense(point))
    distance = float(np.linalg.norm(C - nearest))
    rivals = competitors(chart, C, nearest, seed=trial.seed)
    best = min((float(np.linalg.norm(C - rival)) for rival in rivals), default=distance)
    allowed = _rounding(trial) * float(np.linalg.norm(C))
    expect(
        distance <= best + allowed,
        f"the projection is at distance {distance:.9g}, but a member is at {best:.9g}",
        shown,
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


def _rounding(trial: SetTrial, eps: float | None = None) -> float:
    m, n = trial.case.shape
    return 64 * max(trial.eps, eps or 0.0, torch.finfo(torch.float64).eps) * (m + n) ** 0.5


def _elsewhere(trial: SetTrial) -> None:
    """Try minimisers and projections of long gradients, where the set takes such shapes."""
    other = torch.float32 if trial.dtype == torch.float64 else torch.float64
    for shape, dtype in (*((shape, trial.dtype) for shape in _LONG), (trial.case.shape, other)):
        case = replace(trial.case, shape=shape, rank=min(trial.case.rank, *shape))
        there = replace(trial, case=case, dtype=dtype)
        try:
            there.feasible_set.sample(shape)
        except (LowRankError, RefusedCase):
            continue
        if there.chart.bounded:
            _expect_least(there, _outsider(there, 1.0), _FEW)
        _projection(there)


# More columns than rows by far, and more rows than columns.
_LONG, _FEW = ((2, 30), (30, 3)), 2
_PROJECTION = "project() leads into the set, to a nearest member, fixes members and is idempotent."
_LMO = "lmo(G) is a member W with the smallest <G, W>, for G dense, sparse or an operator."
_START = (FreeParameters("start"),)
_GRADIENTS = (FreeParameters("start"), FreeParameters("normal"))

# Of the set that a parameterization declares.
check_projection: Law[SetTrial] = Law(
    "projection",
    _PROJECTION,
    _projection,
    parameters=_START,
    members=MEMBERS[:8],
    needs=("contract",),
    trial=declared_set,
)
check_lmo: Law[SetTrial] = Law(
    "lmo", _LMO, _lmo, parameters=_GRADIENTS, needs=("contract",), trial=declared_set
)

DECLARED = (check_projection, check_lmo)
# Of a set itself.
LAWS = (
    Law(
        "projection",
        _PROJECTION,
        _projection,
        parameters=_START,
        members=MEMBERS,
        free=True,
        needs=("contract",),
        trial=set_trial,
        entry="check_set",
    ),
    Law(
        "lmo",
        _LMO,
        _lmo,
        parameters=_GRADIENTS,
        needs=("contract",),
        trial=set_trial,
        entry="check_set",
    ),
    Law(
        "long",
        "Wide and tall operators have nearest members, and minimisers, as square ones do.",
        _elsewhere,
        parameters=_START,
        max_examples=1,
        needs=("contract", "projection", "lmo"),
        trial=set_trial,
        entry="check_set",
    ),
)
