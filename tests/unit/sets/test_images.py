"""Sets of matrices A C B^T, shifted ones and complements, against dense pseudo-inverses."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.sets.complement import term_sizes
from lowrank_opt.sets.image import image_of
from tests.oracles import D, dense, normal

M, N = 6, 5
NUCLEAR, BALL = lo.SchattenBall(1.0, 2.0, 2), lo.SchattenBall(math.inf, 2.0, 3)
a, b = torch.linspace(0.5, 2, M, dtype=D), torch.linspace(3, 1, N, dtype=D)
U, V = torch.linalg.qr(normal(M, 4)).Q, torch.linalg.qr(normal(N, 3)).Q
A, B = normal(M, 4, seed=2), normal(N, 3, seed=3)
TWICE = torch.cat((A, A[:, :1]), 1)
OFFSET = lo.LowRankOperator.from_dense(normal(M, N, seed=4)).truncate(2)

# A set and its two matrices.
IMAGES = {
    "rows": (lo.WeightedSet(NUCLEAR, a, None), torch.diag(a), torch.eye(N)),
    "weights": (lo.WeightedSet(BALL, a, b), torch.diag(a), torch.diag(b)),
    "frames": (lo.NestedSet(BALL, U, V), U, V),
    "features": (lo.ImageSet(BALL, A, B), A, B),
    "one side": (lo.ImageSet(NUCLEAR, None, B), torch.eye(M), B),
    "dependent": (lo.ImageSet(BALL, TWICE, B.to_sparse()), TWICE, B),
    "complement": (
        lo.ComplementSet(BALL, U[:, :2], V[:, :1]),
        torch.eye(M) - (U[:, :2] @ U[:, :2].mT),
        torch.eye(N) - V[:, :1] @ V[:, :1].mT,
    ),
    "left complement": (
        lo.ComplementSet(NUCLEAR, U[:, :1], None),
        torch.eye(M) - U[:, :1] @ U[:, :1].mT,
        torch.eye(N),
    ),
}
every_image = pytest.mark.parametrize(("image", "A", "B"), IMAGES.values(), ids=IMAGES)


def norm(x, p=math.inf):
    return float(np.linalg.norm(np.linalg.svd(x, compute_uv=False), p))


@every_image
def test_core_and_embedding(image, A, B):
    A, B, W = A.double().numpy(), B.double().numpy(), normal(M, N, seed=9)
    core = np.linalg.pinv(A, rcond=1e-12) @ W.numpy() @ np.linalg.pinv(B, rcond=1e-12).T
    op = lo.LowRankOperator.from_dense(W)
    np.testing.assert_allclose(dense(image.core(op)), core, atol=1e-11)
    np.testing.assert_allclose(dense(image.embed(image.core(op))), A @ core @ B.T, atol=1e-11)
    # Whatever the dtype, what is multiplied and divided is not rounded once more.
    assert {D} == {image.core(op.to(dtype=torch.float32)).dtype, image.embed(image.core(op)).dtype}


@every_image
def test_excess_and_size(image, A, B):
    A, B, W = A.double().numpy(), B.double().numpy(), 3 * normal(M, N, seed=9)
    op = lo.LowRankOperator.from_dense(W)
    core = np.linalg.pinv(A, rcond=1e-12) @ W.numpy() @ np.linalg.pinv(B, rcond=1e-12).T
    gain = norm(A) * norm(B)
    outside = np.linalg.norm(W.numpy() - A @ core @ B.T) / gain
    sigma = np.linalg.svd(core, compute_uv=False)
    inner = image.inner
    values = max([np.linalg.norm(sigma[: inner.rank], inner.p) - 2.0, *sigma[inner.rank :]])
    assert image.excess(op) == pytest.approx(max(values, outside, 0.0), rel=1e-9)
    assert image.frobenius_bound == pytest.approx(gain * inner.frobenius_bound)


@pytest.mark.parametrize("name", ["frames", "features", "one side", "dependent", "complement"])
@pytest.mark.parametrize("rtol", [1e-3, 1e-9])
def test_what_is_outside_is_compared_with_the_size_of_a_member(name, rtol):
    image, A, B = IMAGES[name]
    A, B = A.double().numpy(), B.double().numpy()
    member = image.sample((M, N), generator=torch.Generator().manual_seed(1), dtype=D) * 0.1
    W, rest = dense(member), normal(M, N, seed=11).numpy()
    rest -= A @ np.linalg.pinv(A, rcond=1e-12) @ rest @ np.linalg.pinv(B.T, rcond=1e-12) @ B.T
    rest /= np.linalg.norm(rest)
    size = 2.0 * image.condition * norm(A) * norm(B)
    for factor, inside in ((0.99, True), (1.01, False)):
        moved = lo.LowRankOperator.from_dense(torch.from_numpy(W + factor * rtol * size * rest))
        assert image.excess(moved) == pytest.approx(factor * rtol * size / (norm(A) * norm(B)))
        assert inside == image.contains(moved, rtol=rtol)
    assert not image.contains(moved)


@every_image
def test_tolerance_is_the_inner_one_times_the_condition(image, A, B):
    A, B = A.double(), B.double()
    sizes = {x: float(torch.linalg.svdvals(y)[0]) for x, y in (("A", A), ("B", B))}
    live = [torch.linalg.svdvals(x) for x in (A, B)]
    conditions = [float(s[0] / s[s > 1e-9][-1]) for s in live]
    weighted = isinstance(image, lo.WeightedSet)
    condition = 1.0 if weighted else math.prod(conditions)
    assert image.condition == pytest.approx(condition)
    op = lo.LowRankOperator.from_dense(normal(M, N))
    assert image.unit(op) == pytest.approx(condition * 2.0)
    assert sizes["A"] > 0
    # A core just outside, by so many units of rounding.
    inner = lo.LowRankOperator(
        *(torch.from_numpy(np.ascontiguousarray(x)) for x in ends(A, B, image.inner.p))
    )
    unit = 16 * math.sqrt(image.rank) * 2.0**-52 * condition
    for factor, inside in ((0.7, True), (1.5 if condition < 2 else condition * 1.5, False)):
        W = image.embed(inner * (1 + factor * unit))
        assert inside == image.contains(W)


def ends(A, B, p):
    """A core of one singular value, 2, that the sides do not lose."""
    U, V = (torch.linalg.svd(x).Vh[0].numpy()[:, None] for x in (A, B))
    return U, np.array([2.0]), V


@every_image
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("factor", [0, 1, 2])
def test_what_is_not_finite_is_no_member(image, A, B, value, factor):
    triple = [1e-9 * normal(M, 1), torch.ones(1, dtype=D), normal(N, 1)]
    triple[factor] = torch.full_like(triple[factor], value)
    for each in (image, lo.ImageSet(BALL, torch.zeros(M, 1, dtype=D), None)):
        assert not each.contains(lo.LowRankOperator(*triple))


def test_sets_are_shown_with_their_sides():
    ball = repr(BALL)
    assert [
        f"NestedSet(inner={ball}, left=6 x 4, right=5 x 3)",
        f"ImageSet(inner={NUCLEAR}, left=identity, right=5 x 3)",
        f"ComplementSet(inner={NUCLEAR}, left=6 x 1, right=none)",
        f"WeightedSet(inner={NUCLEAR}, row_weights=6 values from 0.5 to 2.0, col_weights=None)",
    ] == [repr(IMAGES[name][0]) for name in ("frames", "one side", "left complement", "rows")]


@every_image
@pytest.mark.parametrize("dtype", [torch.float32, D, None])
def test_samples_are_members_of_the_asked_dtype(image, A, B, dtype):
    g = torch.Generator().manual_seed(0)
    found = [image.sample((M, N), generator=g, dtype=dtype) for _ in range(4)]
    assert {dtype or torch.get_default_dtype()} == {op.dtype for op in found}
    assert {(M, N)} == {op.shape for op in found}
    assert all(map(image.contains, found))
    sizes = [image.inner.excess(3 * image.core(op)) for op in found]
    assert max(sizes) > 1.0


KINDS = {
    "operator": lo.LowRankOperator.from_dense,
    "dense": lambda G: G,
    "sparse": lambda G: G.to_sparse(),
    "csr": lambda G: G.to_sparse_csr(),
    "scipy": lambda G: scipy.sparse.csr_array(G.double().numpy()),
}


@every_image
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_linear_minimisation(image, A, B, kind, dtype):
    if kind == "csr" and not isinstance(image, lo.ComplementSet):
        return
    A, B, G = A.double().numpy(), B.double().numpy(), normal(M, N, seed=12).to(dtype)
    found = image.lmo(KINDS[kind](G))
    assert (D if kind in ("scipy",) else dtype) == found.dtype or isinstance(
        image, lo.ComplementSet
    )
    sigma = np.linalg.svd(A.T @ G.double().numpy() @ B, compute_uv=False)[: image.inner.rank]
    least = -2.0 * np.linalg.norm(sigma, math.inf if image.inner.p == 1 else 1)
    accuracy = 1e-5 if dtype == torch.float32 else 1e-10
    assert np.sum(G.double().numpy() * dense(found)) == pytest.approx(least, rel=accuracy)
    assert image.contains(found.to(dtype=D), rtol=accuracy)


# Answers about other sets.


@every_image
def test_averages_between_equal_sides_are_inner_ones(image, A, B):
    smaller = image.scaled(0.5)
    mean = image.averaged([image, smaller], [0.5, 0.5], rank=4)
    sides = [x.cols for x in image.sides if x.cols is not None]
    assert type(image) is type(mean)
    assert 1.5 == mean.inner.radius
    assert min([4, *sides]) == mean.inner.rank
    other = lo.NestedSet(BALL, U[:, :2], V[:, :2])
    assert lo.RankAtMost(4) == image.averaged([image, other], [0.5, 0.5], rank=4)


def test_averages_between_other_sides_have_a_rank_only():
    one, other = lo.ImageSet(BALL, A, B), lo.ImageSet(BALL, A, 2 * B)
    assert lo.RankAtMost(5) == one.averaged([one, other], [0.5, 0.5], rank=5)
    assert lo.RankAtMost(6) == one.averaged([one, other], [0.5, 0.5], rank=9)


@every_image
def test_singular_values_of_members(image, A, B):
    isometric = not isinstance(image, lo.WeightedSet | lo.ImageSet)
    assert isometric == image.truncates
    truncated = image.truncated(1)
    assert 1 == truncated.rank
    assert (type(image) is type(truncated)) == isometric
    assert 1 == image.with_rank(1).inner.rank
    W = lo.LowRankOperator.from_dense(normal(M, N))
    op, spectral = image.as_spectral(W)
    assert image.inner == spectral
    expected = dense(W) if isometric else dense(image.core(W))
    np.testing.assert_allclose(dense(op), expected, atol=1e-11)


@pytest.mark.parametrize(("condition", "known"), [(15.9, True), (16.1, False)])
def test_ill_conditioned_sides_have_no_spectral_form(condition, known):
    features = torch.eye(M, 2, dtype=D) * torch.tensor([condition, 1.0])
    image = lo.ImageSet(BALL, features, None)
    assert known == (image.as_spectral(lo.LowRankOperator.from_dense(normal(M, N))) is not None)


def test_weighted_sets_know_what_they_weigh():
    weighted = IMAGES["weights"][0]
    twice = lo.WeightedSet(weighted, a, None)
    assert (BALL, a, b) == weighted.unweighted
    assert weighted.of_singular_values
    assert not twice.of_singular_values
    assert not lo.WeightedSet(IMAGES["frames"][0], a, None).of_singular_values
    assert (2.0, "weighted spectral <= 2") == (weighted.size, weighted.bound)
    assert "weighted spectral" == weighted.norm_name
    assert "spectral <= 2 between features" == IMAGES["features"][0].bound
    assert "spectral <= 2" == IMAGES["frames"][0].bound
    assert "none" == lo.WeightedSet(lo.RankAtMost(2), a, None).bound


@pytest.mark.parametrize("sides", [(A, B), (None, B), (A, None)])
def test_svds_are_of_the_features_that_there_are(sides):
    found = lo.ImageSet(BALL, *sides).svds
    assert [x is None for x in sides] == [x is None for x in found]
    for matrix, svd in zip(sides, found, strict=True):
        if svd is not None:
            np.testing.assert_allclose(
                (svd.basis * svd.values) @ svd.weights.mT, matrix, atol=1e-12
            )


# Images of images.


INNER = {
    "ball": BALL,
    "rows": lo.WeightedSet(BALL, torch.linspace(1, 2, 4, dtype=D), None),
    "weights": lo.WeightedSet(BALL, torch.linspace(1, 2, 4), torch.linspace(3, 1, 3)),
    "features": lo.ImageSet(BALL, normal(4, 4), normal(3, 3).to_sparse()),
    "shifted": lo.ShiftedSet(BALL, lo.LowRankOperator.from_dense(normal(4, 3))),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("left", [A, A[:, [0, 1, 2, 0]], None], ids=["left", "dependent", "none"])
@pytest.mark.parametrize("right", [B.to_sparse(), None], ids=["right", "none"])
def test_images_of_members_are_members_of_the_image(inner, left, right):
    image = image_of(inner, left, right)
    member = inner.sample((4, 3), generator=torch.Generator().manual_seed(0), dtype=D)
    C = dense(member)
    C = C if left is None else left.numpy() @ C
    C = C if right is None else C @ right.to_dense().numpy().T
    W = lo.LowRankOperator.from_dense(torch.from_numpy(C))
    assert image.contains(W, rtol=1e-11)
    assert not image.contains(100 * W, rtol=1e-3)
    shape = tuple(C.shape)
    assert image.contains(image.lmo(normal(*shape)), rtol=1e-11)
    assert (left is right is None) == (image is inner)
    # As simple as there are: features of a ball, and an offset.
    core = image.inner if isinstance(image, lo.ShiftedSet) else image
    assert image is inner or core.inner is BALL


def test_dependent_images_of_other_sets_have_a_rank_only():
    class Custom(lo.FeasibleSet):
        rank = 2
        excess = unit = project = sample = lmo = lambda *_: None

    assert lo.RankAtMost(2) == image_of(Custom(), TWICE, B)
    assert lo.RankAtMost(2) == image_of(Custom(), A, torch.cat((B, B), 1))
    assert isinstance(image_of(Custom(), A, B), lo.ImageSet)


# Shifted sets.


def test_a_shifted_set_answers_for_its_offset():
    shifted = lo.ShiftedSet(NUCLEAR, OFFSET)
    assert 4 == shifted.rank
    assert 2.0 == shifted.size
    assert ("shifted nuclear", "shifted nuclear <= 2") == (shifted.norm_name, shifted.bound)
    assert "none" == lo.ShiftedSet(lo.RankAtMost(1), OFFSET).bound
    size = np.linalg.norm(dense(OFFSET))
    assert shifted.frobenius_bound == pytest.approx(2.0 + size)
    half = shifted.scaled(0.5)
    assert 1.0 == half.inner.radius
    np.testing.assert_allclose(dense(half.offset), dense(OFFSET) / 2)
    W = lo.LowRankOperator.from_dense(3 * normal(M, N))
    assert shifted.unit(W) == pytest.approx(2.0 + norm(dense(OFFSET)))
    assert shifted.excess(W) == pytest.approx(NUCLEAR.excess(W + OFFSET))
    largest = norm(dense(W + OFFSET)) + norm(dense(OFFSET))
    assert lo.ShiftedSet(lo.RankAtMost(1), OFFSET).unit(W) == pytest.approx(largest)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_what_a_shifted_set_makes_is_moved_back(dtype):
    shifted = lo.ShiftedSet(NUCLEAR, OFFSET.to(dtype=torch.float32))
    W, G = (lo.LowRankOperator.from_dense(3 * normal(M, N, seed=k)).to(dtype=dtype) for k in (5, 6))
    near, least = shifted.project(W), shifted.lmo(G)
    accuracy = 50 * torch.finfo(dtype).eps
    for found, inner in (
        (near, NUCLEAR.project(W + OFFSET.to(dtype=dtype))),
        (least, NUCLEAR.lmo(G)),
    ):
        assert dtype == found.dtype
        np.testing.assert_allclose(
            dense(found), dense(inner) - dense(OFFSET.to(dtype=torch.float32)), atol=accuracy
        )
    sample = partial(shifted.sample, (M, N), dtype=dtype)
    assert dtype == sample().dtype
    again = [dense(sample(generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    assert np.array_equal(*again)
    assert torch.get_default_dtype() == shifted.sample((M, N)).dtype


# Complements.


@pytest.mark.parametrize("shape", [(M, N), (4, 3), (30, 20)])
@pytest.mark.parametrize("kind", ["sparse", "scipy"])
def test_sparse_gradients_of_complements(kind, shape):
    m, n = shape
    Q, P = torch.linalg.qr(normal(m, 2)).Q, torch.linalg.qr(normal(n, 1)).Q
    G = normal(m, n) * (normal(m, n, seed=1) > 0)
    feasible = lo.ComplementSet(BALL, Q, P)
    found = feasible.lmo(KINDS[kind](G))
    part = G - Q @ (Q.mT @ G)
    part = part - (part @ P) @ P.mT
    least = -2.0 * float(torch.linalg.svdvals(part)[:3].sum())
    assert float((G * found.to_dense()).sum()) == pytest.approx(least, rel=1e-9)
    assert feasible.contains(found, rtol=1e-10)


@pytest.mark.parametrize("kind", ["sparse", "scipy"])
def test_a_gradient_inside_the_subspaces_is_minimised_anywhere(kind):
    feasible = lo.ComplementSet(BALL, torch.eye(30, 2).double(), None)
    G = torch.zeros(30, 20, dtype=D)
    G[:2] = 1.0
    found = feasible.lmo(KINDS[kind](G))
    assert feasible.contains(found)
    assert 0.0 == float((G * found.to_dense()).sum())


def test_ties_that_arpack_refuses_are_no_trouble(monkeypatch):
    import scipy.sparse.linalg as linalg

    def refuse(*_, **__):
        raise linalg.ArpackError(-9999)

    monkeypatch.setattr(linalg, "svds", refuse)
    test_sparse_gradients_of_complements("scipy", (30, 20))


def test_rounding_of_terms_that_cancel_is_no_part_of_the_subspace():
    feasible = lo.ComplementSet(BALL, torch.eye(M, 1), None)
    left = torch.zeros(M, 2, dtype=D)
    left[0, 0], left[0, 1] = 1e6, 1e-9 - 1e6
    one, two = (torch.ones(k, dtype=D) for k in (1, 2))
    cancelling = lo.LowRankOperator(left, two, torch.ones(N, 2, dtype=D))
    alone = lo.LowRankOperator(left.sum(1, keepdim=True), one, torch.ones(N, 1, dtype=D))
    assert feasible.contains(cancelling)
    assert not feasible.contains(alone)


def test_sizes_of_terms():
    op = lo.LowRankOperator(2 * torch.eye(M, 2), torch.tensor([-3.0, 0.5]), torch.ones(N, 2))
    np.testing.assert_allclose([6 * math.sqrt(5), math.sqrt(5)], term_sizes(op))


def test_complements_are_of_singular_values():
    with pytest.raises(OptionError, match="put the complement inside"):
        lo.ComplementSet(lo.WeightedSet(BALL, a, None), U, None)
