"""Sets made from a set: multiples, lower ranks, truncations, averages; and a bound on all members.

A made set may be larger than it has to be, except where its class documents which one it is: balls
of norms, and boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    RankAtMost,
    SchattenBall,
    SingularValueBox,
    SpectralSet,
)
from lowrank_opt.sets.norm_ball import NormBall
from lowrank_opt.testing.cases.members import Member, boundary_values
from lowrank_opt.testing.cases.oracle import dense, from_dense
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.sets import SetTrial, set_trial
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Just outside, far above the rounding of float64.
_NEXT = 1 + 2.0**-30
_ROUNDING = 2.0**-40
_FACTORS = (1.0, 0.5, 3.0, 1e-3)
_START, _MEMBERS = FreeParameters("start"), (Member("equal"), Member())
# Of the ascent to the largest member.
_STEPS = 16


def _scaled(trial: SetTrial) -> None:
    one, W = trial.feasible_set, trial.member()
    for factor in _FACTORS:
        found = one.scaled(factor)
        expect(found.contains(factor * W), f"scaled({factor:g}) does not contain {factor:g} W")
        _expect_no_more(trial, found, f"scaled({factor:g})", factor, W)


def _expect_no_more(
    trial: SetTrial, found: FeasibleSet, what: str, factor: float, W: LowRankOperator
) -> None:
    """Expect a set whose class is known exactly to end where it should: just beyond W."""
    chart = trial.chart
    if not isinstance(chart.core, NormBall | SingularValueBox):
        return
    if type(found) is not type(trial.feasible_set):
        return
    beyond = trial.scaled(W, _NEXT)
    if chart.excess(dense(beyond)) > _ROUNDING * (chart.size(dense(beyond)) + chart.shift):
        expect(not found.contains(factor * beyond), f"{what} contains what lies beyond it")


def _ranks(trial: SetTrial) -> None:
    one, W = trial.feasible_set, trial.member()
    for k in range(1, min(one.rank, *trial.case.shape) + 1):
        low, made = _of_rank(trial, k), one.with_rank(k)
        held = _rank(low) > k or made.contains(low)
        expect(held, f"with_rank({k}) does not contain a member of rank {k}")
        cut = W.truncate(k)
        held = one.truncated(k).contains(cut)
        expect(held, f"truncated({k}) does not contain a member cut to rank {k}")
        false = one.truncates and not one.contains(cut)
        expect(not false, f"truncates is true, but a member cut to rank {k} is none")
        _expect_no_more(trial, made, f"with_rank({k})", 1.0, low)
        if isinstance(one, NormBall | SingularValueBox):
            expect(made.rank == k, f"with_rank({k}) has the rank {made.rank}")
            _expect_no_more(trial, one.truncated(k), f"truncated({k})", 1.0, low)
    more = one.with_rank(one.rank + 1)
    expect(more.contains(W), f"with_rank({one.rank + 1}) does not contain a member")


def _rank(op: LowRankOperator) -> int:
    return int(np.linalg.matrix_rank(dense(op), rtol=1e-9))


def _of_rank(trial: SetTrial, k: int) -> LowRankOperator:
    """Return a member of rank at most k, on the boundary where those can be named."""
    one, chart, shape = trial.feasible_set, trial.chart, trial.case.shape
    if chart.core is not one or not chart.bounded:
        return Member("first", seed=trial.seed).build(one, shape, dtype=trial.dtype)
    values = list(boundary_values(chart, min(one.rank, *shape)))[k - 1]
    frames = (trial.normal(side, len(values), salt=50) for side in shape)
    left, right = (torch.linalg.qr(x).Q for x in frames)
    return LowRankOperator(left, torch.from_numpy(values.copy()).to(left), right)


def _averages(trial: SetTrial) -> None:
    one, W, shape = trial.feasible_set, trial.member(), trial.case.shape
    size = trial.chart.size(dense(W)) or 1.0
    for name, other, V in _others(trial, W, size):
        for p in (0.5, 0.25, 1.0):
            found = one.averaged([one, other], [p, 1 - p], rank=min(shape))
            total = p * W + (1 - p) * V
            held = found.contains(total)
            expect(held, f"averaged() with {name} does not contain {p} W + {1 - p} V")
            exact = isinstance(one, NormBall) and type(found) is type(one)
            if name == "its double" and exact and not one.contains(_NEXT * W):
                beyond = found.contains(_NEXT * total)
                expect(not beyond, f"averaged() with {name} is larger than the mean of both")


def _others(
    trial: SetTrial, W: LowRankOperator, size: float
) -> Iterator[tuple[str, FeasibleSet, LowRankOperator]]:
    """Yield what a set is averaged with, and a member of it."""
    one, shape = trial.feasible_set, trial.case.shape
    turned = Member(seed=trial.seed + 1).build(one, shape, dtype=trial.dtype)
    yield "itself", one, turned
    yield "its double", one.scaled(2.0), 2.0 * W
    line = Member("first", seed=trial.seed).build(RankAtMost(1), shape, dtype=trial.dtype)
    yield "matrices of rank one", RankAtMost(1), (1e3 * size) * line
    balls: list[FeasibleSet] = [SchattenBall(math.inf, 2 * size, 2)]
    if isinstance(one, SchattenBall):
        balls.append(replace(one, p=math.inf))
    for other in balls:
        V = Member("equal", seed=trial.seed).build(other, shape, dtype=trial.dtype)
        yield other.bound, other, V


def _side_by_side(trial: SetTrial) -> None:
    one, chart, (m, n) = trial.feasible_set, trial.chart, trial.case.shape
    if chart.core is not one or not isinstance(one, SpectralSet):
        raise NotApplicable("singular values do not decide")
    sizes = 1.0, 0.5
    found = one.side_by_side([one, one.scaled(2.0)], sizes)
    if found is None:
        raise NotApplicable("no more is known than norms say")
    i, j = (m + 1) // 2, (n + 1) // 2
    parts = [
        Member("equal", seed=trial.seed).build(one, shape, dtype=trial.dtype)
        for shape in ((i, j), (m - i, n - j))
    ]
    A, B = sizes[0] * parts[0], (2 * sizes[1]) * parts[1]
    total = _padded(A, (0, m - i), (0, n - j)) + _padded(B, (i, 0), (j, 0))
    expect(found.contains(total), "side_by_side() does not contain members without overlap")


def _padded(op: LowRankOperator, rows: tuple[int, int], cols: tuple[int, int]) -> LowRankOperator:
    left, right = (
        torch.nn.functional.pad(x, (0, 0, *sides))
        for x, sides in ((op.left, rows), (op.right, cols))
    )
    return LowRankOperator(left, op.scale, right)


def _bound(trial: SetTrial) -> None:
    one, shape = trial.feasible_set, trial.case.shape
    bound = one.frobenius_bound
    expect(bound >= 0, f"frobenius_bound is {bound!r}")
    norms = [float(np.linalg.norm(dense(W))) for W in _large(trial)]
    largest = max(norms)
    expect(
        largest <= bound * (1 + _ROUNDING),
        f"frobenius_bound is {bound:.9g}, and a member has the norm {largest:.9g}",
    )
    named = isinstance(one, SchattenBall | KyFanBall | SingularValueBox)
    if named and one.rank <= min(shape):
        expect(
            bound <= largest * (1 + _ROUNDING),
            f"frobenius_bound is {bound:.9g}, and the largest member has the norm {largest:.9g}",
        )


def _large(trial: SetTrial) -> Iterator[LowRankOperator]:
    """Yield large members: of every kind of values, and what an ascent of the norm leads to."""
    one, chart, shape = trial.feasible_set, trial.chart, trial.case.shape
    yield trial.member()
    if chart.turned is not None or not chart.bounded:
        return
    rows, cols = chart.pull(np.zeros(shape)).shape
    for values in boundary_values(chart, min(chart.core.rank, rows, cols)):
        k = len(values)
        W = chart.push(np.eye(rows, k) * values @ np.eye(cols, k).T)
        yield from_dense(W, one.rank, like=trial.normal(1))
    entries = [chart.push(_entry(rows, cols, i, j)) for i in range(rows) for j in range(cols)]
    W = from_dense(max(entries, key=np.linalg.norm), one.rank, like=trial.normal(1))
    for _ in range(_STEPS):
        try:
            W = one.lmo(-W)
        except (LowRankError, NotImplementedError):
            return
        if chart.excess(dense(W)) > _ROUNDING * (chart.size(dense(W)) + chart.shift):
            return
        yield W


def _entry(rows: int, cols: int, i: int, j: int) -> np.ndarray:
    return np.outer(np.eye(rows)[i], np.eye(cols)[j])


def _says(trial: SetTrial) -> None:
    one, W, chart = trial.feasible_set, trial.member(), trial.chart
    far = 1e9 * (chart.size(dense(W)) + chart.shift + 1)
    false = one.only_rank and not one.contains(far * W)
    expect(not false, "only_rank is true, and a large multiple of a member is none")
    size = one.size
    if size is not None:
        expect(0 < size < math.inf, f"size is {size!r}")
        constant = isinstance(one, SpectralSet)
        near = not constant or abs(one.unit(W) - size) <= _ROUNDING * size
        expect(near, f"size is {size:g}, and unit() is {one.unit(W):g}")
    inner, rows, cols = one.unweighted
    weights = {"rows": (rows, W.left), "columns": (cols, W.right)}
    left, right = (x if w is None else x / w.to(x).unsqueeze(-1) for w, x in weights.values())
    core = LowRankOperator(left, W.scale, right)
    expect(inner.contains(core), "unweighted: a member is none without the weights")


def _law(
    name: str,
    statement: str,
    body: Callable[[SetTrial], None],
    *,
    parameters: FreeParameters = _START,
    members: tuple[Member, ...] = _MEMBERS,
) -> Law[SetTrial]:
    def wide(trial: SetTrial) -> None:
        if trial.dtype != torch.float64:
            raise NotApplicable("made sets are compared in float64")
        body(trial)

    return Law(
        name,
        statement,
        wide,
        parameters=(parameters,),
        members=members,
        max_examples=2,
        needs=("contract", "membership"),
        trial=set_trial,
        entry="check_set",
    )


# Of rank two at least.
_TWO = FreeParameters("equal_columns")
LAWS = (
    _law(
        "multiples",
        "scaled(t) contains t W for every member W; of balls and boxes, nothing else.",
        _scaled,
        members=(Member("equal"), Member(), Member("first", 0.5)),
    ),
    _law(
        "ranks",
        "with_rank(k) contains the members of rank k, truncated(k) truncated members.",
        _ranks,
        parameters=_TWO,
    ),
    _law(
        "averages",
        "averaged() contains the weighted means of members.",
        _averages,
        parameters=_TWO,
    ),
    _law(
        "side_by_side",
        "side_by_side() contains weighted sums of members without overlap.",
        _side_by_side,
        parameters=_TWO,
    ),
    _law("frobenius", "No member has a larger Frobenius norm than frobenius_bound.", _bound),
    _law("attributes", "size, only_rank and unweighted say what is so.", _says),
)
