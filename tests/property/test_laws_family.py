"""The further parameterizations keep the laws; the exceptions are named with their reasons."""

from collections.abc import Mapping
from functools import partial

import torch

import lowrank_opt as lo
from lowrank_opt.testing import parametrize_with_checks
from tests.property.claims import UNBOUNDED, keeps, where_rounding_matters

Shape = tuple[int, int]


def signed(shape: Shape, rank: int, **options) -> lo.Contractions:
    bounds = [(-1) ** i * 2.0 / (1 + i) for i in range(rank)]
    return lo.Contractions(shape, rank, bounds=bounds, **options)


def ether(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.ETHER:
    return lo.ETHER(torch.randn(shape, dtype=dtype), blocks=rank)


def ether_plus(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.ETHERPlus:
    return lo.ETHERPlus(torch.randn(shape, dtype=dtype), blocks=rank)


def turned(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.Orthogonal:
    """Rotations within a radius, or reflections, by the rank that is asked for."""
    W0 = torch.randn(shape, dtype=dtype)
    even = min(shape) - min(shape) % 2
    return lo.hra(W0, min(even, rank)) if rank % 2 == 0 and even else lo.oft(W0, radius=1.2)


FREE_FRAMES = partial(lo.SVDFrames, frame="qr")

FAMILIES = [
    partial(lo.Contractions, radius=3.0),
    partial(lo.Contractions, radius=1.0, p=1.5),
    signed,
    partial(lo.SpectralLoRA, radius=3.0),
    partial(lo.RadialBall, radius=2.0),
    partial(lo.RadialBall, radius=2.0, norm=partial(lo.KyFanBall, 2)),
    partial(lo.SimplexRankOnes, radius=3.0),
    partial(lo.SVDFrames, frame="cayley", radius=2.0),
    partial(lo.SVDFrames, frame="polar", radius=2.0),
    FREE_FRAMES,
    lo.AdaLoRA,
    lo.DynamicRank,
    lo.VeRA,
    ether,
    ether_plus,
    turned,
]
UNCLAIMED = [
    (FREE_FRAMES, UNBOUNDED),
    (lo.AdaLoRA, UNBOUNDED),
    (lo.DynamicRank, UNBOUNDED),
    (lo.VeRA, (*UNBOUNDED, "completeness")),
    (ether, ("zero_start", "completeness")),
    (ether_plus, ("section", "completeness", "assign")),
]
WEIGHT = {"never_dense": "the map reads the base weight, which is m x n"}


def exceptions(make: object) -> Mapping[str, str]:
    return WEIGHT if make in (ether, ether_plus, turned) else {}


@parametrize_with_checks(
    FAMILIES, profile="quick", dtype=torch.float64, expected_failures=exceptions
)
def test_laws_in_float64(make, check) -> None:
    keeps(make, check, next((laws for other, laws in UNCLAIMED if other is make), ()))


@where_rounding_matters(
    parametrize_with_checks(
        FAMILIES, profile="quick", dtype=torch.float32, expected_failures=exceptions
    )
)
def test_laws_in_float32(make, check) -> None:
    keeps(make, check, next((laws for other, laws in UNCLAIMED if other is make), ()))
