"""The operator equals its dense matrix, whatever the triple."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lowrank_opt import LowRankOperator
from tests.oracles import D, dense, normal

EPS = torch.finfo(D).eps


@st.composite
def operators(draw):
    m, n, r = (draw(st.integers(1, 6)) for _ in range(3))
    seed = draw(st.integers(0, 2**32 - 1))
    left, right = normal(m, r, seed=seed), normal(n, r, seed=seed + 1)
    # Column sizes may differ by anything, as long as the product stays representable.
    exponents = draw(st.lists(st.integers(-140, 140), min_size=r, max_size=r))
    size = 10.0 ** torch.tensor(exponents, dtype=D)
    scale = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=r, max_size=r)))
    return LowRankOperator(left * size, scale.double(), right / size)


def cancelling():
    a = normal(3, 1)
    return LowRankOperator(
        torch.cat((a, a), 1), torch.tensor([1.0, -1.0]).double(), torch.ones(2, 2).double()
    )


@given(operators())
@example(cancelling())
def test_singular_values_are_those_of_the_dense_matrix(op):
    # Relative to the size of the terms: they may cancel.
    terms = (op.left.norm(dim=0) * op.scale.abs() * op.right.norm(dim=0)).sum()
    expected = np.linalg.svd(dense(op), compute_uv=False)[: len(op.singular_values())]
    np.testing.assert_allclose(
        op.singular_values(), expected, rtol=0, atol=100 * EPS * float(terms)
    )


@given(operators())
def test_thin_svd_is_the_same_matrix_in_orthonormal_factors(op):
    svd = op.thin_svd()
    terms = float((op.left.norm(dim=0) * op.scale.abs() * op.right.norm(dim=0)).sum())
    np.testing.assert_allclose(dense(svd), dense(op), rtol=0, atol=100 * EPS * terms)
    np.testing.assert_allclose(svd.left.mT @ svd.left, np.eye(svd.rank), rtol=0, atol=1e-14)
    np.testing.assert_allclose(svd.right.mT @ svd.right, np.eye(svd.rank), rtol=0, atol=1e-14)


@given(operators(), st.integers(0, 2**32 - 1))
def test_adjoint(op, seed):
    x, y = normal(op.shape[1], seed=seed), normal(op.shape[0], seed=seed + 1)
    size = float((op.left.norm(dim=0) * op.scale.abs() * op.right.norm(dim=0)).sum())
    slack = 100 * EPS * size * float(x.norm() * y.norm())
    assert abs(float(y @ (op @ x) - x @ (op.mT @ y))) <= slack


@given(operators(), st.floats(1, 20))
def test_schatten_norms_decrease_in_p(op, p):
    assert float(op.schatten_norm(p)) <= float(op.schatten_norm(1)) * (1 + 100 * EPS)
    assert float(op.schatten_norm(p)) >= float(op.schatten_norm(float("inf"))) * (1 - 100 * EPS)
