"""The zero start: W = 0 in every entry, and a gradient that does not vanish."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import dense, to_array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.maps.gradients import gradient
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Steps from the start, relative to its largest parameter, and by how much W may grow early.
_SHORT, _LONG = 1e-4, 1e-2
_JUMP = 0.3


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
    _expect_no_jump(subject, module)


def _expect_no_jump(subject: Subject, module: Parameterization) -> None:
    """Expect W to grow with the step: a clamped division gives all of W to the smallest one."""
    start = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}
    unit = float(max((p.abs().max() for p in start.values() if p.numel()), default=0.0)) or 1.0
    directions = {
        k: subject.normal(*p.shape, salt=30 + i) for i, (k, p) in enumerate(start.items())
    }
    sizes: list[float] = []
    for step in (_SHORT, _LONG):
        with torch.no_grad():
            for k, d in directions.items():
                module.get_parameter(k).copy_(start[k] + step * unit * d)
        sizes.append(float(np.linalg.norm(dense(module.factors()))))
    short, long = sizes
    expect(
        short <= _JUMP * long or long == 0,
        f"zero_() is next to a jump: a step of {_SHORT:g} gives |W| = {short:.3g}, one of "
        f"{_LONG:g} gives {long:.3g}: every learning rate leaves the start at once",
    )


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


_SHOW = """
W.zero_(generator=torch.Generator().manual_seed($seed))
op = W()
print("W after zero_():", op.to_dense().tolist())
op.linear(torch.ones($n, dtype=$dtype)).sum().backward()
for name, p in W.named_parameters():
    print("gradient of", name, None if p.grad is None else p.grad.tolist())
"""
check_zero_start: Law[Subject] = Law(
    "zero_start",
    "zero_() gives W = 0 exactly in every entry, a gradient that is finite and not zero, no jump.",
    _zero_start,
    parameters=(
        FreeParameters("start"),
        FreeParameters("normal"),
        FreeParameters("normal", (1e4,)),
        FreeParameters("parallel"),
    ),
    show=_SHOW,
    needs=("contract", "agreement", "smoothness"),
)
LAWS = (check_zero_start,)
