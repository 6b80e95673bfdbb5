"""Forward mode and second derivatives: those of the map, or an error; never another number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.modules.generators import trainable
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Of differences, relative to the parameters: of values, and of gradients.
_STEP = 1e-4
_ALLOWED = 1e-5

Parameters = dict[str, Tensor]
Scalar = Callable[[Parameters], Tensor]


def _derivatives(subject: Subject) -> None:
    # Differences of float64: the map is the same in the other dtypes, its digits are fewer.
    module, f = _function(subject)
    start = {k: p.detach().clone() for k, p in trainable(module).items()}
    direction = {
        k: subject.normal(*p.shape, salt=70 + i).double() for i, (k, p) in enumerate(start.items())
    }
    given, rounding = 0, _rounding(subject, module)
    for order, truth, ways in (
        (1, lambda p: f(p), _first(f, direction)),
        (2, lambda p: _along(grad(f)(p), direction), _second(f, direction)),
    ):
        wide, half = (_difference(truth, start, direction, h) for h in (2 * _STEP, _STEP))
        measured = (4 * half - wide) / 3
        for name, way in ways:
            try:
                # Torch compiles rules of forward mode by a way that it calls deprecated.
                with warnings.catch_warnings(action="ignore"):
                    found = float(way(start))
            except Exception:
                continue
            given += 1
            allowed = _ALLOWED * (abs(measured) + _size(f, start, direction)) + abs(wide - half)
            allowed += rounding * _turns(start, direction) ** order
            expect(
                abs(found - measured) <= allowed,
                f"{name} gives {found:.9g} for a derivative of order {order} that is "
                f"{measured:.9g}",
            )
    if not given:
        raise NotApplicable("torch.func cannot follow this map")


@torch.no_grad()
def _rounding(subject: Subject, module: Parameterization) -> float:
    """Return what rounding may leave where terms of the function cancel."""
    (left, scale, right), (m, n) = module(), subject.case.shape
    terms = float((left.norm(dim=0) * scale.abs() * right.norm(dim=0)).sum())
    return 16 * torch.finfo(torch.float64).eps * math.sqrt(m * n) * terms


def _turns(p: Parameters, d: Parameters) -> float:
    """Return how far a direction turns the parameters, at most a hundred times their length."""
    sizes = {k: float(x.norm()) for k, x in p.items()}
    return 1 + min(100.0, max([float(d[k].norm()) / s for k, s in sizes.items() if s], default=0.0))


def _function(subject: Subject) -> tuple[Parameterization, Scalar]:
    """Return the module in float64, and ``<C, W>`` for a C of rank one as its function."""
    module = subject.fresh(dtype=torch.float64)
    subject.case.parameters.fill_(module)
    m, n = subject.case.shape
    x, y = (subject.normal(k, salt=80 + k).double() for k in (n, m))

    def f(parameters: Parameters) -> Tensor:
        op: LowRankOperator = functional_call(module, parameters, ())
        return (y * op.linear(x)).sum()

    return module, f


def _first(f: Scalar, d: Parameters) -> Iterator[tuple[str, Scalar]]:
    yield "jvp", lambda p: jvp(f, (p,), (d,))[1]
    yield "vjp", lambda p: _along(vjp(f, p)[1](torch.ones((), dtype=torch.float64))[0], d)


def _second(f: Scalar, d: Parameters) -> Iterator[tuple[str, Scalar]]:
    yield "jvp of a gradient", lambda p: _along(jvp(grad(f), (p,), (d,))[1], d)
    yield "the gradient of a jvp", lambda p: _along(grad(lambda q: jvp(f, (q,), (d,))[1])(p), d)
    yield (
        "the gradient of a gradient",
        lambda p: _along(grad(lambda q: _along(grad(f)(q), d))(p), d),
    )
    yield "jvp of a jvp", lambda p: jvp(lambda q: jvp(f, (q,), (d,))[1], (p,), (d,))[1]
    yield "a second backward pass", lambda p: _by_autograd(f, p, d)


def _by_autograd(f: Scalar, p: Parameters, d: Parameters) -> Tensor:
    leaves = {k: x.clone().requires_grad_() for k, x in p.items()}
    first = torch.autograd.grad(f(leaves), list(leaves.values()), create_graph=True)
    slope = _along(dict(zip(leaves, first, strict=True)), d)
    second = torch.autograd.grad(slope, list(leaves.values()))
    return _along(dict(zip(leaves, second, strict=True)), d)


def _along(gradient: Parameters, direction: Parameters) -> Tensor:
    return torch.stack([(gradient[k] * x).sum() for k, x in direction.items()]).sum()


@torch.no_grad()
def _size(f: Scalar, p: Parameters, d: Parameters) -> float:
    """Return the size of the terms of a derivative along a direction."""
    g = grad(f)(p)
    return sum(float(g[k].norm() * x.norm()) for k, x in d.items())


def _difference(f: Scalar, p: Parameters, d: Parameters, h: float) -> float:
    up, down = ({k: x + s * h * d[k] for k, x in p.items()} for s in (1, -1))
    return (float(f(up)) - float(f(down))) / (2 * h)


_SHOW = """
W = W.double()
names = [name for name, p in W.named_parameters() if p.requires_grad]
values = tuple(W.get_parameter(name).detach() for name in names)


def total(*parameters):
    op = torch.func.functional_call(W, dict(zip(names, parameters)), ())
    return op.linear(torch.ones($n, dtype=torch.float64)).square().sum()


tangents = tuple(torch.ones_like(x) for x in values)
print("jvp:", torch.func.jvp(total, values, tangents)[1].item())
step = 1e-6
up, down = (total(*(x + s * step for x in values)).item() for s in (1, -1))
print("differences:", (up - down) / (2 * step))
"""
LAWS = (
    Law(
        "derivatives",
        "Forward mode and second derivatives equal finite differences, or raise.",
        _derivatives,
        show=_SHOW,
        parameters=(FreeParameters("normal"),),
        max_examples=2,
        needs=("contract", "smoothness", "repeats", "writes"),
    ),
)
