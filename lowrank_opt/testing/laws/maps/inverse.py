"""The right inverse: a section of the map, onto the whole set where completeness is claimed."""

from __future__ import annotations

import copy

import numpy as np
import torch

from lowrank_opt.errors import NoRightInverseError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.members import MEMBERS
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, underflow
from lowrank_opt.testing.cases.parameters import MODERATE, FreeParameters
from lowrank_opt.testing.laws.maps.reach import expect_reachable
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Units of rounding, times the root of the number of parameters, that map and inverse may add.
_ROUNDINGS = 64


def _section(subject: Subject) -> None:
    module = subject.module()
    op = module.factors().detach()
    W = dense(op)
    values = right_inverse(subject.fresh(), op)
    _check_inverse(subject, op, W, values, allowed=float(np.linalg.norm(magnitude(op))))


def _completeness(subject: Subject) -> None:
    module = subject.fresh()
    if not module.complete:
        raise NotApplicable("complete is False: not every member of the set is claimed")
    # Away from a start, which may be at the target already.
    FreeParameters(seed=subject.seed + 1).fill_(module)
    target = subject.target(module)
    state = copy.deepcopy(module.state_dict())
    # The inverse may not write to its argument: the truth is taken first.
    W = dense(target)
    try:
        values = module.right_inverse(target)
    except NoRightInverseError:
        expect_reachable(subject, target)
    else:
        _check_inverse(subject, target, W, values, allowed=0.0, state=state)


def _check_inverse(
    subject: Subject,
    target: LowRankOperator,
    W: Array,
    values: dict[str, torch.Tensor],
    *,
    allowed: float,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Compare the image of the values that an inverse found with the member W."""
    # Another module receives the values: nothing but them may carry the target.
    other = subject.fresh()
    if state is not None:
        other.load_state_dict(state)
    load(other, values)
    chart, op = subject.chart(other), other.factors()
    image = dense(op)
    error = float(np.linalg.norm(image - W))
    size = max(chart.size(W) * chart.gain, allowed)
    count = (sum(subject.case.shape) * subject.case.rank) ** 0.5
    tolerance = _ROUNDINGS * subject.eps * count * size + underflow(target) + underflow(op)
    # Below, W has no digits in this dtype.
    tolerance += torch.finfo(subject.dtype).smallest_normal * count
    expect(
        error <= tolerance,
        f"the map returns from right_inverse(W) with an error of {error:.2e}; rounding explains "
        f"{tolerance:.1e}, |W| is {float(np.linalg.norm(W)):.2e}",
    )


def right_inverse(module: Parameterization, target: LowRankOperator) -> dict[str, torch.Tensor]:
    """Return the right inverse at a target, or say that the law does not apply."""
    try:
        return module.right_inverse(target)
    except NoRightInverseError as reason:
        raise NotApplicable(f"no right inverse: {reason}") from None


def load(module: Parameterization, values: dict[str, torch.Tensor]) -> None:
    """Write values into the parameters and buffers of their names, as `assign` does."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    unknown = sorted(set(values) - set(own))
    expect(not unknown, f"right_inverse names {unknown}, which are no parameters of the module")
    with torch.no_grad():
        for name, value in values.items():
            same = own[name].shape == value.shape
            expect(same, f"right_inverse gives {name} the shape {tuple(value.shape)}")
            finite = bool(torch.isfinite(value).all())
            expect(finite, f"right_inverse gives {name} values that are not finite")
            own[name].copy_(value)


_SHOW_SECTION = """
target = W.factors().detach()
image = $fresh
image.load_state_dict(W.right_inverse(target), strict=False)
print("W:       ", target.to_dense().tolist())
print("F(G(W)): ", image.factors().to_dense().tolist())
"""
_SHOW_COMPLETENESS = """
target = case.target.build(W.feasible_set, ($m, $n), dtype=$dtype)
image = $fresh
image.load_state_dict(W.right_inverse(target), strict=False)
print("W:       ", target.to_dense().tolist())
print("F(G(W)): ", image.factors().to_dense().tolist())
"""
check_section: Law[Subject] = Law(
    "section",
    "F(G(F(theta))) = F(theta): the right inverse G finds parameters for what the map F makes.",
    _section,
    parameters=(
        *MODERATE,
        *(FreeParameters("normal", (s,)) for s in (1e-30, 1e-160, 1e8)),
        FreeParameters("zero_columns"),
        FreeParameters("normal", (0.0, 1.0)),
        FreeParameters("antiparallel"),
        FreeParameters("equal_columns"),
        FreeParameters("permutation"),
        FreeParameters("signs"),
    ),
    show=_SHOW_SECTION,
    needs=("contract", "membership", "purity"),
)
check_completeness: Law[Subject] = Law(
    "completeness",
    "F(G(W)) = W for every member W of the set: boundary, zero, repeated values, lower rank. "
    "Without a right inverse G, an optimizer must come near W.",
    _completeness,
    parameters=(FreeParameters("start"),),
    members=MEMBERS,
    free=True,
    show=_SHOW_COMPLETENESS,
    needs=("contract", "membership", "section"),
)
LAWS = (
    check_section,
    check_completeness,
)
