"""Hypothesis strategies: shapes and ranks, parameters, operators, sets, members, observations.

What they draw is small words, sizes and seeds, so that shrinking leads to small shapes, simple
structures and seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from hypothesis import strategies as st

from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    RankAtMost,
    SchattenBall,
    SingularValueBox,
    SpectralSet,
)
from lowrank_opt.testing.cases.members import FRAMES, VALUES, Member
from lowrank_opt.testing.cases.parameters import STRUCTURES, FreeParameters

# From simple to hostile; sizes that a dtype cannot hold are left out.
SIZES = (1.0, 1e2, 1e4, 1e-3, 1e-8, 1e8, 1e30, 1e-30, 1e-40, 1e-160, 1e150, 1e300, 1e-310, 5e-324)


# Hypothesis mixes constants of the caller's own modules into the integers it draws, so that the
# same seed draws otherwise after an edit. No program has constants beyond this one.
_FAR = 7_310_000_000_000

T = TypeVar("T")


@lru_cache(maxsize=1024)  # Hypothesis validates each new strategy: that takes longer than a draw.
def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Return a strategy of integers that depends on nothing but the seed; shrinks to `low`."""
    return st.integers(_FAR + low, _FAR + high).map(lambda x: x - _FAR)


def choices(values: Sequence[T]) -> st.SearchStrategy[T]:
    """Return a strategy of one of `values`, as `integers`; shrinks to the first."""
    return integers(0, len(values) - 1).map(lambda i: values[i])


def seeds() -> st.SearchStrategy[int]:
    """Return a strategy of seeds, which shrinks to 0."""
    return integers(0, 9999)


@st.composite
def shapes_and_ranks(
    draw: st.DrawFn,
    *,
    min_side: int = 1,
    max_side: int = 8,
    min_rank: int = 1,
    max_rank: int | None = None,
) -> tuple[tuple[int, int], int]:
    """Return a strategy of ``((m, n), rank)`` with min_rank <= rank <= min(m, n).

    Parameters
    ----------
    min_side, max_side : int
        Bounds on m and n.
    min_rank : int
        Shrinks to this; sides are at least as large.
    max_rank : int, optional
        A further bound on the rank.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(shapes_and_ranks(), lambda drawn: drawn[1] == 2)
    ((2, 2), 2)
    """
    low = max(min_side, min_rank)
    m, n = draw(integers(low, max_side)), draw(integers(low, max_side))
    limit = min(m, n) if max_rank is None else min(m, n, max_rank)
    return (m, n), draw(integers(min_rank, limit))


def free_parameters(*, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[FreeParameters]:
    """Return a strategy of values for free parameters, tame and hostile.

    Zero, denormal, 1e-160, 1e-30, 1 .. 1e4, 1e8, 1e30 and beyond; parallel and nearly parallel
    columns; mixed magnitudes within and between parameters.

    Parameters
    ----------
    dtype : torch.dtype
        Sizes that it cannot hold are left out.
    """
    sizes = [size for size in SIZES if FreeParameters("normal", (size,)).fits(dtype)]
    return st.builds(
        FreeParameters,
        structure=choices(STRUCTURES),
        magnitudes=st.lists(choices(sizes), min_size=1, max_size=3).map(tuple),
        seed=seeds(),
    )


@st.composite
def operators(
    draw: st.DrawFn,
    *,
    shape: tuple[int, int] | None = None,
    rank: int | None = None,
    max_side: int = 8,
    dtype: torch.dtype = torch.float64,
) -> LowRankOperator:
    """Return a strategy of factor triples: orthonormal or not, tiny, huge, rank-deficient.

    Parameters
    ----------
    shape, rank : optional
        Fixed ones; drawn by default.
    max_side : int
        Bound on drawn sides.
    dtype : torch.dtype
    """
    drawn_shape, drawn_rank = draw(shapes_and_ranks(max_side=max_side))
    m, n = drawn_shape if shape is None else shape
    r = min(drawn_rank, m, n) if rank is None else rank
    values = draw(free_parameters(dtype=dtype).filter(lambda p: p.structure != "start"))
    left, scale, right = (
        values.tensor(sizes, dtype=dtype, index=i) for i, sizes in enumerate([(m, r), (r,), (n, r)])
    )
    return LowRankOperator(left, scale, right)


@st.composite
def feasible_sets(draw: st.DrawFn, *, rank: int | None = None) -> SpectralSet:
    """Return a strategy of spectral sets of this package, radii from 1e-6 to 1e6."""
    r = draw(integers(1, 5)) if rank is None else rank
    radius = draw(choices((1.0, 3.0, 1e-6, 1e6)))
    kind = draw(choices(("schatten", "ky_fan", "box", "rank")))
    if kind == "schatten":
        return SchattenBall(draw(choices((1.0, 2.0, math.inf, 1.5, 3.0))), radius, r)
    if kind == "ky_fan":
        return KyFanBall(draw(integers(1, r)), radius, r)
    if kind == "box":
        return SingularValueBox([radius / (1 + i) for i in range(r)])
    return RankAtMost(r)


def members(
    feasible_set: FeasibleSet, shape: tuple[int, int], *, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[LowRankOperator]:
    """Return a strategy of members of a set, of this package or derived from `SpectralSet`.

    On the boundary and inside, zero, tiny, rank-deficient, with repeated singular values, with
    singular vectors at random or along the axes.
    """
    return targets().map(lambda member: member.build(feasible_set, shape, dtype=dtype))


def targets() -> st.SearchStrategy[Member]:
    """Return a strategy of names of members, from which `Member.build` makes operators."""
    return st.builds(
        Member,
        values=choices(VALUES),
        size=choices((1.0, 0.5, 0.0, 0.999999, 1e-3, 1e-8, 1e-30)),
        frames=choices(FRAMES),
        seed=seeds(),
    )


@st.composite
def observations(
    draw: st.DrawFn, *, max_side: int = 8, dtype: torch.dtype = torch.float64
) -> Observations:
    """Return a strategy of observed entries: one or many, rows and columns without any."""
    shape, _ = draw(shapes_and_ranks(max_side=max_side))
    m, n = shape
    generator = torch.Generator().manual_seed(draw(seeds()))
    count = draw(integers(1, m * n))
    places = torch.randperm(m * n, generator=generator)[:count]
    values = replace(draw(free_parameters(dtype=dtype)), structure="normal", magnitudes=(1.0,))
    return Observations(places // n, places % n, values.tensor((count,), dtype=dtype), shape)
