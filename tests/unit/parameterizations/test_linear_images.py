"""Sets of matrices A C B^T against dense computations, for every side and kind of gradient."""

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_opt as lo
from tests.oracles import D, normal

M, N = 6, 5

SIDES = {
    "weighted": lambda ball: lo.WeightedSet(ball, torch.linspace(0.5, 2, M, dtype=D), None),
    "nested": lambda ball: lo.NestedSet(ball, torch.eye(M, 4, dtype=D), torch.eye(N, 3, dtype=D)),
    "features": lambda ball: lo.ImageSet(ball, normal(M, 4), normal(N, 3).to_sparse()),
    "one side": lambda ball: lo.ImageSet(ball, None, normal(N, 3)),
}
KINDS = {
    "operator": lo.LowRankOperator.from_dense,
    "dense": lambda G: G,
    "sparse": lambda G: G.to_sparse(),
    "scipy": lambda G: scipy.sparse.csr_array(G.numpy()),
}


def dense_side(side, size: int) -> np.ndarray:
    A = torch.eye(size) if side.cols is None else side.matrix
    return (A.to_dense() if A.is_sparse else A).double().numpy()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", SIDES.values(), ids=SIDES)
def test_lmo_of_a_linear_image_does_not_depend_on_the_kind_of_gradient(make, kind):
    feasible_set = make(lo.SchattenBall(1.0, 2.0, 3))
    G = normal(M, N)
    found = feasible_set.lmo(kind(G)).to_dense()
    A, B = (dense_side(x, size) for x, size in zip(feasible_set.sides, (M, N), strict=True))
    # The nuclear ball's minimiser is the leading pair of A^T G B.
    U, _, Vh = np.linalg.svd(A.T @ G.numpy() @ B)
    expected = -2 * np.outer(A @ U[:, 0], B @ Vh[0])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
