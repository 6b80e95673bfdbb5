"""Membership: who is in a set, by how much others are outside, and at which tolerance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import SpectralSet
from lowrank_opt.testing.cases.members import MEMBERS, Member
from lowrank_opt.testing.cases.oracle import dense, is_finite, random_frame
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.sets import SetTrial, set_trial
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# How far outside, in units of the set's size; and just outside, in units of the tolerance.
_MODERATE, _LARGE = 1.5, 1e6
_OUTSIDE = (1.001, _MODERATE, 100.0, _LARGE)
_JUST, _CLEAR = 2.0**10, 2.0**7
_INSIDE, _BEYOND = 0.9, 1.1
_START = (FreeParameters("start"),)


def _contract(trial: SetTrial) -> None:
    feasible_set, shape = trial.feasible_set, trial.case.shape
    expect(feasible_set.rank >= 1, f"the rank is {feasible_set.rank}")
    member = trial.sample()
    made = {"sample()": member, "project()": feasible_set.project(trial.full(3.0))}
    for name, op in made.items():
        expect(isinstance(op, LowRankOperator), f"{name} is a {type(op).__name__}")
        expect(op.shape == shape, f"{name} has shape {op.shape}, asked for {shape}")
        expect(op.dtype == trial.dtype, f"{name} is of {op.dtype}, asked for {trial.dtype}")
        excess = feasible_set.excess(op)
        expect(isinstance(excess, float) and excess >= 0, f"the excess of {name} is {excess!r}")
        unit = feasible_set.unit(op)
        expect(0 <= unit < float("inf"), f"the unit of {name} is {unit!r}")
    plain = feasible_set.sample(shape, generator=trial.generator())
    default = torch.get_default_dtype()
    expect(plain.dtype == default, f"sample() without a dtype is of {plain.dtype}, not {default}")
    unknown = LowRankOperator(member.left * torch.nan, member.scale, member.right)
    expect(not feasible_set.contains(unknown), "the set contains an operator of NaN")


def _membership(trial: SetTrial) -> None:
    feasible_set, chart, member = trial.feasible_set, trial.chart, trial.member()
    _expect_contained(trial, member, "a member")
    if not chart.bounded:
        return
    rule = chart.rule(trial.dtype, feasible_set.rank) * chart.condition
    barely = trial.scaled(member, 1 + rule / 4)
    forgiven = feasible_set.excess(barely) > 0 and feasible_set.contains(barely, rtol=0.0)
    expect(not forgiven, "contains(rtol=0) is true where the excess is not zero")
    last = 0.0
    for far in (1 + _JUST * rule, *_OUTSIDE):
        op = trial.scaled(member, far)
        W = dense(op)
        excess = chart.excess(W)
        # Between the tolerance and a part of the step, rounding and the rule may differ.
        if excess <= _CLEAR * rule * (chart.size(W) + chart.shift):
            continue
        found = feasible_set.excess(op)
        expect(
            not feasible_set.contains(op),
            f"the set contains {far:g} times a member, which leaves it by {excess:.3e}",
        )
        if isinstance(chart.core, SpectralSet):
            near = abs(found - excess) <= max(1e-3, 4 / _CLEAR) * excess
            expect(near, f"excess() is {found:.6g} where it should be {excess:.6g}")
        grows = far < _LARGE or found > 2 * last
        expect(grows, f"excess() is {last:.6g}, and {found:.6g} at {far:g} times a member")
        if far == _MODERATE:
            _expect_tolerance(trial, op, found)
        last = found


def _expect_tolerance(trial: SetTrial, op: LowRankOperator, excess: float) -> None:
    """Expect ``rtol`` to be what excess is compared with, in the set's unit."""
    feasible_set = trial.feasible_set
    relative = excess / feasible_set.unit(op)
    for factor, inside in ((2.0, True), (0.5, False)):
        found = feasible_set.contains(op, rtol=factor * relative)
        expect(
            found == inside,
            f"contains(rtol={factor * relative:.3g}) is {found} at a relative excess of "
            f"{relative:.3g}",
        )


def _triples(trial: SetTrial) -> None:
    """Expect one answer for one matrix, whatever the factors that it is given by."""
    feasible_set, chart = trial.feasible_set, trial.chart
    op = trial.scaled(trial.member(), _MODERATE) if chart.bounded else trial.member()
    rule = chart.rule(trial.dtype, feasible_set.rank) * chart.condition
    allowed = _CLEAR * rule * (chart.size(dense(op)) + chart.shift)
    truth, inside = feasible_set.excess(op), feasible_set.contains(op)
    point = dense(feasible_set.project(op))
    for name, same in _written_otherwise(op):
        found = feasible_set.excess(same)
        expect(
            abs(found - truth) <= allowed + _CLEAR * rule * truth,
            f"excess() is {truth:.6g}, and {found:.6g} of the same matrix {name}",
        )
        clear = inside == feasible_set.contains(same) or truth <= allowed
        expect(clear, f"contains() is {inside}, but not of the same matrix {name}")
    moved = float(np.abs(dense(feasible_set.project(_doubled(op))) - point).max())
    near = moved <= max(allowed, 1e-6 * float(np.abs(point).max())) or chart.turned is not None
    expect(near, f"project() is off by {moved:.2e} for the same matrix with every column twice")


def _written_otherwise(op: LowRankOperator) -> Iterator[tuple[str, LowRankOperator]]:
    left, scale, right = op
    yield "with signs in the scale", LowRankOperator(-left, -scale, right)
    yield "with columns of other lengths", LowRankOperator(8 * left, scale, right / 8)
    yield "with a scale of one", LowRankOperator(left * scale, torch.ones_like(scale), right)
    yield "in another order", LowRankOperator(*(x.flip(-1) for x in op))
    yield "with gradients", LowRankOperator(*(x.clone().requires_grad_() for x in op))
    yield "with every column twice", _doubled(op)


def _doubled(op: LowRankOperator) -> LowRankOperator:
    return 0.5 * (op + op)


def _views(trial: SetTrial) -> None:
    feasible_set, chart, member = trial.feasible_set, trial.chart, trial.member()
    if not chart.bounded:
        raise NotApplicable("an unbounded set has no outside in norm")
    for factor in (_INSIDE, _BEYOND):
        op = trial.scaled(member, factor)
        view = feasible_set.as_spectral(op)
        if view is None:
            raise NotApplicable("no spectral form")
        beyond = chart.spectral_excess(dense(op))
        # Neither of both is judged next to the boundary.
        if factor > 1 and beyond <= 1e-3 * chart.size(dense(op)):
            continue
        said = view[1].excess(view[0])
        tolerance = chart.tolerance(dense(op), trial.dtype, feasible_set.rank)
        expect(
            (said > 4 * tolerance) == (beyond > tolerance) or 0 < said <= 4 * tolerance,
            f"as_spectral() says that {factor:g} times a member exceeds by {said:.3e}; it does by "
            f"{beyond:.3e}",
        )


def _rank_bound(trial: SetTrial) -> None:
    (m, n), chart = trial.case.shape, trial.chart
    rows, cols = chart.pull(np.zeros((m, n))).shape
    k = chart.core.rank + 1
    if k > min(rows, cols) or chart.shift:
        raise NotApplicable("no matrix of this shape has a higher rank")
    U, V = (random_frame(side, k, trial.rng) for side in (rows, cols))
    small = _JUST * chart.rule(trial.dtype, k) * chart.condition
    for share in (1e-3, small):
        size = share * (chart.size(np.zeros((m, n))) or 1.0)
        values = np.append(np.full(k - 1, max(size, 1e-3 * size / small)), size)
        op = LowRankOperator.from_dense(
            torch.from_numpy(chart.push(U * values @ V.T)).to(trial.dtype)
        )
        inside = trial.feasible_set.contains(op)
        expect(not inside, f"the set contains a matrix of rank {k} whose last value is {size:.1e}")


def _star_shaped(trial: SetTrial) -> None:
    if not isinstance(trial.feasible_set, SpectralSet):
        raise NotApplicable("not a set of singular values")
    member = trial.member()
    for t in (0.0, 1e-8, 0.5, 1.0):
        _expect_contained(trial, t * member, f"{t:g} times a member")
    U, V = (
        torch.from_numpy(random_frame(side, side, trial.rng)).to(trial.dtype)
        for side in trial.case.shape
    )
    turned = LowRankOperator(U @ member.left, member.scale, V @ member.right)
    _expect_contained(trial, turned, "a member with rows and columns rotated")


def _sizes(trial: SetTrial) -> None:
    feasible_set, chart = trial.feasible_set, trial.chart
    top = 1e30 if trial.dtype == torch.float32 else 1e160
    for size in (0.0, 1 / top, 1e-8, 1e8, top):
        op = trial.full(size)
        point = feasible_set.project(op)
        expect(is_finite(point), f"the projection of an operator of size {size:g} is not finite")
        W = dense(point)
        excess = chart.excess(W)
        allowed = chart.tolerance(W, trial.dtype, feasible_set.rank)
        expect(
            excess <= allowed,
            f"the projection of an operator of size {size:g} leaves the set by {excess:.2e}",
        )
        lost = size > 1 and chart.bounded and chart.shift == 0 and not W.any()
        expect(not lost, f"the projection of an operator of size {size:g} is zero, not nearest")
        before = feasible_set.excess(op)
        expect(np.isfinite(before), f"the excess at size {size:g} is {before}")


def _purity(trial: SetTrial) -> None:
    feasible_set, op = trial.feasible_set, trial.full(37.0)
    kept, dense_op = op.clone(), op.to_dense()
    torch.rand(())  # A state that no seed leads to.
    kept_dense, state = dense_op.clone(), torch.get_rng_state()
    first = feasible_set.project(op), feasible_set.excess(op), feasible_set.contains(op)
    if trial.chart.bounded:
        feasible_set.lmo(op)
        feasible_set.lmo(dense_op)
    feasible_set.as_spectral(op)
    again = feasible_set.project(op), feasible_set.excess(op), feasible_set.contains(op)
    same = all(torch.equal(x, y) for x, y in zip(op, kept, strict=True))
    expect(same and torch.equal(dense_op, kept_dense), "a method of the set writes to its argument")
    expect(first[1:] == again[1:], "excess() or contains() does not repeat")
    near = np.allclose(dense(first[0]), dense(again[0]), rtol=1e-6, atol=0)
    expect(near, "project() does not repeat")
    unchanged = torch.equal(state, torch.get_rng_state())
    expect(unchanged, "a method of the set draws from, or seeds, the global generator")
    twin = copy.deepcopy(feasible_set)
    expect(twin.excess(op) == first[1], "a deep copy of the set has another excess")


def _expect_contained(trial: SetTrial, op: LowRankOperator, what: str) -> None:
    excess = trial.feasible_set.excess(op)
    expect(
        trial.feasible_set.contains(op), f"the set does not contain {what}: its excess is {excess}"
    )


def _law(
    name: str,
    statement: str,
    body: Callable[[SetTrial], None],
    *,
    members: tuple[Member, ...] = (),
    sides: tuple[int, int] | None = None,
) -> Law[SetTrial]:
    return Law(
        name,
        statement,
        body,
        parameters=_START,
        members=members,
        sides=sides,
        needs=() if name == "contract" else ("contract",),
        trial=set_trial,
        entry="check_set",
    )


LAWS = (
    _law(
        "contract",
        "sample() and project() give operators of the shape and dtype asked for.",
        _contract,
    ),
    _law(
        "membership",
        "contains() is true for members and false beyond the boundary; excess() says by how much, "
        "and rtol is what it may be, in the set's unit.",
        _membership,
        members=MEMBERS,
    ),
    _law(
        "views",
        "The spectral form, of which certificates and exports are made, has the same boundary.",
        _views,
        members=MEMBERS[:6],
    ),
    _law(
        "triples",
        "Excess, membership and projection are those of the matrix, whatever its factors.",
        _triples,
        members=MEMBERS[:3],
    ),
    _law("rank", "A matrix of higher rank is outside, however small.", _rank_bound, sides=(2, 9)),
    _law(
        "star",
        "Multiples of members between 0 and 1 are members, and rotations change nothing.",
        _star_shaped,
        members=MEMBERS,
    ),
    _law("sizes", "Projections of huge, tiny and zero operators are finite members.", _sizes),
    _law(
        "purity",
        "No method writes to its argument or draws from the global generator, and each repeats.",
        _purity,
    ),
)
