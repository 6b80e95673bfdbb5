"""Every side is the matrix that it says, however it is asked."""

import numpy as np
import pytest
import scipy.sparse
import torch

from lowrank_opt.sets.complement import Outside, outside
from lowrank_opt.sets.sides import (
    Diagonal,
    Features,
    Frame,
    Identity,
    as_array,
    diagonal,
    feature_svd,
    features,
)
from tests.builders import normal

D, ROWS = torch.float64, 6


def orthonormal(rows, cols):
    return torch.linalg.qr(normal(rows, cols, seed=3)).Q


HOLED = normal(ROWS, 4) * (normal(ROWS, 4, seed=1) > 0)
DEPENDENT = torch.cat((HOLED, HOLED[:, :2]), 1)
# Made with an entry twice, and an explicit zero.
SPARSE = torch.sparse_coo_tensor(
    [[0, 0, 5, 2], [1, 1, 0, 2]], [1.0, 2.0, -4.0, 0.0], (ROWS, 3), check_invariants=True
)
SIDES = {
    "identity": Identity(),
    "weights": Diagonal(torch.linspace(0.5, 3, ROWS, dtype=D)),
    "frame": Frame(orthonormal(ROWS, 3)),
    "features": Features(HOLED),
    "dependent": Features(DEPENDENT),
    "wide": Features(normal(ROWS, 9)),
    "square": Features(normal(ROWS, ROWS)),
    "zero": Features(torch.zeros(ROWS, 2, dtype=D)),
    "sparse": Features(SPARSE.double()),
    "outside": Outside(orthonormal(ROWS, 2)),
    "outside nothing": Outside(torch.zeros(ROWS, 0, dtype=D)),
}
every_side = pytest.mark.parametrize("name", SIDES)


def dense(name):
    """The matrix, written once more."""
    return {
        "identity": lambda: np.eye(ROWS),
        "weights": lambda: np.diag(np.linspace(0.5, 3, ROWS)),
        "frame": lambda: orthonormal(ROWS, 3).numpy(),
        "features": lambda: HOLED.numpy(),
        "dependent": lambda: DEPENDENT.numpy(),
        "wide": lambda: normal(ROWS, 9).numpy(),
        "square": lambda: normal(ROWS, ROWS).numpy(),
        "zero": lambda: np.zeros((ROWS, 2)),
        "sparse": lambda: SPARSE.to_dense().double().numpy(),
        "outside": lambda: np.eye(ROWS) - (orthonormal(ROWS, 2) @ orthonormal(ROWS, 2).mT).numpy(),
        "outside nothing": lambda: np.eye(ROWS),
    }[name]()


def close(expected, found):
    found = found.to_dense() if torch.is_tensor(found) and found.is_sparse else found
    found = found.toarray() if scipy.sparse.issparse(found) else np.asarray(found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@every_side
def test_products(name):
    A, side = dense(name), SIDES[name]
    x, y = normal(A.shape[1], 2), normal(ROWS, 2, seed=1)
    close(A @ x.numpy(), side.times(x))
    close(A.T @ y.numpy(), side.adjoint(y))
    close(np.linalg.pinv(A) @ y.numpy(), side.pull(y))


@every_side
def test_sizes(name):
    A, side = dense(name), SIDES[name]
    sigma = np.linalg.svd(A, compute_uv=False)
    live = sigma[sigma > 1e-9]
    rank = np.linalg.matrix_rank(A)
    assert name == "identity" or A.shape == (side.rows, side.cols)
    assert {"identity": None, "outside": rank}.get(name, ROWS) == side.rank
    assert side.norm == pytest.approx(live.max(initial=0.0) or 1.0)
    # Weights rescale each entry with its rounding.
    exact = name in ("identity", "weights") or not len(live)
    assert side.condition == pytest.approx(1.0 if exact else live[0] / live[-1])
    assert (rank == A.shape[1]) == side.independent
    assert not side.onto or rank == ROWS
    assert not side.isometric or np.allclose(live, 1.0)


@every_side
@pytest.mark.parametrize("seen", [[], [0], [2], [1, 4], range(ROWS)], ids=str)
def test_rows_that_are_met(name, seen):
    mask = torch.zeros(ROWS, dtype=torch.bool)
    mask[list(seen)] = True
    met = SIDES[name].met(mask).numpy()
    needed = (dense(name)[list(seen)] != 0).any(0)
    exact = name in (
        "identity",
        "weights",
        "features",
        "dependent",
        "wide",
        "square",
        "zero",
        "sparse",
    )
    assert np.array_equal(met, needed) if exact else met.all()


OUTER = {
    "dense": normal(2, ROWS, seed=5),
    "sparse": torch.sparse_coo_tensor([[0, 1, 1], [5, 0, 0]], [2.0, -1.0, 4.0], (2, ROWS)),
    "none": None,
}


@every_side
@pytest.mark.parametrize("kind", OUTER)
def test_features_of_features(name, kind):
    outer = OUTER[kind]
    found = SIDES[name].after(outer)
    if name == "identity":
        assert outer is found
        return
    A = dense(name)
    expected = A if outer is None else outer.to_dense().double().numpy() @ A
    close(expected, found)
    assert name != "weights" or (kind != "dense") == found.is_sparse
    assert outer is None or not SIDES[name].after(outer.clone().requires_grad_()).requires_grad


GRADIENTS = {
    "dense": lambda G: G.float(),
    "torch sparse": lambda G: G.float().to_sparse(),
    "array": lambda G: G.float().double().numpy(),
    "scipy": lambda G: scipy.sparse.csr_array(G.float().double().numpy()),
}


@every_side
@pytest.mark.parametrize("kind", GRADIENTS)
def test_reduced_gradients(name, kind):
    G = normal(ROWS, 4, seed=7) * (normal(ROWS, 4, seed=8) > 0)
    found = SIDES[name].reduced(GRADIENTS[kind](G))
    close(dense(name).T @ G.float().double().numpy(), found)
    if kind == "torch sparse" and name in ("identity", "weights", "sparse"):
        assert found.is_sparse


@every_side
def test_only_equal_maps_are_the_same(name):
    same = [other for other in SIDES if SIDES[name].same(SIDES[other])]
    assert [name] == same
    if name == "sparse":
        twice = torch.sparse_coo_tensor([[5, 2, 0], [0, 2, 1]], [-4.0, 0.0, 3.0], (ROWS, 3))
        moved = torch.sparse_coo_tensor([[4, 2, 0], [0, 2, 1]], [-4.0, 0.0, 3.0], (ROWS, 3))
        assert SIDES[name].same(Features(twice.double()))
        assert not SIDES[name].same(Features(moved.double()))
        assert not SIDES[name].same(Features(2 * SPARSE.double()))
        assert not SIDES[name].same(Features(SPARSE.to_dense().double()))
        assert not Features(SPARSE.to_dense().double()).same(SIDES[name])


@every_side
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_keep_the_dtype_and_round_once(name, dtype):
    A, side = dense(name), SIDES[name]
    for product, B in ((side.times, A), (side.adjoint, A.T)):
        x = normal(B.shape[1], 2).to(dtype)
        found = product(x)
        assert dtype == found.dtype
        expected = B @ x.double().numpy()
        slack = (
            torch.finfo(dtype).eps
            * (np.abs(expected) + 1e-6)
            * (1 if dtype == torch.bfloat16 else 8)
        )
        assert (np.abs(found.double().numpy() - expected) <= slack).all()


def test_products_are_differentiable():
    for name, side in SIDES.items():
        x = normal(dense(name).shape[1], 2).requires_grad_()
        close(dense(name).T @ np.ones((ROWS, 2)), torch.autograd.grad(side.times(x).sum(), x)[0])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_svd_of_features_is_cut_to_their_rank(kind):
    A = DEPENDENT.to_sparse() if kind == "sparse" else DEPENDENT
    U, sigma, V = feature_svd(A)
    assert np.linalg.matrix_rank(DEPENDENT.numpy()) == len(sigma) < 6
    close(DEPENDENT.numpy(), (U * sigma) @ V.mT)
    close(np.eye(len(sigma)), V.mT @ V)


def test_small_singular_values_count_from_the_rounding_on():
    # Of a 6 x 2 matrix: six units of rounding, relative to the largest.
    eps = torch.finfo(D).eps
    kept, lost = (
        feature_svd(torch.eye(ROWS, 2, dtype=D) * torch.tensor([8.0, 8 * 6 * eps * x]).double())
        for x in (1.01, 0.99)
    )
    assert (2, 1) == (len(kept.values), len(lost.values))


def test_makers_name_the_missing_matrix():
    for make in (diagonal, features, outside):
        assert isinstance(make(None), Identity)
    assert isinstance(diagonal(torch.ones(2)), Diagonal)
    assert isinstance(features(torch.ones(2, 1)), Features)
    assert isinstance(outside(torch.eye(2, 1)), Outside)


def test_arrays_of_numpy_and_scipy():
    assert isinstance(as_array(HOLED), np.ndarray)
    assert {as_array(x).dtype for x in (HOLED.float(), SPARSE.float())} == {np.dtype(np.float64)}
    found = as_array(SPARSE)
    assert scipy.sparse.issparse(found)
    assert "csr" == found.format
    close(SPARSE.to_dense().numpy(), found)
