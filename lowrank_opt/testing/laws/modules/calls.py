"""Calls: any number of them, in any mode, after any way of writing to the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.modules.generators import largest, trainable
from lowrank_opt.testing.laws.modules.purity import expect_equal
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect


def _gradients_again(subject: Subject) -> None:
    """Expect every backward pass to give the same gradient, whatever was called before."""
    module = subject.module()
    first = _gradient(subject, module)
    for name, before in _preludes(module):
        # Any write makes what is kept from earlier calls out of date.
        with torch.no_grad():
            for p in trainable(module).values():
                p.add_(0)
        before()
        for when in (f"after {name}", f"after {name} and a backward pass"):
            try:
                again = _gradient(subject, module)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                expect(False, f"{when} the backward pass fails: {reason}")
                raise
            _expect_same(subject, again, first, when)
    twice = _gradient(subject, module, times=2)
    _expect_same(subject, twice, {k: 2 * g for k, g in first.items()}, "of two calls in one sum")


def _preludes(module: Parameterization) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what may come before a backward pass."""

    def without_gradients(mode: Callable[[], torch.autograd.grad_mode.no_grad]) -> None:
        with mode():
            module()

    def frozen() -> None:
        module.requires_grad_(False)
        module()
        for p in kept:
            p.requires_grad_()

    def evaluating() -> None:
        module.eval()()
        module.train()

    kept = list(trainable(module).values())
    yield "a write", lambda: None
    yield "a call under no_grad", lambda: without_gradients(torch.no_grad)
    yield "a call in inference mode", lambda: without_gradients(torch.inference_mode)  # pyright: ignore[reportArgumentType]
    yield "a call while frozen", frozen
    yield "a call while evaluating", evaluating
    yield "a call that was dropped", module
    yield "zero_grad()", module.zero_grad


def _gradient(subject: Subject, module: Parameterization, *, times: int = 1) -> dict[str, Tensor]:
    """Return the gradient of a sum of entries, from as many calls as are asked for."""
    m, n = subject.case.shape
    x, y = subject.normal(n, salt=1), subject.normal(m, salt=2)
    value = sum(((y * module().linear(x)).sum() for _ in range(times)), x.new_zeros(()))
    own = trainable(module)
    expect(value.requires_grad, "W does not depend on any trainable parameter, to autograd")
    found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
    pairs = zip(own.items(), found, strict=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in pairs}


def _expect_same(
    subject: Subject, found: dict[str, Tensor], truth: dict[str, Tensor], when: str
) -> None:
    for name, g in truth.items():
        error, size = largest(found[name] - g), largest(g)
        allowed = 256 * subject.eps * (size + 1)
        expect(error <= allowed, f"the gradient of {name} {when} is off by {error:.2e}")


def _writes(subject: Subject) -> None:
    """Expect W to follow the parameters, however they are written to."""
    module = subject.module()
    for seed, (name, write) in enumerate(_ways_of_writing(module)):
        module()
        shifts = [
            0.1 * subject.normal(*p.shape, salt=60 + seed) for p in trainable(module).values()
        ]
        write(shifts)
        fresh = subject.fresh()
        fresh.load_state_dict(module.state_dict())
        expect_equal(subject, module(), fresh(), f"a call after {name}")
    _expect_borrowed(subject, module)


def _ways_of_writing(
    module: Parameterization,
) -> Iterator[tuple[str, Callable[[list[Tensor]], object]]]:
    own = list(trainable(module).values())

    def data_in_place(shifts: list[Tensor]) -> None:
        for p, d in zip(own, shifts, strict=True):
            p.data.add_(d)

    def data_replaced(shifts: list[Tensor]) -> None:
        for p, d in zip(own, shifts, strict=True):
            p.data = p.data + d

    def as_vector(shifts: list[Tensor]) -> None:
        moved = [p.detach() + d for p, d in zip(own, shifts, strict=True)]
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(moved), own)

    def together(shifts: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_add_([*own], shifts)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    def as_state(shifts: list[Tensor]) -> None:
        state = copy.deepcopy(module.state_dict())
        names = list(trainable(module))
        moved = {k: state[k] + d for k, d in zip(names, shifts, strict=True) if k in state}
        module.load_state_dict({**state, **moved})

    def by_optimizer(shifts: list[Tensor]) -> None:
        optimizer = torch.optim.SGD(own, lr=1.0)
        for p, d in zip(own, shifts, strict=True):
            p.grad = d.clone()
        optimizer.step()
        module.zero_grad(set_to_none=True)

    def data_strided(shifts: list[Tensor]) -> None:
        for p, d in zip(own, shifts, strict=True):
            p.data = torch.stack((p.data + d, torch.full_like(p, torch.nan)), -1)[..., 0]

    yield "p.data.add_(...)", data_in_place
    yield "p.data = ...", data_replaced
    yield "vector_to_parameters(...)", as_vector
    yield "a step of all parameters at once", together
    yield "load_state_dict(...)", as_state
    yield "a step of an optimizer", by_optimizer
    yield "p.data = (a view with gaps)", data_strided


def _expect_borrowed(subject: Subject, module: Parameterization) -> None:
    """Expect functional_call to use what it is given, and the module its own afterwards."""
    own = module().detach().clone()
    moved = {k: p.detach() + 0.1 * torch.ones_like(p) for k, p in trainable(module).items()}
    found: LowRankOperator = functional_call(module, moved, ())
    fresh = subject.fresh()
    fresh.load_state_dict(module.state_dict())
    with torch.no_grad():
        for k, p in trainable(fresh).items():
            p.copy_(moved[k])
    expect_equal(subject, found, fresh(), "functional_call with other parameters")
    expect_equal(subject, module(), own, "a call after functional_call")


_NORMAL = (FreeParameters("normal"),)
LAWS = (
    Law(
        "repeats",
        "Every backward pass gives the same gradient, whatever was called before it.",
        _gradients_again,
        parameters=_NORMAL,
        max_examples=3,
        needs=("contract", "smoothness"),
    ),
    Law(
        "writes",
        "W follows the parameters, however they are written to.",
        _writes,
        parameters=_NORMAL,
        max_examples=3,
        needs=("contract", "purity", "copies", "in_place", "repeats"),
    ),
)
