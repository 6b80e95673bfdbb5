"""Features around a parameterization: the product, its set, rows never seen, and new rows."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import lowrank_opt as lo
from lowrank_opt.completion.model.seen import seen_factors
from lowrank_opt.errors import (
    NoRightInverseError,
    NotInSetError,
    ShapeError,
    TargetError,
)
from lowrank_opt.testing import forbid_dense, parametrize_with_checks
from tests.oracles import D, dense, fill, normal, singular_values, tolerance

INNER = {
    "NBLoRA": partial(lo.NBLoRA, radius=0.7),
    "HomogeneousBall": partial(lo.HomogeneousBall, radius=0.7),
    "Factored": lo.Factored,
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)

ROWS = {
    "independent": normal(9, 4, seed=1),
    "dependent": normal(9, 2, seed=1) @ normal(2, 4, seed=2),
    "few rows": normal(3, 4, seed=1),
    "one hot": torch.eye(4, dtype=D)[torch.tensor([0, 1, 1, 2, 2, 2, 0])],
    "zero": torch.zeros(5, 4, dtype=D),
}
every_features = pytest.mark.parametrize("A", ROWS.values(), ids=ROWS)
COLS = normal(8, 3, seed=3)


def between(A: torch.Tensor | None, B: torch.Tensor | None, inner=lo.Factored, **options):
    f, g = 4 if A is None else A.shape[1], 3 if B is None else B.shape[1]
    return fill(lo.Inductive(inner((f, g), 2, dtype=D), A, B, **options), 2.0)


# The laws: independent columns, orthonormal bases, wide features and one side only.


def _features(size: int, cols: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return normal(size, cols, seed=seed).to(dtype)


def thin(inner, shape, rank, *, dtype, orthonormal=False):
    sides = [max(rank, (size + rank) // 2) for size in shape]
    A, B = (_features(m, f, m, dtype) for m, f in zip(shape, sides, strict=True))
    return lo.Inductive(inner(tuple(sides), rank, dtype=dtype), A, B, orthonormal=orthonormal)


def wide(inner, shape, rank, *, dtype):
    m, n = shape
    # Large shapes ask what is allocated: features as large as the matrix say nothing there.
    f = m + 2 if m < 60 else 5
    return lo.Inductive(inner((f, n), rank, dtype=dtype), _features(m, f, 1, dtype))


BALL, BOX = partial(lo.HomogeneousBall, radius=2.0), partial(lo.NBLoRA, radius=3.0)
FACTORIES = [partial(thin, BOX), partial(thin, BOX, orthonormal=True), partial(wide, BALL)]


@parametrize_with_checks(FACTORIES, profile="quick")
def test_laws(make, check) -> None:
    check(make)


# The product.


@every_inner
@every_features
def test_factors_are_the_product(inner, A) -> None:
    module = between(A, COLS, inner)
    expected = A.numpy() @ dense(module.inner()) @ COLS.numpy().T
    np.testing.assert_allclose(dense(module()), expected, rtol=0, atol=1e-13 * 50)
    assert module().rank == 2


@pytest.mark.parametrize(
    "kind",
    [
        lambda A: A.to_sparse(),
        lambda A: A.to_sparse_csc(),
        lambda A: A.numpy(),
        lambda A: sp.csr_array(A.numpy()),
        lambda A: sp.csc_matrix(A.numpy()),
        lambda A: sp.coo_array(A.numpy()),
    ],
    ids=["coo", "csc", "numpy", "scipy csr", "scipy csc matrix", "scipy coo"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support|Sparse CSC tensor support")
def test_every_kind_of_features_is_one_matrix(kind) -> None:
    A = ROWS["one hot"]
    given, plain = between(kind(A), None), between(A, None)
    assert torch.equal(plain().to_dense(), given().to_dense())
    assert given.feasible_set.contains(given())


def test_gradient_is_that_of_the_dense_product() -> None:
    A, B = ROWS["one hot"], COLS
    module, G = between(A.to_sparse(), B), normal(7, 8, seed=5)
    (module().to_dense() * G).sum().backward()
    left, right = module.inner.left.detach().numpy(), module.inner.right.detach().numpy()
    core = A.numpy().T @ G.numpy() @ B.numpy()
    scale = module.inner().scale.detach().numpy()
    expected = core @ right * scale, core.T @ left * scale
    for found, truth in zip(
        (module.inner.left.grad, module.inner.right.grad), expected, strict=True
    ):
        np.testing.assert_allclose(found, truth, atol=1e-11)


def test_features_stay_sparse_and_the_matrix_is_not_formed() -> None:
    one_hot = sp.eye_array(400).tocsr()[np.arange(400) % 30]
    module = lo.Inductive(lo.Factored((400, 300), 2), one_hot)
    with forbid_dense((400, 300)):
        module()
    assert 400 == module.state_dict()["rows.values"].numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, D], ids=str)
@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4])
def test_stays_in_its_set(dtype, orthonormal, size) -> None:
    inner = lo.NBLoRA((4, 3), 2, radius=0.7, dtype=dtype)
    module = fill(lo.Inductive(inner, ROWS["independent"], COLS, orthonormal=orthonormal), size)
    assert module.feasible_set.contains(module())
    assert dtype == module().dtype


@every_inner
@every_features
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_norm_is_at_most_the_product_of_norms(inner, A, p) -> None:
    module = between(A, COLS, inner)
    gain = float(torch.linalg.matrix_norm(A, 2) * torch.linalg.matrix_norm(COLS, 2))
    core = np.linalg.norm(singular_values(module.inner()), p)
    assert np.linalg.norm(singular_values(module()), p) <= gain * core * (1 + 1e-13)


# The set.


@every_features
def test_membership_is_that_of_the_smallest_core(A) -> None:
    ball = lo.SchattenBall(1, 1.0, 2)
    image = lo.ImageSet(ball, A, COLS)
    core = ball.sample((4, 3), generator=torch.Generator().manual_seed(3), dtype=D)
    W = image.embed(core)
    smallest = np.linalg.pinv(A.numpy()) @ W.to_dense().numpy() @ np.linalg.pinv(COLS.numpy()).T
    norm = np.linalg.svd(smallest, compute_uv=False).sum()
    assert image.contains(W)
    assert pytest.approx(max(0.0, 5 * norm - 1), abs=1e-12) == image.excess(5 * W)


def test_outside_the_column_space_is_outside() -> None:
    image = lo.ImageSet(lo.SchattenBall(1, 10.0, 2), torch.ones(4, 1, dtype=D), None)
    assert image.contains(lo.LowRankOperator.from_dense(torch.ones(4, 3, dtype=D)))
    assert not image.contains(lo.LowRankOperator.from_dense(torch.eye(4, 3, dtype=D) * 1e-3))


@pytest.mark.parametrize("kind", ["operator", "dense", "scipy"])
@pytest.mark.parametrize("sparse", [False, True])
def test_lmo_is_the_smallest_inner_product(kind, sparse) -> None:
    A, G = ROWS["independent"], normal(9, 8, seed=9)
    image = lo.ImageSet(lo.SchattenBall(1, 1.0, 2), A.to_sparse() if sparse else A, COLS)
    gradient = {
        "operator": lo.LowRankOperator.from_dense(G),
        "dense": G,
        "scipy": sp.csr_array(G.numpy()),
    }[kind]
    core = np.linalg.svd((A.mT @ G @ COLS).numpy(), compute_uv=False)
    assert pytest.approx(-core[0], rel=1e-12) == float((G * image.lmo(gradient).to_dense()).sum())


def test_orthonormal_set_is_nested_and_norms_are_those_of_the_core() -> None:
    module = between(ROWS["independent"], COLS, INNER["NBLoRA"], orthonormal=True)
    assert isinstance(module.feasible_set, lo.NestedSet)
    core = singular_values(module.inner())
    np.testing.assert_allclose(singular_values(module())[:3], core, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: lo.Weighted(inner, torch.linspace(0.3, 1, 4, dtype=D)),
        lambda inner: lo.Weighted(inner, None, torch.linspace(0.3, 1, 3, dtype=D)),
        lambda inner: lo.Offset(inner),
        lambda inner: lo.NestedSVD((torch.eye(6, 4, dtype=D), torch.eye(5, 3, dtype=D)), inner),
        lambda inner: lo.Inductive(inner, normal(6, 4, seed=8).to_sparse(), None),
    ],
    ids=["row weights", "col weights", "offset", "nested", "inductive"],
)
@pytest.mark.parametrize("rows", [None, "few", "many"])
def test_compositions_inside_keep_their_guarantee(wrap, rows) -> None:
    inner = wrap(lo.HomogeneousBall((4, 3), 2, radius=1.0, dtype=D))
    f = inner.shape[0]
    A = {None: None, "few": normal(3, f, seed=1), "many": normal(9, f, seed=1).to_sparse()}[rows]
    module = fill(lo.Inductive(inner, A), 3.0)
    assert module.feasible_set.contains(module())
    far = 1e3 * module.feasible_set.sample(module.shape, dtype=D)
    assert not module.feasible_set.contains(far + 1e3 * module().detach())


@pytest.mark.parametrize("inner", [INNER["NBLoRA"], INNER["Factored"]])
@pytest.mark.parametrize("digits", [0, 1, 3, 6])
def test_certificates_claim_no_digits_that_features_lose(inner, digits) -> None:
    A, B = (normal(m, 4, seed=m) * torch.logspace(0, -digits, 4, dtype=D) for m in (9, 8))
    module = fill(lo.Inductive(inner((4, 4), 2, dtype=D), A, B), 3.0)
    certificate = module.certify()
    pulled = np.linalg.pinv(A.numpy()) @ dense(module()) @ np.linalg.pinv(B.numpy()).T
    truth = [singular_values(module()), np.linalg.svd(pulled, compute_uv=False)]
    assert certificate.holds
    assert any(
        (x[:2] <= np.array(certificate.singular_values[:2]) * (1 + 1e-15)).all() for x in truth
    )
    assert digits <= 1 or not certificate.exact


# Right inverses.


@every_inner
@every_features
def test_right_inverse_reaches_members(inner, A) -> None:
    module = between(A, COLS, inner)
    target = module.feasible_set.sample(
        module.shape, generator=torch.Generator().manual_seed(1), dtype=D
    )
    module.assign(target)
    np.testing.assert_allclose(dense(module()), dense(target), atol=1e-11)


def test_right_inverse_refuses_what_no_features_give() -> None:
    module = between(ROWS["one hot"], None)
    with pytest.raises(NotInSetError, match="the target must be in ImageSet"):
        module.assign(normal(7, 3))
    module.assign(normal(7, 3), project=True)


def test_right_inverse_needs_independent_columns_or_singular_values() -> None:
    inner = lo.Weighted(lo.HomogeneousBall((4, 3), 2, radius=1.0, dtype=D), torch.rand(4) + 1)
    module = lo.Inductive(inner, ROWS["few rows"])
    assert not module.complete
    with pytest.raises(NoRightInverseError, match="scale features, not the set"):
        module.assign(module().detach())


# Rows that were never seen, and new rows.


def test_cold_rows_are_predicted_from_their_features() -> None:
    groups = torch.arange(30) % 3
    A = torch.nn.functional.one_hot(groups, 3).double()
    truth = A @ normal(3, 2, seed=1) @ normal(2, 12, seed=2)
    rows, cols = torch.meshgrid(torch.arange(20), torch.arange(12), indexing="ij")
    seen = lo.Observations(rows.flatten(), cols.flatten(), truth[:20].flatten(), (30, 12))
    module = lo.Inductive(lo.Factored((3, 12), 2, dtype=D), A)
    result = lo.complete(seen, module, bias=None, tolerance=1e-12)
    found = result.operator.to_dense()[20:]
    torch.testing.assert_close(found, truth[20:], rtol=0, atol=1e-6)


def test_cold_rows_forget_parameters_of_their_own() -> None:
    kinds = torch.nn.functional.one_hot(torch.arange(10) % 2, 2).double()
    A = sp.hstack((sp.eye_array(10), sp.csr_array(kinds.numpy()))).tocsr()
    module = fill(lo.Inductive(lo.Factored((12, 4), 2, dtype=D), A))
    rows, cols = torch.ones(10, dtype=torch.bool), torch.tensor([True, True, True, False])
    rows[7] = False
    op = seen_factors(module, rows, cols)
    core = dense(module.inner())
    np.testing.assert_allclose(dense(op)[7, :3], core[11, :3], atol=1e-14)
    np.testing.assert_allclose(dense(op)[6, :3], core[6, :3] + core[10, :3], atol=1e-14)
    assert not dense(op)[:, 3].any()


@pytest.mark.parametrize("orthonormal", [False, True])
def test_new_rows_share_the_parameters(orthonormal) -> None:
    A, new = ROWS["independent"], normal(2, 4, seed=7)
    module = between(A, COLS, orthonormal=orthonormal)
    both = module.with_features(torch.cat((new, A)), None)
    torch.testing.assert_close(both().to_dense()[2:], module().to_dense())
    # W is linear in the features, whatever was done to them.
    mixed = module.with_features(new[:1] + 2 * A[:1], None)
    expected = both().to_dense()[:1] + 2 * module().to_dense()[:1]
    torch.testing.assert_close(expected, mixed().to_dense())
    fill(module, 1.0, seed=4)
    torch.testing.assert_close(both().to_dense()[2:], module().to_dense())
    assert mixed.feasible_set.contains(mixed())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_sparse_features_are_copied_and_stored(copied) -> None:
    module = between(ROWS["one hot"].to_sparse(), COLS, orthonormal=False)
    other = between(ROWS["one hot"].to_sparse(), COLS)
    fill(other, 5.0, seed=9)
    other.load_state_dict(copied(module).state_dict())
    assert torch.equal(module().to_dense(), other().to_dense())


def test_half_precision_keeps_features_in_float32() -> None:
    inner = lo.NBLoRA((4, 3), 2, radius=0.7, dtype=torch.bfloat16)
    module = lo.Inductive(inner, ROWS["independent"], COLS)
    assert torch.float32 == module.row_features.dtype
    core = dense(module.inner())
    expected = ROWS["independent"].numpy() @ core @ COLS.numpy().T
    # Both factors are rounded once: half a unit of each term.
    terms = np.abs(ROWS["independent"].numpy()) @ np.ones((4, 3)) @ np.abs(COLS.numpy()).T
    error = np.abs(dense(module()) - expected) / terms
    assert error.max() <= tolerance(torch.bfloat16, 2)


# Refusals.


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(5, 3), ShapeError, "row_features must have a column for each row"),
        (torch.ones(5), ShapeError, "features must be a matrix with a line for each row"),
        (torch.ones(0, 4), ShapeError, "features must be a matrix with a line for each row"),
        (torch.full((5, 4), math.nan), TargetError, "features must be finite"),
        (sp.csr_array(np.full((5, 4), np.inf)), TargetError, "features must be finite"),
    ],
)
def test_refuses_features(features, error, message) -> None:
    with pytest.raises(error, match=message):
        lo.Inductive(lo.Factored((4, 3), 2), features)


def test_orthonormal_refuses_dependent_columns() -> None:
    with pytest.raises(TargetError, match="got 4 columns of rank 2"):
        lo.Inductive(lo.Factored((4, 3), 2, dtype=D), ROWS["dependent"], orthonormal=True)
