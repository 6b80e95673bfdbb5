"""State: after anything that was done to a module, its state dict says all of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.modules.generators import operations
from lowrank_opt.testing.laws.modules.purity import expect_equal
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect

# Of zero_(): a sign that it draws is seen in one of them.
_ZERO_STARTS = 3


def _journey(subject: Subject) -> None:
    module = subject.module()
    steps = (*_steps(subject, module), ("all that is pure", lambda: _ask(subject, module)))
    for index, (name, step) in enumerate(steps):
        asked = {k: p.requires_grad for k, p in module.named_parameters()}
        with suppress(LowRankError, NotImplementedError):
            step()
        same = asked == {k: p.requires_grad for k, p in module.named_parameters()}
        expect(same, f"after {name} other parameters ask for gradients")
        # At other values: what is left behind must not matter for them either.
        FreeParameters(seed=subject.seed + index).fill_(module)
        _expect_same_state(subject, module, name)
    _expect_same_answers(subject, module)


def _expect_same_answers(subject: Subject, module: Parameterization) -> None:
    """Expect certificate and export to be those of the present W, not of an earlier one."""
    fresh = subject.fresh(salt=2)
    fresh.load_state_dict(module.state_dict())
    values = [x.certify().singular_values for x in (module, fresh)]
    near = [math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30) for a, b in zip(*values, strict=True)]
    expect(all(near), "certify() speaks of a W that the module had before")
    with suppress(LowRankError, NotImplementedError):
        exported = fresh.export(torch.float64)
        what = "after other values export()"
        expect_equal(subject, module.export(torch.float64), exported, what)


def _ask(subject: Subject, module: Parameterization) -> None:
    """Ask a module for everything that is not to change it."""
    for _, operation in operations(subject, module):
        with suppress(LowRankError, NotImplementedError):
            operation()


def _steps(
    subject: Subject, module: Parameterization
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what changes a module, by name."""
    member = subject.fresh(salt=1).factors().detach()
    other = torch.float32 if subject.dtype == torch.float64 else torch.float64
    for index in range(_ZERO_STARTS):
        generator = torch.Generator(subject.device).manual_seed(3 * subject.seed + index)
        yield "zero_()", lambda g=generator: module.zero_(generator=g)
    yield "assign()", lambda: module.assign(member)
    yield "assign(project=True)", lambda: module.assign(100 * member, project=True)
    yield "eval()", lambda: module.eval()()
    yield "train()", lambda: module.train()()
    yield "to(dtype) and back", lambda: module.to(dtype=other).to(dtype=subject.dtype)
    yield (
        "loading its own state",
        lambda: module.load_state_dict(copy.deepcopy(module.state_dict())),
    )


def _expect_same_state(subject: Subject, module: Parameterization, name: str) -> None:
    fresh = subject.fresh(salt=2)
    # Converted buffers have lost digits: the state says so too.
    fresh.load_state_dict(module.state_dict())
    fresh.train(module.training)
    op = fresh()
    expect_equal(subject, module(), op, f"after {name} the module, beside one with its state dict,")
    twin = copy.deepcopy(module)
    expect_equal(subject, twin(), op, f"after {name} a deep copy")
    expect(
        twin.feasible_set.excess(op) == module.feasible_set.excess(op),
        f"after {name} a deep copy declares another set",
    )
    same = fresh.feasible_set.excess(3.0 * op), module.feasible_set.excess(3.0 * op)
    near = abs(same[0] - same[1]) <= 1e-6 * (1 + abs(same[0]))
    expect(near, f"after {name} another module with the state dict declares another set")


LAWS = (
    Law(
        "journey",
        "Whatever was done to a module, its state dict and its deep copies say all of it, and "
        "certificates speak of the W of now.",
        _journey,
        parameters=(FreeParameters("normal"),),
        max_examples=2,
        needs=("contract", "membership", "purity", "copies"),
    ),
)
