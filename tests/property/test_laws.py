"""Every parameterization of the library keeps every law, in float64 and where rounding matters."""

from dataclasses import replace
from functools import partial

import torch

import lowrank_opt as lo
from lowrank_opt.testing import parametrize_with_checks
from tests.property.claims import PROFILES, UNBOUNDED, keeps, where_rounding_matters

Shape = tuple[int, int]


def boxed(shape: Shape, rank: int, **options) -> lo.NBLoRA:
    return lo.NBLoRA(shape, rank, bounds=[2.0 / (1 + i) for i in range(rank)], **options)


def delora_with_column_norms(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.DeLoRA:
    norms = torch.linspace(0.1, 2.0, shape[1], dtype=dtype)
    return lo.DeLoRA(shape, rank, radius=3.0, column_norms=norms, dtype=dtype)


def nested_nb_lora(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.NestedSVD:
    k, ell = ((side + rank + 1) // 2 for side in shape)
    inner = lo.NBLoRA((k, ell), rank, radius=1.5, dtype=dtype)
    return lo.NestedSVD(torch.randn(shape, dtype=torch.float64), inner)


def nested_in_factored_weight(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.NestedSVD:
    left, right = (torch.randn(side, rank, dtype=torch.float64) for side in shape)
    weight = lo.LowRankOperator(left, torch.ones(rank, dtype=torch.float64), right)
    inner = lo.HomogeneousBall((rank, rank), rank, radius=1.5, dtype=dtype)
    return lo.NestedSVD(weight, inner)


def weighted_ball(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.Weighted:
    inner = lo.HomogeneousBall(shape, rank, radius=2.0, dtype=dtype)
    rows, cols = (torch.linspace(0.2, 2.0, side, dtype=dtype) for side in shape)
    return lo.Weighted(inner, rows, cols)


def offset_ball(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.Offset:
    inner = lo.NBLoRA(shape, rank, radius=2.0, dtype=dtype)
    torch.nn.init.normal_(inner.left_rows)
    return lo.Offset(inner)


def offset_factored(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.Offset:
    inner = lo.Factored(shape, rank, dtype=dtype)
    torch.nn.init.normal_(inner.left)
    return lo.Offset(inner)


def nora(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.NestedSVD:
    weight = torch.randn(shape, dtype=dtype)
    return lo.nora(weight, rank, outer_rank=min(*shape, rank + 2))


def lora_xs(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.NestedSVD:
    return lo.lora_xs(torch.randn(shape, dtype=dtype), rank)


FAMILIES = [
    lo.Factored,
    partial(lo.NBLoRA, radius=3.0),
    partial(lo.NBLoRA, radius=1.0, skew=True),
    partial(lo.NBLoRA, radius=1.0, p=1),
    partial(lo.NBLoRA, radius=1.0, p=1.5),
    partial(lo.NBLoRA, radius=1.0, p=2),
    partial(lo.NBLoRA, radius=1e-3, p=3),
    partial(lo.NBLoRA, radius=1.0, ky_fan=2),
    boxed,
    partial(lo.HomogeneousBall, radius=400.0),
    partial(lo.HomogeneousBall, radius=1.0, p=1.5),
    partial(lo.HomogeneousBall, radius=1.0, p=2),
    partial(lo.HomogeneousBall, radius=1.0, p=3),
    partial(lo.DeLoRA, radius=2.0),
    partial(lo.DeLoRA, radius=2.0, variant="peft"),
    delora_with_column_norms,
    nested_nb_lora,
    nested_in_factored_weight,
    weighted_ball,
    offset_ball,
    offset_factored,
    nora,
    lora_xs,
]

UNCLAIMED = [
    *((make, UNBOUNDED) for make in (lo.Factored, nora, lora_xs)),
    # Factors of a difference leave the shifted set when they are rounded.
    (offset_ball, ("export",)),
    (offset_factored, (*UNBOUNDED, "export")),
]

CLAMPED = "norms clamped at 1e-4, as published: the first step of any size moves W by its radius"


def published(make: object) -> dict[str, str]:
    """Return the laws that a form breaks that is kept as others have it."""
    options = make.keywords if isinstance(make, partial) else {}
    return {"zero_start": CLAMPED} if options.get("variant") == "peft" else {}


@parametrize_with_checks(FAMILIES, dtype=torch.float64, expected_failures=published)
def test_laws_in_float64(make, check) -> None:
    check = replace(check, profile=PROFILES[check.law.name])
    keeps(make, check, next((laws for other, laws in UNCLAIMED if other is make), ()))


@where_rounding_matters(
    parametrize_with_checks(
        FAMILIES, dtype=torch.float32, profile="quick", expected_failures=published
    )
)
def test_laws_in_float32(make, check) -> None:
    keeps(make, check, next((laws for other, laws in UNCLAIMED if other is make), ()))
