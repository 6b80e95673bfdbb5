"""One matrix, however it is applied: every product, entry and form against the dense matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, to_array
from lowrank_opt.testing.search.verdict import expect

# What a view gives, what it should be, and the size of the terms that add up to it.
_Comparison = tuple[str, Tensor, Array, Array]


def expect_agreement(trial: Trial[Any], op: LowRankOperator) -> None:
    """Expect every product and entry of an operator to be that of its factors' dense product."""
    (m, n), W, size = trial.case.shape, dense(op), magnitude(op)
    for name, value, truth, scale in (
        *_products(trial, op, W, size),
        *_entries(trial, op, W, size),
    ):
        compare(trial, name, value, truth, scale)
    x, y = trial.normal(n, 1), trial.normal(m, 1, salt=2)
    left = float(np.sum(to_array(op @ x) * to_array(y)))
    right = float(np.sum(to_array(x) * to_array(op.mT @ y)))
    allowed = roundings(trial) * float(abs(to_array(y)[:, 0]) @ size @ abs(to_array(x)[:, 0]))
    expect(abs(left - right) <= allowed, f"<Wx, y> = {left!r}, but <x, W^T y> = {right!r}")


def _products(
    trial: Trial[Any], op: LowRankOperator, W: Array, size: Array
) -> Iterator[_Comparison]:
    m, n = trial.case.shape
    x, y = trial.normal(2, n, 3), trial.normal(2, m, 2, salt=2)
    X, Y = to_array(x), to_array(y)
    yield "to_dense()", op.to_dense(), W, size
    yield "W.mT.to_dense()", op.mT.to_dense(), W.T, size.T
    yield "W @ x for a vector", op @ x[0, :, 0], W @ X[0, :, 0], size @ abs(X[0, :, 0])
    yield "W @ x", op @ x[0], W @ X[0], size @ abs(X[0])
    yield "W @ x for a batch", op @ x, W @ X, size @ abs(X)
    yield "W.mT @ y for a vector", op.mT @ y[0, :, 0], W.T @ Y[0, :, 0], size.T @ abs(Y[0, :, 0])
    yield "W.mT @ y", op.mT @ y[0], W.T @ Y[0], size.T @ abs(Y[0])
    yield "W.mT @ y for a batch", op.mT @ y, W.T @ Y, size.T @ abs(Y)
    yield "W @ x for batches", op @ x[:, None], W @ X[:, None], size @ abs(X[:, None])
    rows, turned = np.swapaxes(X, 1, 2), np.swapaxes(Y, 1, 2)
    for name, k in (("a vector", (0, 0)), ("rows", (0,)), ("one row", (0, slice(0, 1)))):
        given = x.mT[k]
        yield f"linear(x) for {name}", op.linear(given), rows[k] @ W.T, abs(rows[k]) @ size.T
    yield "linear(x) for a batch", op.linear(x.mT), rows @ W.T, abs(rows) @ size.T
    given = x.mT[:, None]
    yield (
        "linear(x) for batches",
        op.linear(given),
        rows[:, None] @ W.T,
        abs(rows[:, None]) @ size.T,
    )
    yield "linear(x) for no rows", op.linear(x.mT[0, :0]), rows[0, :0] @ W.T, rows[0, :0] @ size.T
    yield "W.mT.linear(y)", op.mT.linear(y.mT), turned @ W, abs(turned) @ size


def _entries(
    trial: Trial[Any], op: LowRankOperator, W: Array, size: Array
) -> Iterator[_Comparison]:
    i, j = trial.places
    order = torch.from_numpy(trial.rng.permutation(len(i))).to(i)
    lists = {
        "entries": (i, j),
        "entries in another order": (i[order], j[order]),
        "entries, each twice,": (torch.cat((i, i)), torch.cat((j, j))),
        "one entry": (i[-1:], j[-1:]),
        "no entries": (i[:0], j[:0]),
    }
    for name, (rows, cols) in lists.items():
        at = rows.cpu().numpy(), cols.cpu().numpy()
        yield name, op.entries(rows, cols), W[at], size[at]
    at = i.cpu().numpy(), j.cpu().numpy()
    yield "entries of W.mT", op.mT.entries(j, i), W[at], size[at]


def compare(trial: Trial[Any], name: str, value: Tensor, truth: Array, scale: Array) -> None:
    """Expect values that differ from the truth by rounding of terms of a size only."""
    expect(tuple(value.shape) == truth.shape, f"{name} has shape {tuple(value.shape)}")
    expect(value.dtype == trial.dtype, f"{name} is of {value.dtype}, not of {trial.dtype}")
    error = abs(to_array(value) - truth)
    floor = torch.finfo(trial.dtype).smallest_normal
    allowed = roundings(trial) * scale + floor * (1 + sum(trial.case.shape))
    worst = float((error - allowed).max(initial=0.0))
    expect(
        bool((error <= allowed).all()),
        f"{name} differs from the dense product by {float(error.max(initial=0.0)):.2e}, "
        f"{worst:.1e} more than rounding explains",
    )


def roundings(trial: Trial[Any]) -> float:
    """Return the relative error of sums over all sides in turn, in units of rounding."""
    return 2 * trial.eps * (4 + sum(trial.case.shape) + 2 * trial.case.rank)


SHOW_VIEWS = """
op = W().detach()
dense = (op.left * op.scale) @ op.right.mT
rows, cols = torch.arange($m).repeat_interleave($n), torch.arange($n).repeat($m)
views = {
    "to_dense()": op.to_dense(),
    "W @ x": op @ torch.eye($n).to(dense),
    "W.mT @ y": (op.mT @ torch.eye($m).to(dense)).mT,
    "linear(x)": op.linear(torch.eye($n).to(dense)).mT,
    "entries": op.entries(rows, cols).reshape($m, $n),
}
for name, view in views.items():
    print(name, "differs from the dense product by", (view - dense).abs().max().item())
"""
