"""Laws of adapters in use: batches of any size, inputs that are trained, calls in any order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_opt.errors import LowRankError
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.adapter_laws import Pair, pairs
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect

Inputs = tuple[Tensor, ...]


@torch.no_grad()
def _batches(subject: Subject) -> None:
    for pair in pairs(subject):
        for name, inputs in _batches_of(pair.inputs):
            try:
                truth = _oracle(pair, inputs)
            except (RuntimeError, ValueError):
                # The base model itself takes no such batch.
                continue
            for mode in (True, False):
                pair.adapted.train(mode)
                pair.near(pair.adapted(*inputs), truth, f"forward of {name}, training={mode},")


def _batches_of(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    size = len(inputs[0])
    yield "the first example alone", tuple(x[:1] for x in inputs)
    yield "the last example alone", tuple(x[size - 1 :] for x in inputs)
    yield "no example", tuple(x[:0] for x in inputs)
    yield "the batch turned round", tuple(x.flip(0) for x in inputs)
    yield "a larger batch", tuple(torch.cat([x] * 5) for x in inputs)
    yield "one example, many times", tuple(x[:1].expand(7, *x.shape[1:]) for x in inputs)
    yield "inputs that are not contiguous", tuple(_strided(x) for x in inputs)
    yield "inputs of zero", tuple(torch.zeros_like(x) for x in inputs)
    yield "the same batch again", inputs


def _strided(x: Tensor) -> Tensor:
    """Return the same values in memory with gaps."""
    return torch.stack((x, x), -1)[..., 0]


def _oracle(pair: Pair, inputs: Inputs) -> Tensor:
    return functional_call(pair.base, pair.weights(), inputs)


def _inputs(subject: Subject) -> None:
    for pair in pairs(subject):
        if not pair.inputs[0].is_floating_point():
            continue
        for mode in (True, False):
            pair.adapted.train(mode)
            found, truth = (_input_gradient(pair, f) for f in (pair.adapted, _of_oracle(pair)))
            pair.near(found, truth, f"the gradient in the inputs, training={mode},")
        frozen = copy.deepcopy(pair.adapted).requires_grad_(False)
        pair.near(_input_gradient(pair, frozen), truth, "the gradient in the inputs, frozen,")


def _of_oracle(pair: Pair) -> Callable[..., Tensor]:
    return lambda *inputs: _oracle(pair, inputs)


def _input_gradient(pair: Pair, f: Callable[..., Tensor]) -> Tensor:
    x = pair.inputs[0].clone().requires_grad_()
    y = f(x, *pair.inputs[1:])
    expect(y.requires_grad, f"{pair.name}: the output is cut off from the inputs")
    (found,) = torch.autograd.grad(y.square().sum(), x)
    return found


def _repeated(subject: Subject) -> None:
    for pair in pairs(subject):
        truth, method, adapted = pair.oracle().detach(), pair.method, pair.adapted
        own = _state(adapted)
        for name, action, expected in (
            ("merging", method.merge, truth),
            ("merging again", method.merge, truth),
            ("unmerging", method.unmerge, truth),
            ("unmerging again", method.unmerge, truth),
            ("merging after all", method.merge, truth),
            ("unmerging at last", method.unmerge, truth),
        ):
            _tried(action, adapted)
            with torch.no_grad():
                pair.near(adapted(*pair.inputs), expected, f"after {name} the model")
        changed = [k for k, x in _state(adapted).items() if not torch.equal(x, own[k])]
        expect(not changed, f"{pair.name}: merging and unmerging twice changes {changed[:3]}")
        _expect_disabled_twice(pair, truth)


def _tried(action: Callable[[nn.Module], None], model: nn.Module) -> None:
    """Do what may be refused the second time."""
    try:
        action(model)
    except (LowRankError, RuntimeError, ValueError):
        return


def _expect_disabled_twice(pair: Pair, truth: Tensor) -> None:
    base = pair.base(*pair.inputs).detach()
    disabled = pair.method.disabled
    with torch.no_grad():
        with disabled(pair.adapted):
            with disabled(pair.adapted):
                pair.near(pair.adapted(*pair.inputs), base, "the model, disabled twice,")
            pair.near(pair.adapted(*pair.inputs), base, "the model, enabled once of two,")
        pair.near(pair.adapted(*pair.inputs), truth, "the model, enabled again,")
        try:
            with disabled(pair.adapted):
                raise KeyError("an error inside")
        except KeyError:
            pair.near(pair.adapted(*pair.inputs), truth, "the model after an error while disabled")


def _gradients_again(subject: Subject) -> None:
    for pair in pairs(subject):
        first = _gradients(pair)
        with torch.no_grad():
            pair.adapted(*pair.inputs)
        with torch.inference_mode():
            pair.adapted.eval()(*pair.inputs)
        pair.adapted.train()
        again = _gradients(pair)
        for name, g in first.items():
            pair.near(again[name], g, f"the gradient of {name} after other calls")


def _gradients(pair: Pair) -> Mapping[str, Tensor]:
    own = pair.trainable()
    value = pair.adapted(*pair.inputs).square().sum()
    found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
    return {
        k: torch.zeros_like(p) if g is None else g
        for (k, p), g in zip(own.items(), found, strict=True)
    }


def _modes(subject: Subject) -> None:
    for pair in pairs(subject):
        for mode in (False, True):
            model = pair.method.adapt(copy.deepcopy(pair.base).train(mode), _maker(subject))
            wrong = [k or "the model" for k, m in model.named_modules() if m.training != mode]
            expect(
                not wrong,
                f"{pair.name}: the base model has training={mode}; adapted, {wrong[:2]} differ",
            )
            pair.adapted.train(mode)
            wrong = [
                k or "the model" for k, m in pair.adapted.named_modules() if m.training != mode
            ]
            expect(not wrong, f"{pair.name}: train({mode}) does not reach {wrong[:2]}")


def _maker(subject: Subject) -> Callable[[tuple[int, int]], Parameterization]:
    return lambda shape: subject.make(shape, min(subject.case.rank, *shape))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def _law(name: str, statement: str, body: Callable[[Subject], None]) -> Law[Subject]:
    return Law(
        name,
        statement,
        body,
        parameters=(FreeParameters("start"),),
        sides=(1, 6),
        max_rank=3,
        max_examples=3,
        needs=("start", "forward"),
        entry="check_adapter",
    )


LAWS = (
    _law("batches", "Every batch, of one example, none or many, gives F(x; W0 + dW).", _batches),
    _law("inputs", "Gradients in the inputs are those of F(x; W0 + dW).", _inputs),
    _law("repeated", "Merging, unmerging and disabling twice change nothing more.", _repeated),
    _law(
        "calls",
        "Gradients do not depend on calls before, without gradients or not.",
        _gradients_again,
    ),
    _law("modes", "Adapting keeps the mode of every module, and train() reaches all.", _modes),
)
