"""The factor triple against numpy on the dense product."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch.func import vmap

from lowrank_opt import LowRankOperator
from lowrank_opt.errors import RankError, ShapeError
from tests.builders import normal
from tests.oracles import dense

D = torch.float64
SHAPES = [(1, 1, 1), (1, 6, 1), (7, 1, 1), (5, 4, 2), (4, 4, 4), (300, 7, 7), (3, 4, 6)]


def operator(m, n, r, dtype=D):
    return LowRankOperator(normal(m, r), normal(r, seed=1), normal(n, r, seed=2)).to(dtype=dtype)


@pytest.fixture(params=SHAPES, ids=str)
def op(request):
    return operator(*request.param)


def test_to_dense(op):
    np.testing.assert_allclose(op.to_dense(), dense(op), rtol=0, atol=1e-13)


def test_product_with_vector(op):
    x = normal(op.shape[1], seed=3)
    np.testing.assert_allclose(op @ x, dense(op) @ x.numpy(), rtol=0, atol=1e-12)


def test_product_with_matrix(op):
    X = normal(op.shape[1], 3, seed=3)
    np.testing.assert_allclose(op @ X, dense(op) @ X.numpy(), rtol=0, atol=1e-12)


def test_transpose(op):
    assert op.mT.shape == op.shape[::-1]
    np.testing.assert_allclose(dense(op.mT), dense(op).T, rtol=0, atol=1e-13)


def test_linear(op):
    x = normal(2, 3, op.shape[1], seed=3)
    np.testing.assert_allclose(op.linear(x), x.numpy() @ dense(op).T, rtol=0, atol=1e-12)


def test_entries(op):
    rows = torch.arange(op.shape[0]).repeat(2)
    cols = torch.arange(len(rows)) * 5 % op.shape[1]
    expected = dense(op)[rows.numpy(), cols.numpy()]
    np.testing.assert_allclose(op.entries(rows, cols), expected, rtol=0, atol=1e-13)


def test_no_entries():
    none = torch.zeros(0, dtype=torch.int64)
    assert (0,) == tuple(operator(3, 2, 1).entries(none, none).shape)


def test_entries_in_blocks_are_those_at_once(monkeypatch):
    op = operator(6, 5, 3)
    rows, cols = torch.arange(17) % 6, torch.arange(17) % 5
    at_once = op.entries(rows, cols)
    monkeypatch.setattr("lowrank_opt.operator._GATHER_BLOCK", 12)
    assert torch.equal(at_once, op.entries(rows, cols))


@pytest.mark.parametrize(("rows", "cols"), [((3,), (1,)), ((2,), (3,)), ((2, 2), (2, 2))])
def test_entries_refuse_unequal_index_vectors(rows, cols):
    rows, cols = torch.zeros(rows, dtype=torch.int64), torch.zeros(cols, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"rows and cols must be index vectors of equal length"):
        operator(3, 3, 1).entries(rows, cols)


def test_singular_values(op):
    expected = np.linalg.svd(dense(op), compute_uv=False)[: min(*op.shape, op.rank)]
    np.testing.assert_allclose(op.singular_values(), expected, rtol=0, atol=1e-13 * expected[0])


@pytest.mark.parametrize("p", [1, 1.7, 2, 3, math.inf])
def test_schatten_norm(op, p):
    expected = np.linalg.norm(np.linalg.svd(dense(op), compute_uv=False), p)
    assert float(op.schatten_norm(p)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 100])
def test_ky_fan_norm(op, k):
    expected = np.linalg.svd(dense(op), compute_uv=False)[:k].sum()
    assert float(op.ky_fan_norm(k)) == pytest.approx(expected, rel=1e-12)


def test_thin_svd(op):
    svd = op.thin_svd()
    np.testing.assert_allclose(dense(svd), dense(op), rtol=0, atol=1e-12)
    np.testing.assert_allclose(svd.left.mT @ svd.left, np.eye(svd.rank), rtol=0, atol=1e-13)
    np.testing.assert_allclose(svd.right.mT @ svd.right, np.eye(svd.rank), rtol=0, atol=1e-13)
    assert bool((svd.scale.diff() <= 0).all())
    assert bool((svd.scale >= 0).all())


def test_thin_svd_of_zero_is_orthonormal():
    op = LowRankOperator(torch.zeros(4, 2), torch.ones(2), torch.zeros(3, 2)).thin_svd()
    torch.testing.assert_close(op.left.mT @ op.left, torch.eye(2))
    assert 0.0 == float(op.scale.sum())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_truncate_is_eckart_young(k):
    op = operator(6, 5, 3)
    U, s, Vh = np.linalg.svd(dense(op))
    np.testing.assert_allclose(dense(op.truncate(k)), U[:, :k] * s[:k] @ Vh[:k], rtol=0, atol=1e-13)
    missing = np.linalg.norm(dense(op) - dense(op.truncate(k)), 2)
    assert missing == pytest.approx(s[k], abs=1e-13)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_truncate_refuses_bad_rank(k):
    with pytest.raises(RankError, match=rf"k must be in 1\.\.4 for a 5 x 4 matrix; got k={k}"):
        operator(5, 4, 2).truncate(k)


def test_from_dense_keeps_everything():
    W = normal(5, 3)
    torch.testing.assert_close(LowRankOperator.from_dense(W).to_dense(), W)


@pytest.mark.parametrize("rank", [0, -2])
def test_from_dense_refuses_bad_rank(rank):
    with pytest.raises(RankError, match=rf"rank must be at least 1; got rank={rank}"):
        LowRankOperator.from_dense(normal(5, 3), rank)


def test_to_scipy(op):
    linear = op.to_scipy()
    x, X, Y = (
        normal(op.shape[1]).numpy(),
        normal(op.shape[1], 2).numpy(),
        normal(op.shape[0], 2).numpy(),
    )
    np.testing.assert_allclose(linear @ x, dense(op) @ x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(linear @ X, dense(op) @ X, rtol=0, atol=1e-12)
    np.testing.assert_allclose(linear.T @ Y, dense(op).T @ Y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(linear.rmatvec(Y[:, 0]), dense(op).T @ Y[:, 0], rtol=0, atol=1e-12)


def test_sums_and_multiples():
    a, b = operator(4, 3, 2), operator(4, 3, 1)
    np.testing.assert_allclose(
        dense(2.5 * a - b + (-a) * 0.5), 2 * dense(a) - dense(b), rtol=0, atol=1e-14
    )


def test_sum_refuses_unequal_shapes():
    with pytest.raises(ShapeError, match=r"equal shapes; got \(4, 3\) and \(3, 4\)"):
        operator(4, 3, 1) + operator(3, 4, 1)


def test_singular_values_have_the_gradient_of_dense_svd():
    L, s, R = (
        normal(5, 3).requires_grad_(),
        normal(3, seed=1).requires_grad_(),
        normal(4, 3, seed=2).requires_grad_(),
    )
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=D)
    expected = torch.autograd.grad(
        (torch.linalg.svdvals(L * s @ R.mT)[:3] * weights).sum(), (L, s, R)
    )
    got = torch.autograd.grad(
        (LowRankOperator(L, s, R).singular_values() * weights).sum(), (L, s, R)
    )
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_norms_gradcheck(p):
    tensors = (
        normal(4, 2).requires_grad_(),
        normal(2, seed=1).requires_grad_(),
        normal(3, 2, seed=2).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda *t: LowRankOperator(*t).schatten_norm(p), tensors)


def test_singular_values_with_gradient_are_those_without():
    left = normal(6, 4)
    scale = torch.tensor([1.0, 1e-17, 1e-18, 0.0], dtype=D)
    without = LowRankOperator(left, scale, normal(5, 4, seed=1)).singular_values()
    op = LowRankOperator(left.requires_grad_(), scale, normal(5, 4, seed=1))
    assert torch.equal(without, op.singular_values().detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_is_computed_in_float64(dtype):
    op = operator(6, 5, 3, dtype)
    expected = np.linalg.svd(dense(op), compute_uv=False)[:3]
    np.testing.assert_allclose(op.singular_values().double(), expected, rtol=torch.finfo(dtype).eps)
    assert {dtype} == {x.dtype for x in op.thin_svd()}


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-160, 1e150])
def test_norms_of_extreme_sizes(size):
    op = operator(5, 4, 2) * size
    expected = float(np.linalg.norm(dense(operator(5, 4, 2)))) * size
    assert float(op.schatten_norm(2)) == pytest.approx(expected, rel=1e-12)


def test_precise_scale_is_kept_in_products():
    # Factors of half precision with a float32 scale: the triple that export returns.
    op = LowRankOperator(torch.ones(2, 1).half(), torch.tensor([0.1]), torch.ones(3, 1).half())
    assert torch.float16 == (op @ torch.ones(3).half()).dtype == op.to_dense().dtype
    assert torch.float16 == op.linear(torch.ones(4, 3).half()).dtype
    assert torch.float16 == op.entries(torch.tensor([0]), torch.tensor([1])).dtype


@pytest.fixture
def stack():
    return LowRankOperator(normal(2, 4, 2), normal(2, 2, seed=1), normal(2, 5, 2, seed=2))


def members(stack):
    return [LowRankOperator(*parts) for parts in zip(*stack, strict=True)]


@pytest.mark.parametrize(
    "method",
    [
        lambda op: op @ torch.arange(5.0, dtype=D),
        lambda op: op @ torch.eye(5, dtype=D),
        lambda op: op.entries(torch.tensor([0, 3]), torch.tensor([4, 1])),
        lambda op: op.linear(torch.eye(5, dtype=D)),
        lambda op: op.to_dense(),
        lambda op: op.mT.to_dense(),
        lambda op: op.singular_values(),
        lambda op: op.schatten_norm(1),
        lambda op: op.ky_fan_norm(1),
        lambda op: op.thin_svd().to_dense(),
        lambda op: op.truncate(1).to_dense(),
    ],
    ids=[
        "vector",
        "matmul",
        "entries",
        "linear",
        "dense",
        "mT",
        "values",
        "norm",
        "fan",
        "svd",
        "cut",
    ],
)
def test_stack_of_operators_acts_as_its_members(stack, method):
    expected = torch.stack([method(op) for op in members(stack)])
    torch.testing.assert_close(method(stack), expected)


def test_vmap_maps_over_a_stack(stack):
    torch.testing.assert_close(vmap(lambda op: op.to_dense())(stack), stack.to_dense())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda op: pickle.loads(pickle.dumps(op))])
def test_copies_are_equal_and_apart(copier):
    op = operator(3, 2, 1)
    other = copier(op)
    other.left.zero_()
    assert 0.0 < float(op.left.abs().sum())


def test_clone_has_its_own_memory():
    op = operator(3, 2, 1)
    op.clone().left.zero_()
    assert 0.0 < float(op.left.abs().sum())


def test_operator_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        operator(3, 2, 1).left = torch.zeros(3, 1)


def test_operator_unpacks_as_triple():
    left, scale, right = operator(5, 4, 2)
    assert [(5, 2), (2,), (4, 2)] == [tuple(x.shape) for x in (left, scale, right)]


def test_repr_prints_no_numbers():
    assert "LowRankOperator(5 x 4, rank <= 2, torch.float64, cpu)" == repr(operator(5, 4, 2))


@pytest.mark.parametrize(
    ("left", "scale", "right", "message"),
    [
        (
            torch.ones(3, 1),
            torch.ones(1),
            torch.ones(1, 2, 1),
            r"a factor triple is left \(\.\.\., m, r\)",
        ),
        (
            torch.ones(3),
            torch.ones(1),
            torch.ones(2, 1),
            r"a factor triple is left \(\.\.\., m, r\)",
        ),
        (
            torch.ones(3, 2),
            torch.ones(1),
            torch.ones(2, 2),
            r"the same number of columns; got left \(3, 2\)",
        ),
        (
            torch.ones(3, 1),
            torch.ones(1),
            torch.ones(2, 1).half(),
            r"one floating dtype; got torch.float32 and torch.float16",
        ),
        (
            torch.ones(3, 1).int(),
            torch.ones(1),
            torch.ones(2, 1).int(),
            r"floating dtype; got torch.int32",
        ),
        (
            torch.ones(3, 1),
            torch.ones(1, device="meta"),
            torch.ones(2, 1),
            r"on one device; got cpu, meta, cpu",
        ),
    ],
    ids=["batch of one side", "axes", "columns", "dtypes", "integers", "devices"],
)
def test_triple_that_does_not_fit_is_refused(left, scale, right, message):
    with pytest.raises(ShapeError, match=message):
        LowRankOperator(left, scale, right)


def test_large_operator_singular_values():
    op = operator(4096, 32, 32, torch.float32)
    expected = np.linalg.svd(dense(op), compute_uv=False)
    np.testing.assert_allclose(op.singular_values().double(), expected, rtol=1e-5)
