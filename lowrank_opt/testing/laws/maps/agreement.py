"""One matrix, however it is applied; one map, however it is called; merging changes nothing."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, to_array
from lowrank_opt.testing.cases.parameters import MODERATE, TAME
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect


def _agreement(subject: Subject) -> None:
    module, (m, n) = subject.module(), subject.case.shape
    with torch.no_grad():
        op = module()
    x, y = subject.normal(n, 3), subject.normal(m, 2, salt=2)
    W, size = dense(op), magnitude(op)
    X, Y = to_array(x), to_array(y)
    rows = torch.arange(m, device=subject.device).repeat_interleave(n)
    cols = torch.arange(n, device=subject.device).repeat(m)
    comparisons = {
        "to_dense()": (op.to_dense(), W, size),
        "W @ x": (op @ x, W @ X, size @ abs(X)),
        "W @ x for a vector": (op @ x[:, 0], W @ X[:, 0], size @ abs(X[:, 0])),
        "W.mT @ y": (op.mT @ y, W.T @ Y, size.T @ abs(Y)),
        "linear(x)": (op.linear(x.mT), X.T @ W.T, abs(X.T) @ size.T),
        "W.mT.linear(y)": (op.mT.linear(y.mT), Y.T @ W, abs(Y.T) @ size),
        "entries": (op.entries(rows, cols), W.ravel(), size.ravel()),
    }
    for name, (value, truth, scale) in comparisons.items():
        _compare(subject, name, value, truth, scale)
    left = float(np.sum(to_array(op @ x[:, :1]) * Y[:, :1]))
    right = float(np.sum(X[:, :1] * to_array(op.mT @ y[:, :1])))
    allowed = _roundings(subject) * float(abs(Y[:, 0]) @ size @ abs(X[:, 0]))
    expect(abs(left - right) <= allowed, f"<Wx, y> = {left!r}, but <x, W^T y> = {right!r}")


def _merge(subject: Subject) -> None:
    module, (m, n) = subject.module(), subject.case.shape
    base, x = subject.normal(m, n, salt=3), subject.normal(n, salt=4)
    module.train()
    forward = base @ x + module().linear(x)
    module.eval()
    truth, size = dense(module.factors()), magnitude(module.factors())
    W, X = to_array(base), to_array(x)
    scale = (abs(W) + size) @ abs(X)
    _compare(subject, "x W0^T + linear(x) while training", forward, (W + truth) @ X, scale)
    merged = base + module().to_dense()
    _compare(subject, "x (W0 + dW)^T after merging", merged @ x, (W + truth) @ X, scale)
    restored = to_array(merged - module().to_dense()) - W
    drift, allowed = abs(restored).max(), _roundings(subject) * (abs(W) + size).max()
    expect(drift <= allowed, f"merging and taking the merge back changes W0 by {drift:.1e}")


def _compare(subject: Subject, name: str, value: torch.Tensor, truth: Array, scale: Array) -> None:
    expect(tuple(value.shape) == truth.shape, f"{name} has shape {tuple(value.shape)}")
    expect(value.dtype == subject.dtype, f"{name} is of {value.dtype}, not of {subject.dtype}")
    error = abs(to_array(value) - truth)
    floor = torch.finfo(subject.dtype).smallest_normal
    allowed = _roundings(subject) * scale + floor * (1 + sum(subject.case.shape))
    worst = float((error - allowed).max())
    expect(
        bool((error <= allowed).all()),
        f"{name} differs from the dense product by {float(error.max()):.2e}, {worst:.1e} more than "
        "rounding explains",
    )


def _roundings(subject: Subject) -> float:
    """Return the relative error of sums over all sides in turn, in units of rounding."""
    return 2 * subject.eps * (4 + sum(subject.case.shape) + 2 * subject.case.rank)


check_agreement = Law(
    "agreement",
    "@, mT, linear and entries are those of the dense product; <Wx, y> = <x, W^T y>.",
    _agreement,
    parameters=MODERATE,
)
check_merge = Law(
    "merge",
    "A layer's forward with W0 and W apart equals that with W0 + W merged, while training too.",
    _merge,
    parameters=TAME,
)
