"""Every parameterization keeps every law, in float64 and where rounding matters.

The table of methods says what is tried: a class is here once it has `examples()`. Forms that have
no line there follow, and what is not claimed is named: a law neither skips nor slips in.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.testing import LAWS, parametrize_with_checks
from lowrank_opt.testing.search.describe import describe
from lowrank_opt.testing.subjects.library import library
from lowrank_opt.testing.subjects.targets import Target
from tests.property.claims import PROFILES, UNBOUNDED, keeps, where_rounding_matters

Shape = tuple[int, int]


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


def offset_ball(shape: Shape, rank: int, *, dtype: torch.dtype) -> lo.Offset:
    inner = lo.NBLoRA(shape, rank, radius=2.0, dtype=dtype)
    torch.nn.init.normal_(inner.left_rows)
    return lo.Offset(inner)


FORMS = [
    partial(lo.NBLoRA, radius=1.0, p=1),
    partial(lo.NBLoRA, radius=1.0, p=1.5),
    partial(lo.NBLoRA, radius=1.0, p=2),
    partial(lo.NBLoRA, radius=1e-3, p=3),
    partial(lo.HomogeneousBall, radius=400.0),
    partial(lo.HomogeneousBall, radius=1.0, p=1.5),
    partial(lo.HomogeneousBall, radius=1.0, p=2),
    partial(lo.Contractions, radius=1.0, p=1.5),
    delora_with_column_norms,
    nested_nb_lora,
    nested_in_factored_weight,
    offset_ball,
    partial(lo.SVDFrames, frame="qr"),
]

# Laws about abilities that are not claimed; those that are known not to hold are the library's.
UNCLAIMED: Mapping[str, tuple[str, ...]] = {
    "DeLoRA(radius, 'paper')": ("section", "completeness", "assign"),
    "DeLoRA(radius, 'author')": (*UNBOUNDED, "section", "completeness", "assign"),
    "SVDFrames": UNBOUNDED,
    "AdaLoRA": UNBOUNDED,
    "DynamicRank": UNBOUNDED,
    "Factored": UNBOUNDED,
    "NormalizedLoRA": (*UNBOUNDED, "completeness", "assign"),
    "VeRA": (*UNBOUNDED, "completeness"),
    "ETHER(weight, blocks=r)": ("zero_start", "completeness"),
    "ETHERPlus(weight, blocks=r)": ("section", "completeness", "assign"),
    "ETHERPlus(weight, one side)": ("section", "completeness", "assign"),
    "ScaledRotation(weight, rank)": (*UNBOUNDED, "section", "completeness", "assign"),
    # Factors of a difference leave the shifted set when they are rounded.
    "Offset(inner)": ("export",),
    "offset_ball": ("export",),
    "pissa": (*UNBOUNDED, "export"),
    "olora": (*UNBOUNDED, "export"),
    "nora": UNBOUNDED,
    "lora_xs": UNBOUNDED,
    "stella": UNBOUNDED,
    "rslora": UNBOUNDED,
    "oft(weight, blocks)": ("completeness",),
    "psoft(weight, 2 r)": ("completeness",),
    "SVDFrames(frame='qr')": UNBOUNDED,
}

TABLE = library(unlisted=True)
SUBJECTS = [*TABLE, *(Target(describe(make), make) for make in FORMS)]
# Rounding is tried on the lines of the table and on what is nowhere else.
ROUNDED = [subject for subject in SUBJECTS if subject.listed or subject not in TABLE]


# Known to be broken where columns depend on each other: by no case of the profile here.
MET_DEEPER = {"smoothness"}


def asked(
    subjects: list[Target], *, leaving_out=lambda subject, check: False, **options
) -> pytest.MarkDecorator:
    """Return the mark that asks each subject for each law that is not known to be broken."""
    _names, cases = parametrize_with_checks([s.make for s in subjects], **options).mark.args
    each = [subject for subject in subjects for _ in LAWS]
    kept = [
        pytest.param(subject, case.values[1], id=f"{subject.name}-{case.values[1].law.name}")
        for subject, case in zip(each, cases, strict=True)
        if case.values[1].law.name not in subject.known.keys() - MET_DEEPER
        and not leaving_out(subject, case.values[1])
    ]
    return pytest.mark.parametrize(("subject", "check"), kept)


def twice(subject: Target, check) -> bool:
    """Whether membership in float32, with more parameters, asks what this law asks once more."""
    return check.law.name == "precision" and subject in ROUNDED


@asked(SUBJECTS, leaving_out=twice, dtype=torch.float64)
def test_laws_in_float64(subject, check) -> None:
    check = replace(check, profile=PROFILES[check.law.name])
    keeps(subject.make, check, UNCLAIMED.get(subject.name, ()))


@where_rounding_matters(asked(ROUNDED, dtype=torch.float32, profile="quick"))
def test_laws_in_float32(subject, check) -> None:
    keeps(subject.make, check, UNCLAIMED.get(subject.name, ()))


def test_exceptions_about_cost_are_real() -> None:
    """The other known exceptions are met in few cases; these at every shape that is large."""
    law = next(law for law in LAWS if law.name == "never_dense")
    dense = [subject for subject in TABLE if law.name in subject.known]
    assert len(dense) >= 5
    assert {law.verdict(s.make, profile="quick").status for s in dense} == {"failed"}


def test_names_of_what_is_not_claimed_are_those_of_subjects() -> None:
    assert UNCLAIMED.keys() <= {subject.name for subject in SUBJECTS}
