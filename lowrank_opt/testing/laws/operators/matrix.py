"""The matrix of an operator: its triple, its singular values and norms, its algebra."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from lowrank_opt.errors import DenseMaterializationError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.charts import schatten_norm
from lowrank_opt.testing.cases.operators import OperatorTrial
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, singular_values, to_array
from lowrank_opt.testing.cases.parameters import MODERATE, TAME, FreeParameters
from lowrank_opt.testing.dense_guard import forbid_dense
from lowrank_opt.testing.laws.views import compare, expect_agreement, roundings
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, Violation, expect

_NORMS = (1.0, 1.5, 2.0, 3.0, math.inf)
_HOSTILE = (
    *MODERATE,
    *(FreeParameters("normal", (size,)) for size in (1e8, 1e-30)),
    FreeParameters("mixed_columns"),
    FreeParameters("zero_columns"),
)


def _triple(trial: OperatorTrial) -> None:
    op, shape = trial.operator(), trial.case.shape
    expect(op.shape == shape, f"the operator has shape {op.shape}, asked for {shape}")
    expect(op.dtype == trial.dtype, f"the operator is of {op.dtype}, asked for {trial.dtype}")
    expect(op.device == trial.device, f"the operator is on {op.device}, asked for {trial.device}")
    expect(op.rank == op.scale.shape[-1], f"rank is {op.rank} with {op.scale.shape[-1]} columns")
    if not trial.from_triple:
        raise NotApplicable("the operator is not made from a triple")
    expected = LowRankOperator(*trial.triple())
    _near(trial, dense(op), dense(expected), magnitude(expected), "the matrix of the triple")


@torch.no_grad()
def _agreement(trial: OperatorTrial) -> None:
    op = trial.operator()
    expect_agreement(trial, op)
    _expect_scipy(trial, op)


def _expect_scipy(trial: OperatorTrial, op: LowRankOperator) -> None:
    """Expect `to_scipy` to be the same matrix, from both sides, for vectors and for blocks."""
    (m, n), W, size = trial.case.shape, dense(op), magnitude(op)
    A, rng = op.to_scipy(), trial.rng
    expect(A.shape == (m, n), f"to_scipy() has shape {A.shape}")
    expect(A.dtype == np.float64, f"to_scipy() says that it is of {A.dtype}, and is of float64")
    x, y = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    views: dict[str, tuple[Callable[[], Array], Array, Array]] = {
        "matvec": (lambda: A.matvec(x[:, 0]), W @ x[:, 0], size @ abs(x[:, 0])),
        "matvec of a column": (lambda: A.matvec(x[:, :1]), W @ x[:, :1], size @ abs(x[:, :1])),
        "rmatvec": (lambda: A.rmatvec(y[:, 0]), W.T @ y[:, 0], size.T @ abs(y[:, 0])),
        "matmat": (lambda: A.matmat(x), W @ x, size @ abs(x)),
        "rmatmat": (lambda: A.rmatmat(y), W.T @ y, size.T @ abs(y)),
        "T": (lambda: A.T.matmat(y), W.T @ y, size.T @ abs(y)),
    }
    for name, (view, truth, scale) in views.items():
        _near(trial, view(), truth, scale, f"to_scipy().{name}")


def _values(trial: OperatorTrial) -> None:
    op = trial.operator()
    W, size = dense(op), _norm(magnitude(op))
    truth, found = singular_values(W), to_array(op.singular_values())
    expect(bool((np.diff(found) <= 0).all()), "singular_values() are not decreasing")
    expect(bool((found >= 0).all()), "a singular value is negative")
    k, allowed = min(len(truth), len(found)), _roundings(trial) * size + _tiny(trial)
    worst = float(np.abs(truth[:k] - found[:k]).max(initial=0.0))
    worst = max(worst, float(truth[k:].max(initial=0.0)), float(found[k:].max(initial=0.0)))
    expect(worst <= allowed, f"a singular value is off by {worst:.2e}")
    for p in _NORMS:
        error = abs(float(op.schatten_norm(p).detach()) - schatten_norm(truth, p))
        expect(error <= len(truth) * allowed, f"schatten_norm({p:g}) is off by {error:.2e}")
    for k in range(1, len(truth) + 1):
        error = abs(float(op.ky_fan_norm(k).detach()) - float(truth[:k].sum()))
        expect(error <= k * allowed, f"ky_fan_norm({k}) is off by {error:.2e}")


def _norm(terms: Array) -> float:
    """Return the Frobenius norm, also where squares overflow."""
    peak = float(terms.max(initial=0.0))
    return peak * float(np.linalg.norm(terms / peak)) if peak else 0.0


def _truncation(trial: OperatorTrial) -> None:
    op = trial.operator()
    W, size = dense(op), magnitude(op)
    svd = op.thin_svd()
    _near(trial, dense(svd), W, _filled(size), "thin_svd()")
    decreasing = bool((np.diff(to_array(svd.scale)) <= 0).all() and (svd.scale >= 0).all())
    expect(decreasing, "the values of thin_svd() are not decreasing from above zero")
    for name, frame in (("left", svd.left), ("right", svd.right)):
        error = np.abs(to_array(frame.mT @ frame) - np.eye(svd.rank)).max()
        expect(error <= _roundings(trial), f"the {name} frame of thin_svd() is off by {error:.1e}")
    sigma, norm = singular_values(W), float(np.linalg.norm(size))
    for k in range(1, min(op.shape) + 1):
        cut = op.truncate(k)
        error = float(np.linalg.norm(dense(cut) - W))
        best = float(np.linalg.norm(sigma[k:]))
        expect(cut.rank <= k, f"truncate({k}) has rank {cut.rank}")
        made = type(op).from_dense(op.detach().to_dense(), rank=k)
        apart = float(np.linalg.norm(dense(made) - dense(cut)))
        alike = apart <= 2 * best + _roundings(trial) * norm + _tiny(trial)
        expect(alike, f"from_dense(W, rank={k}) is at {apart:.2e} from truncate({k})")
        expect(
            error <= best + _roundings(trial) * norm + _tiny(trial),
            f"truncate({k}) is at distance {error:.9g}; the nearest of that rank at {best:.9g}",
        )


def _algebra(trial: OperatorTrial) -> None:
    op = trial.operator()
    (m, n), r = op.shape, op.rank
    parts = trial.normal(m, r, salt=5), trial.normal(r, salt=6), trial.normal(n, r, salt=7)
    other = LowRankOperator(*parts)
    W, V = dense(op), dense(other)
    size = magnitude(op) + magnitude(other)
    results = {
        "W + V": (op + other, W + V),
        "V + W": (other + op, W + V),
        "W + W": (op + op, 2 * W),
        "W - V": (op - other, W - V),
        "V - W": (other - op, V - W),
        "-W": (-op, -W),
        "3 W": (3.0 * op, 3 * W),
        "W * 0.5": (op * 0.5, W / 2),
        "-3 W": (-3.0 * op, -3 * W),
        "W * -0.5": (op * -0.5, -W / 2),
        "2 W, an integer": (2 * op, 2 * W),
        "0 W": (0.0 * op, 0 * W),
        "W.mT.mT": (op.mT.mT, W),
        "detach()": (op.detach(), W),
        "detach().clone()": (op.detach().clone(), W),
        "a deep copy": (copy.deepcopy(op.detach()), W),
        "to(dtype=...)": (op.to(dtype=trial.dtype), W),
        "from_dense()": (type(op).from_dense(op.detach().to_dense()), W),
    }
    for name, (found, truth) in results.items():
        _near(trial, dense(found), truth, 3 * _filled(size), name)
    _near(trial, dense(op.mT), W.T, size.T, "W.mT")
    if trial.from_triple:
        cut = trial.made(trial.triple(requires_grad=True)).detach()
        expect(not any(x.requires_grad for x in cut), "detach() keeps gradients")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        _expect_converted(trial, op, W, size, dtype)
    with torch.no_grad():
        op.clone().left.zero_()
    _near(trial, dense(op), W, size, "the operator after writing to a clone")


def _expect_converted(
    trial: OperatorTrial, op: LowRankOperator, W: Array, size: Array, dtype: torch.dtype
) -> None:
    """Expect the matrix in another dtype to differ by the rounding of its three factors."""
    found = op.to(dtype=dtype)
    expect(all(x.dtype == dtype for x in found), f"to(dtype={dtype}) gives {found.dtype}")
    rounded = max(torch.finfo(dtype).eps - trial.eps, 0.0)
    error = np.abs(dense(found) - W)
    allowed = 4 * rounded * size + _tiny(trial) + torch.finfo(dtype).smallest_normal
    expect(bool((error <= allowed).all()), f"to(dtype={dtype}) is off by {float(error.max()):.2e}")


def _elsewhere(trial: OperatorTrial) -> None:
    """Ask the same of the operator in other dtypes, and of long matrices."""
    if not trial.from_triple:
        raise NotApplicable("the operator is not made from a triple")
    other = torch.float32 if trial.dtype == torch.float64 else torch.float64
    for dtype, shape in (
        (other, trial.case.shape),
        (trial.dtype, (2, 30)),
        (other, (30, 2)),
    ):
        case = replace(trial.case, shape=shape, rank=min(trial.case.rank, *shape))
        there = replace(trial, case=case, dtype=dtype)
        for body in (_triple, _agreement, _values, _algebra):
            body(there)
    for half in (torch.bfloat16, torch.float16):
        expect_agreement(replace(trial, dtype=half), replace(trial, dtype=half).operator())


@torch.no_grad()
def _batches(trial: OperatorTrial) -> None:
    if not trial.from_triple:
        raise NotApplicable("the operator is not made from a triple")
    parts = trial.triple(batch=(2,))
    batch = trial.made(parts)
    members = [LowRankOperator(*(x[k] for x in parts)) for k in range(2)]
    W, size = (np.stack([f(op) for op in members]) for f in (dense, magnitude))
    (m, n), (i, j) = trial.case.shape, trial.places
    x, y = trial.normal(2, 3, n), trial.normal(2, m, 3, salt=2)
    X, Y = to_array(x), to_array(y)
    at = slice(None), i.cpu().numpy(), j.cpu().numpy()
    turned, sizes = np.swapaxes(W, 1, 2), np.swapaxes(size, 1, 2)
    compare(trial, "to_dense() of a batch", batch.to_dense(), W, size)
    compare(trial, "linear(x) of a batch", batch.linear(x), X @ turned, abs(X) @ sizes)
    column = np.swapaxes(X, 1, 2)
    compare(trial, "W @ x of a batch", batch @ x.mT, W @ column, size @ abs(column))
    compare(trial, "W.mT @ y of a batch", batch.mT @ y, turned @ Y, sizes @ abs(Y))
    compare(trial, "entries of a batch", batch.entries(i, j), W[at], size[at])
    found, truth = to_array(batch.singular_values()), np.stack([singular_values(w) for w in W])
    k = min(found.shape[-1], truth.shape[-1])
    error = float(np.abs(found[:, :k] - truth[:, :k]).max(initial=0.0))
    allowed = _roundings(trial) * float(np.linalg.norm(size)) + _tiny(trial)
    expect(error <= allowed, f"a singular value of a batch is off by {error:.2e}")


def _never_dense(trial: OperatorTrial) -> None:
    op, (m, n) = trial.operator(), trial.case.shape
    x, rows = trial.normal(4, n), torch.arange(min(m, n), device=trial.device)
    y = trial.normal(m)
    try:
        with forbid_dense((m, n)):
            op.linear(x)
            op.entries(rows, rows)
            _ = op.mT @ y
            op.singular_values()
            _ = op.schatten_norm(1), op.ky_fan_norm(2), op.to_scipy()
            op.truncate(1)
            _ = op + op, -op, 2.0 * op, op.clone()
    except DenseMaterializationError as error:
        raise Violation(str(error)) from error


@torch.no_grad()
def _purity(trial: OperatorTrial) -> None:
    # Detaching would give a plain operator: the class itself is on trial.
    op, (m, n) = trial.operator(), trial.case.shape
    torch.rand(())  # A state that no seed leads to.
    kept, state = [x.detach().clone() for x in op], torch.get_rng_state()
    x, y = trial.normal(n), trial.normal(m)
    given = x.clone(), y.clone()

    def views() -> list[torch.Tensor]:
        products = [op @ x, op.linear(x), op.mT @ y, op.entries(*trial.places)]
        return [*products, op.singular_values(), op.thin_svd().scale, op.schatten_norm(1.0)]

    first = views()
    _ = op.to_dense(), 2 * op, -op, op + op, op.truncate(1), op.to_scipy().matvec(np.ones(n))
    again = views()
    same = all(torch.equal(a, b) for a, b in zip(op, kept, strict=True))
    expect(same, "a method of the operator writes to its factors")
    same = torch.equal(x, given[0]) and torch.equal(y, given[1])
    expect(same, "a method of the operator writes to its argument")
    repeats = all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(first, again, strict=True))
    expect(repeats, "a second call gives another result")
    unchanged = torch.equal(state, torch.get_rng_state())
    expect(unchanged, "a method draws from, or seeds, the global generator")


def _near(trial: OperatorTrial, found: Array, truth: Array, size: Array, what: str) -> None:
    expect(found.shape == truth.shape, f"{what} has shape {found.shape}")
    error, allowed = np.abs(found - truth), _roundings(trial) * size + _tiny(trial)
    expect(bool((error <= allowed).all()), f"{what} is off by {float(error.max()):.2e}")


def _tiny(trial: OperatorTrial) -> float:
    """Return the size below which numbers have no digits in the dtype."""
    return torch.finfo(trial.dtype).smallest_normal * sum(trial.case.shape)


def _filled(size: Array) -> Array:
    """Return the norm of the terms at every entry: rotations spread errors over all of them."""
    return np.full(size.shape, float(np.linalg.norm(size)))


def _roundings(trial: OperatorTrial) -> float:
    return 4 * roundings(trial)


_ONE = (FreeParameters("normal"),)


def _law(
    name: str,
    statement: str,
    body: Callable[[OperatorTrial], None],
    parameters: tuple[FreeParameters, ...],
) -> Law[OperatorTrial]:
    needs = () if name == "triple" else ("triple",)
    return Law(
        name,
        statement,
        body,
        parameters=parameters,
        needs=needs,
        trial=OperatorTrial,
        entry="check_operator",
    )


LAWS = (
    _law(
        "triple",
        "The matrix is left diag(scale) right^T of the triple, in its shape and dtype.",
        _triple,
        _HOSTILE,
    ),
    _law(
        "agreement",
        "@, mT, linear, entries and to_scipy() are those of the dense product, for vectors, rows "
        "and batches.",
        _agreement,
        _HOSTILE,
    ),
    _law(
        "singular_values",
        "Singular values and norms are those of the dense matrix.",
        _values,
        (*_HOSTILE, *(FreeParameters("normal", (size,)) for size in (1e60, 1e-60))),
    ),
    _law(
        "truncation",
        "thin_svd() is an SVD of the matrix; truncate(k) is a nearest matrix of rank k.",
        _truncation,
        _HOSTILE,
    ),
    _law(
        "algebra",
        "Sums, differences, multiples, transposes and copies are those of matrices.",
        _algebra,
        TAME,
    ),
    replace(
        _law(
            "elsewhere",
            "In other dtypes, and for long matrices, products, values and algebra are as here.",
            _elsewhere,
            _ONE,
        ),
        sides=(2, 5),
        max_examples=1,
    ),
    _law("batches", "A batch of triples is a batch of matrices.", _batches, _ONE),
    replace(
        _law(
            "never_dense",
            "Products, entries, norms and truncation allocate no m x n numbers.",
            _never_dense,
            _ONE,
        ),
        sides=(80, 97),
        max_rank=3,
        max_examples=2,
    ),
    _law(
        "purity",
        "No method writes to the factors or its argument, and each repeats.",
        _purity,
        TAME,
    ),
)
