"""Purity: W is a function of parameters and buffers, and nothing else happens on the way."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from lowrank_opt.errors import NoRightInverseError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import dense, magnitude
from lowrank_opt.testing.cases.parameters import TAME, FreeParameters
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect


def _purity(subject: Subject) -> None:
    module = subject.module()
    before, held = _snapshot(module), {k: torch.ones_like(p) for k, p in _trainable(module).items()}
    for name, p in _trainable(module).items():
        p.grad = held[name].clone()
    op = module.factors().detach().clone()
    _expect_unchanged(module, before, "factors()")
    expect_equal(subject, module.factors(), op, "a second call of factors()")
    target = _another_member(subject)
    copy_of_target = target.clone()
    with suppress(NoRightInverseError):
        module.right_inverse(target)
    same = all(torch.equal(x, y) for x, y in zip(target, copy_of_target, strict=True))
    expect(same, "right_inverse() changed its target")
    _expect_unchanged(module, before, "right_inverse()")
    expect_equal(subject, module.factors(), op, "factors() after right_inverse()")
    module.certify()
    _expect_unchanged(module, before, "certify()")
    _expect_one_value(subject, module, op)
    kept = {k: p.grad for k, p in _trainable(module).items()}
    lost = [k for k, g in held.items() if (x := kept.get(k)) is None or not torch.equal(g, x)]
    expect(not lost, f"the calls changed the gradients that were held for {', '.join(lost)}")


def _expect_one_value(subject: Subject, module: Parameterization, op: LowRankOperator) -> None:
    """Expect one W, whether gradients are recorded or not, in either mode of the module."""
    with torch.no_grad():
        expect_equal(subject, module.factors(), op, "factors() under no_grad")
    with torch.inference_mode():
        expect_equal(subject, module.factors(), op, "factors() in inference mode")
    declared = module.feasible_set.excess(3.0 * op)
    for mode in (False, True):
        module.train(mode)
        expect_equal(subject, module.factors(), op, f"factors() with training={mode}")
        same = abs(module.feasible_set.excess(3.0 * op) - declared) <= 1e-6 * (1 + declared)
        expect(same, f"with training={mode} the module declares another set")
    kept = list(_trainable(module).values())
    module.requires_grad_(False)
    expect_equal(subject, module.factors(), op, "factors() with frozen parameters")
    for p in kept:
        p.requires_grad_()


def _another_member(subject: Subject) -> LowRankOperator:
    other = subject.fresh()
    replace(subject.case.parameters, structure="normal", seed=subject.seed + 1).fill_(other)
    return other.factors().detach()


def _copies(subject: Subject) -> None:
    module = subject.module()
    op = module.factors().detach().clone()
    other = subject.fresh(salt=1)
    other.load_state_dict(module.state_dict())
    expect_equal(subject, other.factors(), op, "a new module with the state dict loaded")
    other.load_state_dict(module.state_dict())
    expect_equal(subject, other.factors(), op, "a module with the state dict loaded twice")
    twin = copy.deepcopy(module)
    expect_equal(subject, twin.factors(), op, "a deep copy")
    expect_equal(subject, copy.deepcopy(twin).factors(), op, "a deep copy of a deep copy")
    if _importable(type(module)) and getattr(module, "pickles", True):
        expect_equal(subject, _pickled(module).factors(), op, "a pickled copy")
    _step(subject, twin)
    expect_equal(subject, module.factors(), op, "the original after a step of its deep copy")


def _in_place_steps(subject: Subject) -> None:
    """Step parameters in place, as optimizers do, and compare with new tensors in their place."""
    module = subject.module()
    module.factors()
    frozen = {k: v.clone() for k, v in module.named_buffers()}
    moved = {k: p.detach().clone() + _shift(subject, p) for k, p in _trainable(module).items()}
    expected: LowRankOperator = functional_call(copy.deepcopy(module), moved, ())
    _step(subject, module)
    for name, value in module.named_buffers():
        same = torch.equal(value, frozen[name])
        expect(same, f"the buffer {name} changed when parameters were stepped in place")
    expect_equal(subject, module.factors(), expected, "factors() after a step in place")
    fresh = subject.fresh()
    fresh.load_state_dict(module.state_dict())
    expect_equal(subject, fresh.factors(), expected, "a new module with the stepped state dict")


def _trainable(module: Parameterization) -> dict[str, Tensor]:
    return {k: p for k, p in module.named_parameters() if p.requires_grad}


def _shift(subject: Subject, parameter: Tensor) -> Tensor:
    return 0.1 * subject.normal(*parameter.shape, salt=9)


def _step(subject: Subject, module: Parameterization) -> None:
    with torch.no_grad():
        for p in _trainable(module).values():
            p.add_(_shift(subject, p))


def _pickled(module: Parameterization) -> Parameterization:
    try:
        return pickle.loads(pickle.dumps(module))
    except Exception as error:
        expect(False, f"the module cannot be pickled: {type(error).__name__}: {error}")
        raise


def _importable(kind: type) -> bool:
    """Whether Python can pickle instances of a class by its name, as it must."""
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _snapshot(module: Parameterization) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    return {k: v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)}


def _expect_unchanged(module: Parameterization, before: Mapping[str, Tensor], what: str) -> None:
    after = _snapshot(module)
    expect(after.keys() == before.keys(), f"{what} added or removed entries of the state")
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    expect(not changed, f"{what} changed {changed}")


def expect_equal(
    subject: Subject, op: LowRankOperator, expected: LowRankOperator, what: str
) -> None:
    """Expect two operators to be the same matrix, up to rounding."""
    error = float(np.abs(dense(op) - dense(expected)).max())
    size = float(magnitude(expected).max(initial=0.0))
    allowed = 16 * subject.eps * (sum(subject.case.shape) * subject.case.rank) ** 0.5 * size
    expect(error <= allowed, f"{what} gives another W: entries differ by {error:.2e}")


_SHOW_PURITY = """
before = {name: x.clone() for name, x in W.state_dict().items()}
print("first call: ", W().to_dense().tolist())
print("second call:", W().to_dense().tolist())

W.certify()
after = W.state_dict()
print("changed:", [name for name, x in before.items() if not torch.equal(x, after[name])])
"""
_SHOW_COPIES = """
import copy

print("W:", W().to_dense().tolist())
torch.manual_seed($seed + 1)
other = $fresh
other.load_state_dict(W.state_dict())
print("a new module with its state:", other().to_dense().tolist())
print("a deep copy:", copy.deepcopy(W)().to_dense().tolist())
"""
_SHOW_IN_PLACE = """
import copy

W()
trainable = {name: p for name, p in W.named_parameters() if p.requires_grad}
moved = {name: p.detach() + 0.1 for name, p in trainable.items()}
expected = torch.func.functional_call(copy.deepcopy(W), moved, ())
print("new parameters give:  ", expected.to_dense().tolist())
with torch.no_grad():
    for p in trainable.values():
        p.add_(0.1)
print("a step in place gives:", W().to_dense().tolist())
"""
check_purity: Law[Subject] = Law(
    "purity",
    "factors(), right_inverse() and certify() change nothing, gradients included, and repeat.",
    _purity,
    parameters=(*TAME, FreeParameters("normal", (1e4,))),
    show=_SHOW_PURITY,
    needs=("contract",),
)
check_copies: Law[Subject] = Law(
    "copies",
    "State dict, deep copy and pickle carry all of W, twice too, and share none of it.",
    _copies,
    parameters=TAME,
    show=_SHOW_COPIES,
    needs=("contract", "purity"),
)
check_in_place: Law[Subject] = Law(
    "in_place",
    "Steps in place move W as new parameters would, and leave frozen tensors alone.",
    _in_place_steps,
    parameters=TAME,
    show=_SHOW_IN_PLACE,
    needs=("contract", "purity"),
)
LAWS = (
    check_purity,
    check_copies,
    check_in_place,
)
