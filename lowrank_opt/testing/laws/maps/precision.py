"""Dtypes and devices: what goes in comes out."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import is_finite
from lowrank_opt.testing.cases.parameters import HOSTILE, TAME
from lowrank_opt.testing.laws.maps.gradients import gradient
from lowrank_opt.testing.laws.maps.membership import membership
from lowrank_opt.testing.laws.modules.elsewhere import expect_device_independent
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect


def _dtype(subject: Subject) -> None:
    module = subject.module()
    _expect_dtype(module, subject.dtype, subject.device)
    for name, g in gradient(subject, module).items():
        expect(g.dtype == subject.dtype, f"the gradient of {name} is of {g.dtype}")
    other = _other(subject.dtype)
    _expect_dtype(module.to(dtype=other), other, subject.device)
    expect_device_independent(subject.module())


def _expect_dtype(module: Parameterization, dtype: torch.dtype, device: torch.device) -> None:
    op = module()
    for name, p in module.named_parameters():
        right = (p.dtype, p.device.type) == (dtype, device.type)
        expect(right, f"the parameter {name} is {p.dtype} on {p.device}, asked for {dtype}")
    for name, x in (("left", op.left), ("right", op.right), ("to_dense()", op.to_dense())):
        right = (x.dtype, x.device.type) == (dtype, device.type)
        expect(right, f"{name} is {x.dtype} on {x.device}, parameters are {dtype} on {device}")
    expect(is_finite(op), f"the factors are not finite in {dtype}")


def _precision(subject: Subject) -> None:
    other = _other(subject.dtype)
    if not subject.case.parameters.fits(other):
        raise NotApplicable(f"{other} does not hold numbers of this size")
    membership(replace(subject, dtype=other), f" in {other}")


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.float64


_SHOW_DTYPE = """
print("asked for:", $dtype)
print("parameters:", {name: p.dtype for name, p in W.named_parameters()})
print("factors:", [x.dtype for x in W()])
"""
check_dtype: Law[Subject] = Law(
    "dtype",
    "Factors and gradients have the dtype and device of the parameters, after conversion too.",
    _dtype,
    parameters=TAME,
    show=_SHOW_DTYPE,
    needs=("contract",),
)
check_precision: Law[Subject] = Law(
    "precision",
    "W is in the declared set in the other precision too: a bound that rounding breaks is none.",
    _precision,
    parameters=HOSTILE,
    needs=("contract", "membership", "rank"),
)
LAWS = (
    check_precision,
    check_dtype,
)
