"""Gradients through every view of W: one map has one derivative, however it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.modules.generators import largest, trainable
from lowrank_opt.testing.laws.views import roundings
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect

_View = tuple[str, Callable[[LowRankOperator], Tensor], Callable[[Tensor], Tensor]]


def _slopes(subject: Subject) -> None:
    module = subject.module()
    own = list(trainable(module).values())
    for name, view, formula in _views(subject):
        op = module()
        truth = _gradient(formula((op.left * op.scale) @ op.right.mT), own)
        found = _gradient(view(module()), own)
        for g, t in zip(found, truth, strict=True):
            error, size = largest(g - t), largest(t)
            allowed = 256 * roundings(subject) * (size + 1)
            expect(error <= allowed, f"the gradient through {name} is off by {error:.2e}")


def _views(subject: Subject) -> Iterator[_View]:
    m, n = subject.case.shape
    x, y = subject.normal(2, 3, n, salt=1), subject.normal(2, 3, m, salt=2)
    rows, cols = (torch.cat((k, k[:1])) for k in subject.places)
    weights = subject.normal(len(rows), salt=3)

    def paired(found: Tensor, other: Tensor = y) -> Tensor:
        return (found * other).sum()

    yield "linear(x)", lambda op: paired(op.linear(x)), lambda W: paired(x @ W.mT)
    yield "W @ x", lambda op: paired((op @ x.mT).mT), lambda W: paired(x @ W.mT)
    yield "W.mT @ y", lambda op: paired((op.mT @ y.mT).mT, x), lambda W: paired(y @ W, x)
    yield (
        "entries",
        lambda op: paired(op.entries(rows, cols), weights),
        lambda W: paired(W[rows, cols], weights),
    )
    yield "to_dense()", lambda op: op.to_dense().square().sum(), lambda W: W.square().sum()


def _gradient(value: Tensor, own: list[torch.nn.Parameter]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in own]
    found = torch.autograd.grad(value, own, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True)]


LAWS = (
    Law(
        "slopes",
        "The gradient through products, entries and to_dense() is that of the dense product.",
        _slopes,
        parameters=(FreeParameters("normal"),),
        max_examples=3,
        needs=("contract", "agreement", "smoothness", "repeats"),
    ),
)
