"""The zero start: W = 0 in every entry, and a gradient that does not vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.case import Subject
from lowrank_opt.testing.law import Law
from lowrank_opt.testing.laws.gradients import gradient
from lowrank_opt.testing.oracle import to_array
from lowrank_opt.testing.parameters import FreeParameters
from lowrank_opt.testing.verdict import NotApplicable, expect


def _zero_start(subject: Subject) -> None:
    module = subject.module()
    try:
        module.zero_(generator=torch.Generator(subject.device).manual_seed(subject.seed))
    except NotImplementedError as reason:
        raise NotApplicable(f"no zero start: {reason}") from None
    for name, values in _views(subject, module).items():
        peak = float(abs(to_array(values)).max(initial=0.0))
        expect(peak == 0, f"after zero_() the largest entry of {name} is {peak:.2e}, not 0")
    gradients = gradient(subject, module)
    for name, g in gradients.items():
        expect(bool(torch.isfinite(g).all()), f"after zero_() the gradient of {name} is not finite")
    moving = any(bool(g.any()) for g in gradients.values())
    expect(moving, "after zero_() the gradient is zero: training cannot leave the start")


def _views(subject: Subject, module: Parameterization) -> dict[str, Tensor]:
    m, n = subject.case.shape
    with torch.no_grad():
        op = module()
    rows = torch.arange(m, device=subject.device).repeat_interleave(n)
    cols = torch.arange(n, device=subject.device).repeat(m)
    return {
        "to_dense()": op.to_dense(),
        "linear(x)": op.linear(subject.normal(3, n)),
        "W @ x": op @ subject.normal(n),
        "W.mT @ y": op.mT @ subject.normal(m),
        "entries(rows, cols)": op.entries(rows, cols),
    }


check_zero_start = Law(
    "zero_start",
    "zero_() gives W = 0 exactly in every entry, with a gradient that is finite and not zero.",
    _zero_start,
    parameters=(
        FreeParameters("start"),
        FreeParameters("normal"),
        FreeParameters("normal", (1e4,)),
        FreeParameters("parallel"),
    ),
)
