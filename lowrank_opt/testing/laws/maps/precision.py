"""Dtypes and devices: what goes in comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from lowrank_opt.errors import LowRankError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import HasTolerance, Subject
from lowrank_opt.testing.cases.oracle import dense, is_finite, magnitude
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
    if subject.case.parameters.structure == "normal":
        # Half precision is nothing that other packages promise.
        half = () if isinstance(subject.make, HasTolerance) else (torch.bfloat16, torch.float16)
        for dtype in (torch.float32, *half):
            _expect_alike(subject, dtype)


def _expect_alike(subject: Subject, dtype: torch.dtype) -> None:
    """Expect W in a dtype to be that of the same parameters in float64, up to its rounding."""
    module = subject.module().to(dtype=dtype)
    try:
        op = module()
    except (LowRankError, NotImplementedError, RuntimeError):
        # Not every operation knows half precision.
        if dtype == torch.float32:
            raise
        return
    twin = replace(subject, dtype=torch.float64).fresh()
    twin.load_state_dict(
        {k: x.double() if _floats(x) else x for k, x in module.state_dict().items()}
    )
    eps, truth = torch.finfo(dtype).eps, twin()
    # What is a difference, as W beside an offset, is rounded as what it is made of.
    size = float(magnitude(op).max(initial=0.0)) + module.feasible_set.unit(op.detach())
    error = float(abs(dense(op) - dense(truth)).max(initial=0.0))
    own = eps**0.5 if isinstance(subject.make, HasTolerance) else 4 * eps
    allowed = own * max(subject.case.rank, 1) ** 0.5 * size
    expect(error <= allowed, f"W in {dtype} differs by {error:.2e} from W in float64")
    if dtype != torch.float32:
        return
    narrow, wide = (
        gradient(replace(subject, dtype=x), m) for x, m in ((dtype, module), (truth.dtype, twin))
    )
    for name, g in wide.items():
        error, norm = float((narrow[name].double() - g).norm()), float(g.norm())
        # Of a condition of a thousand: a wrong formula differs by more.
        allowed = (2.0**12 * eps + own) * (norm + size)
        expect(error <= allowed, f"the gradient of {name} in {dtype} is off by {error:.2e}")


def _floats(x: object) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.is_floating_point()


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
    "Factors and gradients have the dtype and device of the parameters, after conversion too, "
    "and are those of float64 up to rounding.",
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
