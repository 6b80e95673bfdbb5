"""Gradients of an operator: of products and entries, of norms and of each singular value."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.operators import OperatorTrial, Triple, dense_of
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws.views import roundings
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# A view of the operator, and the same of its dense matrix: scalars.
_Pair = tuple[str, Callable[[LowRankOperator], Tensor], Callable[[Tensor], Tensor]]
_NORMS = (1.0, 1.5, 2.0, 3.0, float("inf"))


def _slopes(trial: OperatorTrial) -> None:
    if not trial.from_triple:
        raise NotApplicable("the operator is not made from a triple")
    for name, view, formula in (*_products(trial), *_norms(trial)):
        _expect_gradient(trial, trial.triple(requires_grad=True), name, view, formula)
    _expect_input_gradients(trial)


def _products(trial: OperatorTrial) -> Iterator[_Pair]:
    m, n = trial.case.shape
    x, y = trial.normal(2, 3, n, salt=1), trial.normal(2, 3, m, salt=2)
    rows, cols = (torch.cat((k, k)) for k in trial.places)
    yield "W @ x", lambda op: y[0, 0] @ (op @ x[0, 0]), lambda W: y[0, 0] @ (W @ x[0, 0])
    yield (
        "W @ x for a batch",
        lambda op: ((op @ x.mT) * y.mT).sum(),
        lambda W: ((W @ x.mT) * y.mT).sum(),
    )
    yield (
        "W.mT @ y",
        lambda op: ((op.mT @ y.mT) * x.mT).sum(),
        lambda W: ((W.mT @ y.mT) * x.mT).sum(),
    )
    yield "linear(x)", lambda op: (op.linear(x) * y).sum(), lambda W: ((x @ W.mT) * y).sum()
    yield (
        "entries",
        lambda op: op.entries(rows, cols).square().sum(),
        lambda W: W[rows, cols].square().sum(),
    )
    yield "to_dense()", lambda op: op.to_dense().square().sum(), lambda W: W.square().sum()
    yield "a sum", lambda op: (op + op).to_dense().square().sum(), lambda W: (2 * W).square().sum()


def _norms(trial: OperatorTrial) -> Iterator[_Pair]:
    r = trial.case.rank
    for i in range(r):
        yield (
            f"singular value {i}",
            lambda op, i=i: op.singular_values()[i],
            lambda W, i=i: torch.linalg.svdvals(W)[i],
        )
    for p in _NORMS:
        yield (
            f"schatten_norm({p:g})",
            lambda op, p=p: op.schatten_norm(p),
            lambda W, p=p: torch.linalg.vector_norm(torch.linalg.svdvals(W)[:r], p),
        )
    for k in range(1, r + 1):
        yield (
            f"ky_fan_norm({k})",
            lambda op, k=k: op.ky_fan_norm(k),
            lambda W, k=k: torch.linalg.svdvals(W)[:k].sum(),
        )


def _expect_gradient(
    trial: OperatorTrial,
    parts: Triple,
    name: str,
    view: Callable[[LowRankOperator], Tensor],
    formula: Callable[[Tensor], Tensor],
) -> None:
    value = view(trial.made(parts))
    expect(value.requires_grad, f"{name} is cut off from autograd")
    found = torch.autograd.grad(value, parts, allow_unused=True)
    # The truth in float64: singular vectors of a dense matrix lose digits where values are near.
    left, scale, right = (p.detach().double().requires_grad_() for p in parts)
    wide = left, scale, right
    truth = torch.autograd.grad(_in_double(trial, formula, wide), wide)
    gap = _least_gap(dense_of(wide).detach())
    for part, g, t in zip(("left", "scale", "right"), found, truth, strict=True):
        error = float((t - (torch.zeros_like(t) if g is None else g.double())).abs().max())
        allowed = 256 * roundings(trial) * (float(t.abs().max()) + 1) / gap
        expect(error <= allowed, f"the gradient of {name} in {part} is off by {error:.2e}")


def _in_double(trial: OperatorTrial, formula: Callable[[Tensor], Tensor], parts: Triple) -> Tensor:
    W = dense_of(parts)
    return formula(W if trial.dtype == torch.float64 else W.to(trial.dtype)).double()


def _least_gap(W: Tensor) -> float:
    """Return the least relative gap of singular values: vectors turn by its inverse."""
    values = torch.linalg.svdvals(W)
    gaps = -values.diff(append=values.new_zeros(1)) / values[0]
    rank = int(torch.linalg.matrix_rank(W))
    return float(gaps[:rank].amin()) if rank else 1.0


def _expect_input_gradients(trial: OperatorTrial) -> None:
    m, n = trial.case.shape
    op = trial.made(trial.triple())
    W = dense_of(trial.triple())
    y = trial.normal(2, 3, m, salt=2)
    for name, apply in (
        ("linear(x)", lambda x: op.linear(x)),
        ("W @ x", lambda x: (op @ x.mT).mT),
    ):
        x = trial.normal(2, 3, n, salt=1).requires_grad_()
        value = (apply(x) * y).sum()
        expect(value.requires_grad, f"{name} is cut off from its argument")
        (found,) = torch.autograd.grad(value, x)
        error, size = float((found - y @ W).abs().max()), float(W.abs().max()) + 1
        allowed = 64 * roundings(trial) * size * float(y.abs().max() + 1) * (m + n)
        expect(error <= allowed, f"the gradient of {name} in x is off by {error:.2e}")


LAWS = (
    Law(
        "gradients",
        "Gradients of products, entries, norms and each singular value are those of the dense "
        "formula, in the triple and in the argument.",
        _slopes,
        parameters=(FreeParameters("normal"),),
        needs=("triple", "agreement", "singular_values"),
        trial=OperatorTrial,
        entry="check_operator",
    ),
)
