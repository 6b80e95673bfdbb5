"""Building blocks with derivatives of their own against dense formulas that torch differentiates.

Values, forward and reverse derivatives, and the derivative of the derivative, each along random
directions; at points where the dense formula is smooth and where only the block is.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from lowrank_opt.errors import DerivativeError
from lowrank_opt.linalg import (
    contraction,
    differentiable_values,
    extend_basis,
    framed_product,
    frozen_product,
    inverse_one_plus_gram,
    leading_svd,
    normalize_columns,
    polar_frame,
    product_svd,
    project_out,
    qr_frame,
    rotation,
    scale_to_unit_peak,
    square_sum,
    tall_cayley,
    top_k_sum,
)
from tests.builders import normal

D = torch.float64


def scaled_product(left, right):
    X, Y = framed_product(left, right).scaled(torch.full((1, 1), 0.7, dtype=D))
    return X @ Y.mT


def contracted_product(left, right):
    X, Y = framed_product(left, right).contracted()
    return X @ Y.mT


def dense_contracted(left, right):
    P = left @ right.mT
    return 2 * P @ torch.linalg.inv(torch.eye(P.shape[-1], dtype=D) + P.mT @ P)


def singular_values(left, scale, right):
    return differentiable_values(product_svd(left, scale, right), (left, scale, right))


def dense_values(left, scale, right):
    return torch.linalg.svdvals((left * scale.unsqueeze(-2)) @ right.mT)[..., : scale.shape[-1]]


def dense_polar(F):
    """Newton and Schulz's iteration: a polynomial, with derivatives of every order."""
    X = F / torch.linalg.matrix_norm(F)
    for _ in range(40):
        X = X @ (3 * torch.eye(X.shape[-1], dtype=D) - X.mT @ X) / 2
    return X


def dense_qr(F):
    Q, R = torch.linalg.qr(F)
    return Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def pair(m, n, r, *batch):
    return normal(*batch, m, r, seed=1), normal(*batch, n, r, seed=2)


L, R = pair(5, 4, 2)
DEPENDENT = torch.cat((L, L[:, :1]), dim=1), torch.cat((R, R[:, 1:]), dim=1)
TRIPLE = L, torch.tensor([2.0, -0.5], dtype=D), R
# block, dense formula, arguments
PAIRS = {
    "scaled": (scaled_product, lambda a, b: 0.7 * a @ b.mT, (L, R)),
    "scaled stack": (scaled_product, lambda a, b: 0.7 * a @ b.mT, pair(3, 4, 2, 3)),
    "scaled, two axes": (scaled_product, lambda a, b: 0.7 * a @ b.mT, pair(3, 4, 2, 3, 5)),
    "scaled from zero": (scaled_product, lambda a, b: 0.7 * a @ b.mT, (0 * L, R)),
    "contracted": (contracted_product, dense_contracted, (L, R)),
    "contracted stack": (contracted_product, dense_contracted, pair(3, 4, 2, 3)),
    "contracted from zero": (contracted_product, dense_contracted, (0 * L, R)),
    "contracted, dependent": (contracted_product, dense_contracted, DEPENDENT),
    "contracted, one column": (contracted_product, dense_contracted, pair(4, 1, 1)),
    "contraction": (contraction, lambda B: dense_contracted(B, torch.eye(2, dtype=D)), (L,)),
    "polar": (polar_frame, dense_polar, (L,)),
    "polar, square": (polar_frame, dense_polar, (normal(3, 3, seed=3),)),
    "qr": (qr_frame, dense_qr, (L,)),
    "rotation": (
        lambda K: rotation(K - K.mT, "exponential"),
        lambda K: torch.linalg.matrix_exp(K - K.mT) - torch.eye(3, dtype=D),
        (normal(3, 3, seed=4),),
    ),
}


def directions(arguments, seed):
    return tuple(normal(*x.shape, seed=seed + k) for k, x in enumerate(arguments))


def along(f, seed):
    """The derivative along a fixed direction, as a function of the arguments."""
    return lambda *x: jvp(f, x, directions(x, seed))[1]


def pulled(f, seed):
    """Gradients of a fixed combination of entries, as one vector."""

    def gradient(*x):
        value, pull = vjp(f, *x)
        return torch.cat([g.flatten() for g in pull(normal(*value.shape, seed=seed))])

    return gradient


def agree(f, g, x, tolerance=1e-9):
    torch.testing.assert_close(f(*x), g(*x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("block", "dense", "x"), PAIRS.values(), ids=PAIRS)
def test_values_and_derivatives_are_those_of_the_dense_formula(block, dense, x):
    agree(block, dense, x)
    agree(along(block, 10), along(dense, 10), x)
    agree(pulled(block, 20), pulled(dense, 20), x)


@pytest.mark.parametrize(("block", "dense", "x"), PAIRS.values(), ids=PAIRS)
def test_second_derivatives_are_those_of_the_dense_formula(block, dense, x):
    agree(along(pulled(block, 20), 30), along(pulled(dense, 20), 30), x, 1e-8)
    agree(pulled(along(block, 10), 40), pulled(along(dense, 10), 40), x, 1e-8)


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("x", [TRIPLE, TRIPLE[::-1], (*pair(6, 3, 3)[:1], normal(3), normal(2, 3))])
def test_singular_values_are_differentiated_in_each_factor(argument, x):
    def of(f):
        return lambda y: f(*x[:argument], y, *x[argument + 1 :])

    at = (x[argument],)
    agree(of(singular_values), of(dense_values), at)
    agree(along(of(singular_values), 10), along(of(dense_values), 10), at)
    agree(pulled(of(singular_values), 20), pulled(of(dense_values), 20), at)


def test_a_second_derivative_of_singular_values_is_refused():
    with pytest.raises(DerivativeError, match="differentiable once"):
        along(pulled(singular_values, 20), 30)(*TRIPLE)


BLOCKS = {
    "tall_cayley": lambda x: tall_cayley(x[..., :2, :], x[..., 2:, :]),
    "contraction": contraction,
    "inverse_one_plus_gram": inverse_one_plus_gram,
    "rotation": lambda x: rotation(x[..., :2, :] - x[..., :2, :].mT),
    "rotation within": lambda x: rotation(x[..., :2, :] - x[..., :2, :].mT, "exponential", 1.0),
    "contracted": lambda x: contracted_product(x, x.flip(-2)),
    "product_svd": lambda x: product_svd(x, x[..., 0, :], x)[1],
    "top_k_sum": lambda x: top_k_sum(x, 2),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_matrix_of_a_stack_does_not_see_its_neighbours(block):
    # Scales shared by mistake would take all digits of the small ones.
    sizes = torch.tensor([1e-3, 1.0, -1e3, 1e150], dtype=D)[:, None, None]
    stack = sizes * normal(4, 5, 2, seed=5)
    alone = torch.stack([block(x) for x in stack])
    torch.testing.assert_close(block(stack), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_the_scale_of_negative_entries_counts(size):
    G = tall_cayley(None, -size * torch.ones(3, 2, dtype=D))
    assert bool(G.isfinite().all())
    assert torch.linalg.matrix_norm(G, 2) <= 1 + 4e-16


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_frozen_products_are_those_of_the_converted_matrix(transposed, factor):
    weight, right = normal(300, 400, dtype=torch.float16), normal(300 if transposed else 400, 3)
    weight = weight.mT if transposed else weight
    scale = None if factor is None else torch.tensor(factor, dtype=torch.float16)

    def plain(x):
        return (factor or 1.0) * (weight.double() @ x)

    def frozen(x):
        return frozen_product(weight, x, scale)

    agree(frozen, plain, (right,), 1e-12)
    agree(along(frozen, 1), along(plain, 1), (right,), 1e-12)
    agree(pulled(frozen, 1), pulled(plain, 1), (right,), 1e-12)


@pytest.mark.parametrize("basis", [None, torch.zeros(3, 0)])
def test_nothing_is_projected_out_of_an_empty_basis(basis):
    x = normal(3, 2)
    assert project_out(x, basis) is x
    Q = extend_basis(basis, x)
    assert (3, 2) == Q.shape
    torch.testing.assert_close(Q @ (Q.mT @ x), x, rtol=0, atol=1e-14)


def test_unit_peak_of_nothing_and_of_zeros():
    assert (0, 3) == scale_to_unit_peak(torch.empty(0, 3))[0].shape
    x = torch.zeros(2, requires_grad=True)
    scale_to_unit_peak(x, torch.zeros(1))[0].sum().backward()
    assert [0.0, 0.0] == x.grad.tolist()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("filled", [False, True])
def test_leading_triples_of_sparse_matrices_are_in_float64(k, filled):
    A = torch.zeros(6, 5)
    A[0, 0], A[3, 2], A[1, 4] = filled * 0.1, filled * 3.3, filled * 1.7
    U, sigma, V = leading_svd(A.to_sparse(), k)
    assert {D} == {U.dtype, sigma.dtype, V.dtype}
    expected = torch.tensor([3.3, 1.7]).double()[:k] * filled
    torch.testing.assert_close(sigma, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        (U * sigma) @ V.mT, A.double() * (A.abs() >= sigma[-1].float() * (1 - 1e-6))
    )


def test_polar_frames_are_smooth_at_tied_singular_values():
    # Equal singular values: the dense formula has no derivative by eigenvectors, the frame has.
    Q = polar_frame(normal(4, 2, seed=9))
    moved, h = normal(4, 2, seed=8), 1e-6
    found = jvp(polar_frame, (2 * Q,), (moved,))[1]
    difference = (polar_frame(2 * Q + h * moved) - polar_frame(2 * Q - h * moved)) / (2 * h)
    torch.testing.assert_close(found, difference, rtol=0, atol=1e-8)


def dense_cayley(X, Y):
    eye = torch.eye(2, dtype=D)
    Z = X - X.mT + Y.mT @ Y
    return torch.cat((eye - Z, -2 * Y)) @ torch.linalg.inv(eye + Z)


NARROW = {
    "units": (
        lambda x: normalize_columns(x, dtype=D),
        lambda x: x / x.square().sum(0, keepdim=True).sqrt(),
    ),
    "square_sum": (
        lambda x: square_sum(x, torch.tensor(0.5)).expand(1),
        lambda x: (x / 2).square().sum().expand(1),
    ),
    "tall_cayley": (
        lambda x: tall_cayley(x[:2], x[2:4], x[4:]),
        lambda x: dense_cayley(x[:2], x[2:]),
    ),
}


def forward_of_plain_reverse(f):
    """Return what `jacfwd` of `jacrev` would, from backward passes that are not recorded."""

    def second(x):
        def along(direction):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x.clone().requires_grad_(), direction)
                values = f(dual).flatten()
                found = [torch.autograd.grad(v, dual, retain_graph=True)[0] for v in values]
                return torch.stack([forward_ad.unpack_dual(g).tangent for g in found])

        each = torch.eye(x.numel(), dtype=x.dtype).unflatten(0, x.shape).unflatten(-1, x.shape)
        return torch.stack([along(e) for e in each.flatten(0, 1)], dim=-1)

    return second


@pytest.mark.parametrize(("of_narrow", "dense"), NARROW.values(), ids=NARROW)
@pytest.mark.parametrize(
    "derivative",
    [
        jacrev,
        jacfwd,
        lambda f: jacfwd(jacrev(f)),
        lambda f: jacrev(jacrev(f)),
        forward_of_plain_reverse,
        vmap,
    ],
    ids=["reverse", "forward", "forward of reverse", "of reverse", "of plain reverse", "stacked"],
)
def test_derivatives_in_narrow_dtypes_are_those_of_the_formula(of_narrow, dense, derivative):
    x = normal(5, 2, seed=3).float()
    x = torch.stack([x, 2 * x.flip(0)]) if derivative is vmap else x
    found, truth = derivative(of_narrow)(x), derivative(dense)(x.double())
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
