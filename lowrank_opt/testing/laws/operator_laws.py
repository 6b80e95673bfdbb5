"""Laws of operators besides agreement: the triple, singular values, truncation, algebra, slopes."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from lowrank_opt.errors import DenseMaterializationError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import schatten_norm
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, singular_values, to_array
from lowrank_opt.testing.dense_guard import forbid_dense
from lowrank_opt.testing.search.verdict import NotApplicable, Violation, expect


def operator_of(subject: Subject) -> LowRankOperator:
    """Return the operator of a case, detached from what it was made of."""
    op = subject.module().factors()
    expect(
        isinstance(op, LowRankOperator), f"make returned {type(op).__name__}, not a LowRankOperator"
    )
    return op


def triple(subject: Subject) -> None:
    """Expect the matrix of the triple that the operator was made from."""
    module = subject.module()
    op, shape = module.factors(), subject.case.shape
    expect(op.shape == shape, f"the operator has shape {op.shape}, asked for {shape}")
    expect(op.dtype == subject.dtype, f"the operator is of {op.dtype}, asked for {subject.dtype}")
    parts = [getattr(module, name, None) for name in ("left", "scale", "right")]
    given = [p for p in parts if isinstance(p, torch.Tensor)]
    if len(given) < 3:
        raise NotApplicable("the operator is not made from a triple")
    expected = LowRankOperator(*(p.detach() for p in given))
    _near(subject, dense(op), dense(expected), magnitude(expected), "the matrix of the triple")


def values(subject: Subject) -> None:
    """Expect the singular values and norms of the dense matrix."""
    op = operator_of(subject)
    W, size = dense(op), float(np.linalg.norm(magnitude(op)))
    truth, found = singular_values(W), to_array(op.singular_values())
    expect(bool((np.diff(found) <= 0).all()), "singular_values() are not decreasing")
    expect(bool((found >= 0).all()), "a singular value is negative")
    k, allowed = min(len(truth), len(found)), _roundings(subject) * size + _tiny(subject)
    worst = float(np.abs(truth[:k] - found[:k]).max(initial=0.0))
    worst = max(worst, float(truth[k:].max(initial=0.0)), float(found[k:].max(initial=0.0)))
    expect(worst <= allowed, f"a singular value is off by {worst:.2e}")
    for p in (1.0, 2.0, math.inf):
        error = abs(float(op.schatten_norm(p).detach()) - schatten_norm(truth, p))
        expect(error <= len(truth) * allowed, f"schatten_norm({p:g}) is off by {error:.2e}")
    error = abs(float(op.ky_fan_norm(2).detach()) - float(truth[:2].sum()))
    expect(error <= 2 * allowed, f"ky_fan_norm(2) is off by {error:.2e}")


def factors(subject: Subject) -> None:
    """Expect thin_svd() and truncate() to be the SVD and its beginning."""
    op = operator_of(subject)
    W, size = dense(op), magnitude(op)
    svd = op.thin_svd()
    _near(subject, dense(svd), W, _filled(size), "thin_svd()")
    for name, frame in (("left", svd.left), ("right", svd.right)):
        error = np.abs(to_array(frame.mT @ frame) - np.eye(svd.rank)).max()
        expect(
            error <= _roundings(subject), f"the {name} frame of thin_svd() is off by {error:.1e}"
        )
    sigma, norm = singular_values(W), float(np.linalg.norm(size))
    for k in range(1, min(op.shape) + 1):
        cut = op.truncate(k)
        error = float(np.linalg.norm(dense(cut) - W))
        best = float(np.linalg.norm(sigma[k:]))
        expect(cut.rank <= k, f"truncate({k}) has rank {cut.rank}")
        expect(
            error <= best + _roundings(subject) * norm + _tiny(subject),
            f"truncate({k}) is at distance {error:.9g}; the nearest of that rank at {best:.9g}",
        )


def algebra(subject: Subject) -> None:
    """Expect sums, differences, multiples and transposes of matrices."""
    op = operator_of(subject)
    (m, n), r = op.shape, op.rank
    parts = subject.normal(m, r, salt=5), subject.normal(r, salt=6), subject.normal(n, r, salt=7)
    other = LowRankOperator(*parts)
    W, V = dense(op), dense(other)
    size = magnitude(op) + magnitude(other)
    results = {
        "W + V": (op + other, W + V),
        "W - V": (op - other, W - V),
        "-W": (-op, -W),
        "3 W": (3.0 * op, 3 * W),
        "W.mT.mT": (op.mT.mT, W),
        "detach().clone()": (op.detach().clone(), W),
        "a deep copy": (copy.deepcopy(op.detach()), W),
    }
    for name, (found, truth) in results.items():
        _near(subject, dense(found), truth, 3 * size, name)
    _near(subject, dense(op.mT), W.T, size.T, "W.mT")
    other_dtype = torch.float32 if subject.dtype == torch.float64 else torch.float64
    expect(op.to(dtype=other_dtype).dtype == other_dtype, "to(dtype=...) keeps the dtype")


def slopes(subject: Subject) -> None:
    """Expect the gradients of products to be those of the dense formula."""
    module, (m, n) = subject.module(), subject.case.shape
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise NotApplicable("the operator is not made from a triple")
    x, y = subject.normal(n, salt=1), subject.normal(m, salt=2)
    rows = torch.arange(m).repeat_interleave(n).to(subject.device)
    cols = torch.arange(n).repeat(m).to(subject.device)

    def dense_of(op: LowRankOperator) -> torch.Tensor:
        return (op.left * op.scale) @ op.right.mT

    pairs = {
        "W @ x": (lambda op: y @ (op @ x), lambda op: y @ (dense_of(op) @ x)),
        "linear(x)": (lambda op: (op.linear(x) * y).sum(), lambda op: y @ (dense_of(op) @ x)),
        "entries": (
            lambda op: op.entries(rows, cols).square().sum(),
            lambda op: dense_of(op).square().sum(),
        ),
        "to_dense()": (
            lambda op: op.to_dense().square().sum(),
            lambda op: dense_of(op).square().sum(),
        ),
    }
    for name, (view, formula) in pairs.items():
        value = view(module.factors())
        expect(value.requires_grad, f"{name} is cut off from autograd")
        found = torch.autograd.grad(value, trainable, allow_unused=True)
        truth = torch.autograd.grad(formula(_plain(module)), trainable)
        for g, t in zip(found, truth, strict=True):
            error = float((t - (torch.zeros_like(t) if g is None else g)).abs().max())
            size = float(t.abs().max()) + 1
            allowed = 64 * _roundings(subject) * size
            expect(error <= allowed, f"the gradient of {name} is off by {error:.2e}")


def never_dense(subject: Subject) -> None:
    """Expect products, entries, norms and truncation to allocate no m x n numbers."""
    op, (m, n) = operator_of(subject), subject.case.shape
    x, rows = subject.normal(4, n), torch.arange(min(m, n), device=subject.device)
    y = subject.normal(m)
    try:
        with forbid_dense((m, n)):
            op.linear(x)
            op.entries(rows, rows)
            _ = op.mT @ y
            op.singular_values()
            op.truncate(1)
            _ = op + op
    except DenseMaterializationError as error:
        raise Violation(str(error)) from error


@torch.no_grad()
def purity(subject: Subject) -> None:
    """Expect the factors to stay as they are, whatever is asked of them."""
    # Detaching would give a plain operator: the class itself is on trial.
    op, (m, n) = operator_of(subject), subject.case.shape
    kept = [x.detach().clone() for x in op]
    x, y = subject.normal(n), subject.normal(m)
    first = [op @ x, op.linear(x), op.mT @ y, op.singular_values(), op.thin_svd().scale]
    _ = op.to_dense(), 2 * op, -op, op + op, op.truncate(1), op.schatten_norm(1)
    again = [op @ x, op.linear(x), op.mT @ y, op.singular_values(), op.thin_svd().scale]
    same = all(torch.equal(a, b) for a, b in zip(op, kept, strict=True))
    expect(same, "a method of the operator writes to its factors")
    repeats = all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(first, again, strict=True))
    expect(repeats, "a second call gives another result")


def _plain(module: torch.nn.Module) -> LowRankOperator:
    return LowRankOperator(*(module.get_parameter(name) for name in ("left", "scale", "right")))


def _near(subject: Subject, found: Array, truth: Array, size: Array, what: str) -> None:
    expect(found.shape == truth.shape, f"{what} has shape {found.shape}")
    error, allowed = np.abs(found - truth), _roundings(subject) * size + _tiny(subject)
    expect(bool((error <= allowed).all()), f"{what} is off by {float(error.max()):.2e}")


def _tiny(subject: Subject) -> float:
    """Return the size below which numbers have no digits in the dtype."""
    return torch.finfo(subject.dtype).smallest_normal * sum(subject.case.shape)


def _filled(size: Array) -> Array:
    """Return the norm of the terms at every entry: rotations spread errors over all of them."""
    return np.full(size.shape, float(np.linalg.norm(size)))


def _roundings(subject: Subject) -> float:
    return 8 * subject.eps * (4 + sum(subject.case.shape) + 2 * subject.case.rank)
