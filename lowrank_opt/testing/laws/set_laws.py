"""Laws of feasible sets besides projection and linear minimisation: members, samples, sizes."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.errors import LowRankError, RadiusError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    SchattenBall,
    SingularValueBox,
    SpectralSet,
)
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import Chart, chart_of
from lowrank_opt.testing.cases.oracle import dense, is_finite, random_frame, to_array
from lowrank_opt.testing.search.held import held
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# How far outside, in units of the set's size.
_OUTSIDE = (1.001, 1.5, 100.0)
_SAMPLES = 8


def contract(subject: Subject) -> None:
    """Expect operators of the right shape and dtype, and numbers where numbers are promised."""
    feasible_set, shape = held(subject, FeasibleSet), subject.case.shape
    expect(feasible_set.rank >= 1, f"the rank is {feasible_set.rank}")
    member = sample(subject, feasible_set)
    made = {"sample()": member, "project()": feasible_set.project(_huge(subject, 3.0))}
    for name, op in made.items():
        expect(isinstance(op, LowRankOperator), f"{name} is a {type(op).__name__}")
        expect(op.shape == shape, f"{name} has shape {op.shape}, asked for {shape}")
        expect(op.dtype == subject.dtype, f"{name} is of {op.dtype}, asked for {subject.dtype}")
        excess = feasible_set.excess(op)
        expect(isinstance(excess, float) and excess >= 0, f"the excess of {name} is {excess!r}")
    unknown = LowRankOperator(member.left * torch.nan, member.scale, member.right)
    expect(not feasible_set.contains(unknown), "the set contains an operator of NaN")


def membership(subject: Subject) -> None:
    """Expect contains() and excess() to agree with an independent computation."""
    feasible_set = held(subject, FeasibleSet)
    chart, member = chart_of(feasible_set), _member(subject, feasible_set)
    _expect_contained(feasible_set, member, "a member")
    for far in _OUTSIDE:
        op = _scaled(chart, member, far)
        excess = chart.excess(dense(op))
        # Between the tolerance and a part of the step, rounding and the rule may differ.
        if excess <= 1e-5 * chart.size(dense(op)) or not chart.bounded:
            continue
        found = feasible_set.excess(op)
        expect(
            not feasible_set.contains(op),
            f"the set contains {far:g} times a member, which leaves it by {excess:.3e}",
        )
        if isinstance(chart.core, SchattenBall | KyFanBall | SingularValueBox):
            near = abs(found - excess) <= 1e-3 * excess + chart.tolerance(
                dense(op), subject.dtype, feasible_set.rank
            )
            expect(near, f"excess() is {found:.6g} where it should be {excess:.6g}")


def rank_bound(subject: Subject) -> None:
    """Expect small matrices of too high a rank to be outside."""
    feasible_set, (m, n) = held(subject, FeasibleSet), subject.case.shape
    chart = chart_of(feasible_set)
    rows, cols = chart.pull(np.zeros((m, n))).shape
    k = chart.core.rank + 1
    if k > min(rows, cols) or chart.shift:
        raise NotApplicable("no matrix of this shape has a higher rank")
    size = 1e-3 * (chart.size(np.zeros((m, n))) or 1.0) / k
    rng = subject.rng
    W = chart.push(size * random_frame(rows, k, rng) @ random_frame(cols, k, rng).T)
    op = LowRankOperator.from_dense(torch.from_numpy(W).to(subject.dtype))
    expect(not feasible_set.contains(op), f"the set contains a matrix of rank {k}")


def star_shaped(subject: Subject) -> None:
    """Expect zero and all multiples of members between 0 and 1, for sets of singular values."""
    feasible_set = held(subject, FeasibleSet)
    if not isinstance(feasible_set, SpectralSet):
        raise NotApplicable("not a set of singular values")
    member = _member(subject, feasible_set)
    for t in (0.0, 1e-8, 0.5, 1.0):
        _expect_contained(feasible_set, t * member, f"{t:g} times a member")
    U, V = (
        torch.from_numpy(random_frame(side, side, subject.rng)).to(subject.dtype)
        for side in subject.case.shape
    )
    turned = LowRankOperator(U @ member.left, member.scale, V @ member.right)
    _expect_contained(feasible_set, turned, "a member with rows and columns rotated")


def samples(subject: Subject) -> None:
    """Expect members from sample(), the same ones for the same generator."""
    feasible_set = held(subject, FeasibleSet)
    chart, state = chart_of(feasible_set), torch.get_rng_state()
    first = [sample(subject, feasible_set, i) for i in range(_SAMPLES)]
    again = [sample(subject, feasible_set, i) for i in range(_SAMPLES)]
    expect(torch.equal(state, torch.get_rng_state()), "sample() draws from the global generator")
    for op, twin in zip(first, again, strict=True):
        expect(is_finite(op), "a sample is not finite")
        excess = chart.excess(dense(op))
        allowed = chart.tolerance(dense(op), subject.dtype, feasible_set.rank)
        expect(excess <= allowed, f"a sample leaves the set by {excess:.2e}")
        _expect_contained(feasible_set, op, "a sample")
        same = all(torch.equal(x, y) for x, y in zip(op, twin, strict=True))
        expect(same, "sample() gives other members for the same generator")
    sizes = {round(float(np.linalg.norm(dense(op))), 12) for op in first}
    expect(len(sizes) > 1, "sample() gives one member only")


def sizes(subject: Subject) -> None:
    """Expect finite members from project() for huge and tiny operators, and for zero."""
    feasible_set = held(subject, FeasibleSet)
    chart = chart_of(feasible_set)
    top = 1e30 if subject.dtype == torch.float32 else 1e160
    for size in (0.0, 1 / top, 1e-8, 1e8, top):
        op = _huge(subject, size)
        point = feasible_set.project(op)
        expect(is_finite(point), f"the projection of an operator of size {size:g} is not finite")
        W = dense(point)
        excess = chart.excess(W)
        allowed = chart.tolerance(W, subject.dtype, feasible_set.rank)
        expect(
            excess <= allowed,
            f"the projection of an operator of size {size:g} leaves the set by {excess:.2e}",
        )
        lost = size > 1 and chart.bounded and chart.shift == 0 and not W.any()
        expect(not lost, f"the projection of an operator of size {size:g} is zero, not nearest")
        before = feasible_set.excess(op)
        expect(np.isfinite(before), f"the excess at size {size:g} is {before}")


def arguments_kept(subject: Subject) -> None:
    """Expect no method to write to its argument, and each to repeat."""
    feasible_set = held(subject, FeasibleSet)
    op = _huge(subject, 37.0)
    kept = op.clone()
    first = feasible_set.project(op), feasible_set.excess(op), feasible_set.contains(op)
    again = feasible_set.project(op), feasible_set.excess(op), feasible_set.contains(op)
    same = all(torch.equal(x, y) for x, y in zip(op, kept, strict=True))
    expect(same, "a method of the set writes to its argument")
    expect(first[1:] == again[1:], "excess() or contains() does not repeat")
    near = np.allclose(dense(first[0]), dense(again[0]), rtol=1e-6, atol=0)
    expect(near, "project() does not repeat")


def minimiser_below_samples(subject: Subject) -> None:
    """Expect no sample to have a smaller inner product with G than lmo(G), and a value at G = 0."""
    feasible_set, (m, n) = held(subject, FeasibleSet), subject.case.shape
    G = subject.normal(m, n, salt=40)
    try:
        best = feasible_set.lmo(G)
        at_zero = feasible_set.lmo(torch.zeros_like(G))
    except RadiusError as reason:
        raise NotApplicable(str(reason)) from None
    except LowRankError as reason:
        raise NotApplicable(str(reason)) from None
    expect(is_finite(at_zero), "lmo(0) is not finite")
    _expect_contained(feasible_set, at_zero, "lmo(0)")
    value = float((to_array(G) * dense(best)).sum())
    for i in range(_SAMPLES):
        W = dense(sample(subject, feasible_set, i))
        other, size = float((to_array(G) * W).sum()), float(np.linalg.norm(W))
        slack = 64 * subject.eps * (size + float(np.linalg.norm(dense(best)))) * float(G.norm())
        expect(value <= other + slack, f"lmo reaches {value:.9g}, but a sample has {other:.9g}")


def sample(subject: Subject, feasible_set: FeasibleSet, index: int = 0) -> LowRankOperator:
    """Return a sample of the set, another one for each index."""
    generator = torch.Generator().manual_seed(100 * subject.seed + index)
    return feasible_set.sample(subject.case.shape, generator=generator, dtype=subject.dtype)


def _member(subject: Subject, feasible_set: FeasibleSet) -> LowRankOperator:
    return subject.case.target.build(feasible_set, subject.case.shape, dtype=subject.dtype)


def _huge(subject: Subject, size: float) -> LowRankOperator:
    (m, n), k = subject.case.shape, min(subject.case.shape)
    left, right = subject.normal(m, k, salt=41), subject.normal(n, k, salt=42)
    return LowRankOperator(left, torch.full((k,), size, dtype=subject.dtype), right)


def _scaled(chart: Chart, op: LowRankOperator, factor: float) -> LowRankOperator:
    """Return a member with its distance from the set's centre multiplied."""
    if chart.shift == 0:
        return factor * op
    W = chart.push(factor * chart.pull(dense(op)))
    return LowRankOperator.from_dense(torch.from_numpy(W).to(op.dtype))


def _expect_contained(feasible_set: FeasibleSet, op: LowRankOperator, what: str) -> None:
    excess = feasible_set.excess(op)
    expect(feasible_set.contains(op), f"the set does not contain {what}: its excess is {excess}")
