"""Samples: members of every kind, the same ones for the same generator."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.oracle import dense, is_finite, singular_values, to_array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.sets import SetTrial, set_trial
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

_SAMPLES, _ROW = 8, 8
# Enough that a kind which has one sample in three is missed once in a million.
_MANY = 34
# Next to the boundary, or to a lower rank, relative to the set's size.
_NEXT = 1e-6


def _samples(trial: SetTrial) -> None:
    torch.rand(())  # A state that no seed leads to.
    chart, state = trial.chart, torch.get_rng_state()
    first = [trial.sample(i) for i in range(_SAMPLES)]
    again = [trial.sample(i) for i in range(_SAMPLES)]
    expect(torch.equal(state, torch.get_rng_state()), "sample() draws from the global generator")
    for op, twin in zip(first, again, strict=True):
        expect(is_finite(op), "a sample is not finite")
        excess = chart.excess(dense(op))
        allowed = chart.tolerance(dense(op), trial.dtype, trial.feasible_set.rank)
        expect(excess <= allowed, f"a sample leaves the set by {excess:.2e}")
        expect(trial.feasible_set.contains(op), "the set does not contain a sample")
        same = all(torch.equal(x, y) for x, y in zip(op, twin, strict=True))
        expect(same, "sample() gives other members for the same generator")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(trial.seed)
        op = trial.feasible_set.sample(trial.case.shape, generator=generator, dtype=dtype)
        expect(op.dtype == dtype, f"a sample in {dtype} is of {op.dtype}")
        expect(trial.feasible_set.contains(op), f"the set does not contain a sample in {dtype}")
    sizes = {round(float(np.linalg.norm(dense(op))), 12) for op in first}
    expect(len(sizes) > 1, "sample() gives one member only")
    seed = 100 * trial.seed
    generator = torch.Generator().manual_seed(seed)
    # A boundary of few points may be met twice.
    row = [_drawn(trial, generator) for _ in range(_ROW)]
    expect(generator.initial_seed() == seed, "sample() seeds the generator that it is given")
    same = all(torch.equal(x, y) for op in row[1:] for x, y in zip(row[0], op, strict=True))
    expect(not same, f"{_ROW} samples in a row from one generator are the same")


def _drawn(trial: SetTrial, generator: torch.Generator) -> LowRankOperator:
    return trial.feasible_set.sample(trial.case.shape, generator=generator, dtype=trial.dtype)


def _kinds(trial: SetTrial) -> None:
    chart = trial.chart
    found = [chart.pull(dense(trial.sample(i))) for i in range(_MANY)]
    rank = min(chart.core.rank, *found[0].shape)
    ranks = [_rank(W) for W in found]
    expect(max(ranks) == rank, f"of {_MANY} samples none has the rank {rank} of the set")
    expect(min(ranks) < rank, f"of {_MANY} samples none has a rank below {rank}")
    full = [W for W, r in zip(found, ranks, strict=True) if r == rank]
    # What turns keeps the left singular vectors of a weight of two columns.
    if len(full) > 1 and chart.turned is None:
        _expect_turned("left", full[0], full[1], rank)
        _expect_turned("right", full[0].T, full[1].T, rank)
    if not chart.bounded or (chart.turned is not None and chart.turned.radius == 2):
        # Rotations of any angle have no boundary.
        return
    outer = [chart.leaves(W, _NEXT) for W in found]
    expect(any(outer), f"of {_MANY} samples none is on the boundary")
    expect(not all(outer), f"of {_MANY} samples none is inside the boundary")


def _expect_turned(side: str, one: np.ndarray, other: np.ndarray, rank: int) -> None:
    """Expect two samples of a rank to have other singular vectors, and other spaces of them."""
    if len(one) < 2:
        return
    frames = [np.linalg.svd(W)[0] for W in (one, other)]
    first = abs(float(frames[0][:, 0] @ frames[1][:, 0]))
    expect(first < 1 - _NEXT, f"two samples have the same {side} singular vectors")
    if rank < len(one):
        angles = np.linalg.svd(frames[0][:, :rank].T @ frames[1][:, :rank])[1]
        expect(angles[-1] < 1 - _NEXT, f"two samples have one {side} singular space")


def _rank(W: np.ndarray) -> int:
    values = singular_values(W)
    return int((values > 1e-10 * values[0]).sum()) if values[0] > 0 else 0


def _below_samples(trial: SetTrial) -> None:
    m, n = trial.case.shape
    if trial.chart.turned is not None and not trial.chart.turned.exact:
        raise NotApplicable("lmo promises a local optimum")
    G = trial.normal(m, n, salt=40)
    try:
        best = trial.feasible_set.lmo(G)
        at_zero = trial.feasible_set.lmo(torch.zeros_like(G))
    except LowRankError as reason:
        raise NotApplicable(str(reason)) from None
    expect(is_finite(at_zero), "lmo(0) is not finite")
    expect(trial.feasible_set.contains(at_zero), "the set does not contain lmo(0)")
    value = float((to_array(G) * dense(best)).sum())
    for i in range(_SAMPLES):
        W = dense(trial.sample(i))
        other, size = float((to_array(G) * W).sum()), float(np.linalg.norm(W))
        slack = 64 * trial.eps * (size + float(np.linalg.norm(dense(best)))) * float(G.norm())
        expect(value <= other + slack, f"lmo reaches {value:.9g}, but a sample has {other:.9g}")


_START = (FreeParameters("start"),)
LAWS = (
    Law(
        "samples",
        "sample() gives members, several, and the same ones for the same generator.",
        _samples,
        parameters=_START,
        needs=("contract",),
        trial=set_trial,
        entry="check_set",
    ),
    Law(
        "kinds",
        "sample() gives members of full and of lower rank, on the boundary and inside.",
        _kinds,
        parameters=_START,
        sides=(3, 7),
        max_examples=2,
        needs=("contract", "samples"),
        trial=set_trial,
        entry="check_set",
    ),
    Law(
        "lmo_samples",
        "No sample has a smaller inner product with G than lmo(G); lmo(0) is a member.",
        _below_samples,
        parameters=_START,
        needs=("contract", "samples"),
        trial=set_trial,
        entry="check_set",
    ),
)
