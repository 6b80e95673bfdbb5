"""Derivatives: finite at every parameter, and those of the map itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import dense, magnitude, to_array
from lowrank_opt.testing.cases.parameters import ADVERSARIAL, FreeParameters
from lowrank_opt.testing.laws.maps.overflow import excuse_overflow
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect

# Of differences, relative to the parameters.
_STEP = 1e-5


_SHOW_GRADIENT = """
value = W().linear(torch.ones($n, dtype=$dtype)).sum()
print("W depends on the parameters, to autograd:", value.requires_grad)
if value.requires_grad:
    value.backward()
for name, p in W.named_parameters():
    print("gradient of", name, None if p.grad is None else p.grad.tolist())
"""
_SHOW_DIFFERENCES = """
W = W.double()
names = [name for name, p in W.named_parameters() if p.requires_grad]
values = [W.get_parameter(name) for name in names]


def dense(*parameters):
    return torch.func.functional_call(W, dict(zip(names, parameters)), ()).to_dense()


agrees = torch.autograd.gradcheck(dense, values, raise_exception=False)
print("autograd agrees with finite differences:", agrees)
"""


def _smoothness(subject: Subject) -> None:
    module = subject.module()
    gradients = gradient(subject, module)
    wild = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
    if wild:
        excuse_overflow(subject, module)
    expect(not wild, f"the gradient of {', '.join(wild)} is not finite")
    if _moderate(subject.case.parameters):
        _compare_with_differences(subject, module, gradients)


def _moderate(parameters: FreeParameters) -> bool:
    """Whether differences can measure derivatives here."""
    small = len(parameters.magnitudes) == 1 and parameters.magnitudes[0] in (1e-3, 1e2)
    zeros = set(parameters.magnitudes) == {0.0, 1.0}
    return parameters.tame or (parameters.structure == "normal" and (small or zeros))


def _may_bend(parameters: FreeParameters) -> bool:
    """Whether some parameters are zero, as in many starts: maps need not be smooth there."""
    return parameters.structure == "start" or 0.0 in parameters.magnitudes


def gradient(subject: Subject, module: Parameterization) -> dict[str, Tensor]:
    """Return the gradient of ``<C, W>`` for a random C of rank one, zero where W ignores one."""
    module.zero_grad(set_to_none=True)
    m, n = subject.case.shape
    x, y = subject.normal(n, salt=1), subject.normal(m, salt=2)
    value = (y * module().linear(x)).sum()
    expect(value.requires_grad, "W does not depend on any trainable parameter, to autograd")
    value.backward()
    trainable = {k: p for k, p in module.named_parameters() if p.requires_grad}
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in trainable.items()}


def _compare_with_differences(
    subject: Subject, module: Parameterization, gradients: dict[str, Tensor]
) -> None:
    """Compare a directional derivative with central differences of a float64 twin."""
    twin = subject.fresh(dtype=torch.float64)
    state = module.state_dict()
    twin.load_state_dict({k: v.double() if isinstance(v, Tensor) else v for k, v in state.items()})
    unit = max(subject.case.parameters.magnitudes)
    directions = {
        k: unit * subject.normal(*g.shape, salt=3 + i).double()
        for i, (k, g) in enumerate(gradients.items())
    }
    claimed = sum(float((gradients[k].double() * d).sum()) for k, d in directions.items())
    _expect_continuous(subject, twin, directions)
    wide, half = (_difference(subject, twin, directions, h) for h in (2 * _STEP, _STEP))
    measured = (4 * half - wide) / 3
    bend = 0.0
    if _may_bend(subject.case.parameters):
        bend = _bend(subject, twin, directions, half) + 8 * abs(wide - half)
    size = sum(float(gradients[k].double().norm() * d.norm()) for k, d in directions.items())
    # Differences of values lose half the digits; what halving the step changes is not converged.
    own = 64 * math.sqrt(subject.eps * torch.finfo(torch.float64).eps) + 64 * subject.eps
    allowed = (
        (own + 1e-8) * (size + abs(measured)) + abs(wide - half) + bend + _noise(subject, twin)
    )
    expect(
        abs(claimed - measured) <= allowed,
        f"the directional derivative is {measured:.9g}; autograd says {claimed:.9g}",
        _SHOW_DIFFERENCES,
    )


def _noise(subject: Subject, twin: Parameterization) -> float:
    """Return what rounding of the values adds to their differences."""
    m, n = subject.case.shape
    x, y = to_array(subject.normal(n, salt=1)), to_array(subject.normal(m, salt=2))
    terms = float(abs(y) @ magnitude(twin().detach()) @ abs(x))
    return 16 * torch.finfo(torch.float64).eps * terms / _STEP


def _difference(
    subject: Subject, twin: Parameterization, directions: dict[str, Tensor], h: float
) -> float:
    up, down = (_value(subject, twin, directions, step) for step in (h, -h))
    return (up - down) / (2 * h)


def _value(
    subject: Subject, twin: Parameterization, directions: dict[str, Tensor], h: float
) -> float:
    """Return ``<C, W>`` at parameters moved by h along a direction, and move them back."""
    m, n = subject.case.shape
    x, y = to_array(subject.normal(n, salt=1)), to_array(subject.normal(m, salt=2))
    start = {k: twin.get_parameter(k).detach().clone() for k in directions}
    with torch.no_grad():
        for k, d in directions.items():
            twin.get_parameter(k).add_(h * d)
        value = float(y @ dense(twin()) @ x)
        for k, kept in start.items():
            twin.get_parameter(k).copy_(kept)
    return value


def _bend(
    subject: Subject, twin: Parameterization, directions: dict[str, Tensor], slope: float
) -> float:
    """Return by how much slopes miss being those of a derivative: at zero, maps may have none.

    The slopes of both sides are compared, and those of two directions with that of their sum.
    """
    up, here, down = (_value(subject, twin, directions, h) for h in (_STEP, 0.0, -_STEP))
    other = _other(subject, directions)
    both = {k: d + other[k] for k, d in directions.items()}
    alone, added = (_difference(subject, twin, d, _STEP) for d in (other, both))
    return abs(up - 2 * here + down) / _STEP + 8 * abs(slope + alone - added)


def _other(subject: Subject, directions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return another direction of the same size."""
    unit = max(subject.case.parameters.magnitudes)
    return {
        k: unit * subject.normal(*d.shape, salt=40 + i).double()
        for i, (k, d) in enumerate(directions.items())
    }


def _expect_continuous(
    subject: Subject, twin: Parameterization, directions: dict[str, Tensor]
) -> None:
    """Expect W to be what it tends to, if that is the same from wherever it is come from."""
    # The direction of a single number is its sign, which a map may well ignore.
    if any(d.numel() < 2 and not twin.get_parameter(k).any() for k, d in directions.items()):
        return
    other = _other(subject, directions)
    h = 1e-3 * _STEP
    near = [_value(subject, twin, d, step) for d in (directions, other) for step in (h, -h, h / 2)]
    here, spread = _value(subject, twin, directions, 0.0), max(near) - min(near)
    jump = min(abs(here - value) for value in near)
    expect(
        jump <= 64 * spread + _STEP * _noise(subject, twin),
        f"<C, W> is {here:.9g}, and {near[0]:.9g} at parameters next to these, from all sides",
    )


check_smoothness: Law[Subject] = Law(
    "smoothness",
    "Gradients are finite at every finite parameter, and equal finite differences where tame; "
    "at zero W is what it tends to.",
    _smoothness,
    parameters=ADVERSARIAL,
    free=True,
    show=_SHOW_GRADIENT,
    needs=("contract",),
)
LAWS = (check_smoothness,)
