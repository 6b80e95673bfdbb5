"""VeRA, ETHER, published starts and weight-decomposed DoRA against dense computations."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, RankError, ShapeError, TargetError
from lowrank_opt.nn import adapt
from lowrank_opt.testing import forbid_dense


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def normal_(module: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        torch.nn.init.normal_(p, generator=generator)
    return module


def block_reflection(vector: np.ndarray, edges: list[int]) -> np.ndarray:
    H = np.eye(len(vector))
    for a, b in pairwise(edges):
        u = vector[a:b] / np.linalg.norm(vector[a:b])
        H[a:b, a:b] -= 2 * np.outer(u, u)
    return H


def plus(vectors: np.ndarray) -> np.ndarray:
    u, v = (x / np.linalg.norm(x) for x in vectors.T)
    return np.eye(len(u)) - np.outer(u, u) + np.outer(v, v)


def test_vera_equals_the_formula_and_its_bound() -> None:
    module = normal_(lo.VeRA((6, 5), 3, dtype=torch.float64))
    b, d = array(module.rows), array(module.inner)
    expected = np.diag(b) @ array(module.frozen_left) @ np.diag(d) @ array(module.frozen_right)
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-14)
    assert np.linalg.norm(expected, 2) <= module.spectral_bound().item()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_vera_inverts_what_it_makes(rank: int) -> None:
    made = normal_(lo.VeRA((7, 5), rank, dtype=torch.float64))
    twin = lo.VeRA((7, 5), rank, dtype=torch.float64)
    twin.load_state_dict(made.state_dict())
    target = made().detach()
    np.testing.assert_allclose(
        array(twin.zero_().assign(target)().to_dense()), array(target.to_dense()), atol=1e-11
    )


def test_vera_refuses_other_targets_with_the_residual_of_the_fit() -> None:
    module, target = lo.VeRA((6, 5), 2, dtype=torch.float64), weight_of(6, 2) @ weight_of(2, 5)
    values, residual = module.fit(target)
    with pytest.raises(TargetError, match=rf"leaves {residual:.2e} of it: use fit"):
        module.assign(target)
    with torch.no_grad():
        module.rows.copy_(values["rows"])
        module.inner.copy_(values["inner"])
    missing = np.linalg.norm(array(module().to_dense() - target)) / np.linalg.norm(array(target))
    assert residual == pytest.approx(missing, rel=1e-9)


def test_vera_shares_projections() -> None:
    B, A = weight_of(9, 4), weight_of(4, 8)
    module = lo.VeRA((6, 5), 3, projections=(B, A), dtype=torch.float64)
    assert torch.equal(A[:3, :5], module.frozen_right)
    with pytest.raises(ShapeError, match="projections must be at least"):
        lo.VeRA((10, 5), 3, projections=(B, A))


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(("blocks", "edges"), [(1, [0, 7]), (2, [0, 3, 7]), (3, [0, 2, 4, 7])])
def test_ether_equals_the_reflection(side: str, blocks: int, edges: list[int]) -> None:
    W0 = weight_of(7, 5) if side == "output" else weight_of(5, 7)
    module = normal_(lo.ETHER(W0, blocks=blocks, side=side))
    W = array(module().to_dense())
    H = block_reflection(array(module.vector), edges)
    turned = H @ array(W0) if side == "output" else array(W0) @ H
    np.testing.assert_allclose(W, turned - array(W0), atol=1e-13)
    bounds = 2 * np.linalg.svd(array(W0))[1]
    assert (np.linalg.svd(W)[1] <= bounds + 1e-12).all()
    assert blocks == module.rank == np.linalg.matrix_rank(W)


def test_ether_attains_its_bound() -> None:
    W0 = weight_of(7, 5)
    module = lo.ETHER(W0)
    _, sigma, Vh = torch.linalg.svd(W0)
    with torch.no_grad():
        module.vector.copy_(Vh[0])
    assert module().schatten_norm(2).item() == pytest.approx(2 * sigma[0].item())


@pytest.mark.parametrize("side", ["input", "output"])
def test_ether_inverts_what_it_makes_and_nothing_else(side: str) -> None:
    W0 = weight_of(7, 5)
    target = normal_(lo.ETHER(W0, blocks=2, side=side))().detach()
    reached = lo.ETHER(W0, blocks=2, side=side).assign(target)().to_dense()
    np.testing.assert_allclose(array(reached), array(target.to_dense()), atol=1e-13)
    with pytest.raises(TargetError, match="the best fit found misses it by"):
        lo.ETHER(W0, blocks=2, side=side).assign(0.1 * target.truncate(1).to_dense())


def test_adapters_begin_at_a_reflection() -> None:
    layer = torch.nn.Linear(5, 7, bias=False, dtype=torch.float64)
    W0 = layer.weight.detach().clone()
    model = adapt(torch.nn.Sequential(layer), lambda shape: lo.ETHER(W0), targets="0")
    W = array(model(torch.eye(5, dtype=torch.float64)).mT)
    H = np.linalg.pinv(array(W0)) @ W
    np.testing.assert_allclose(H @ H.T, np.eye(5), atol=1e-12)
    assert -1 == pytest.approx(np.linalg.det(H))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("side", ["input", "output"])
def test_one_sided_ether_plus_equals_the_formula(side: str, blocks: int) -> None:
    W0 = weight_of(7, 6)
    made = lo.ETHERPlus(W0, blocks=blocks, two_sided=False, side=side)
    assert not made().to_dense().any()
    module = normal_(made)
    size = 7 if side == "output" else 6
    edges = [size * k // blocks for k in range(blocks + 1)]
    H = np.eye(size)
    for a, b in pairwise(edges):
        H[a:b, a:b] = plus(array(module.left_vectors[a:b]))
    turned = H @ array(W0) if side == "output" else array(W0) @ H
    np.testing.assert_allclose(array(module().to_dense()), turned - array(W0), atol=1e-13)


@pytest.mark.parametrize("two_sided", [False, True])
def test_ether_plus_equals_the_formula_and_its_bound(two_sided: bool) -> None:
    W0 = weight_of(7, 5)
    module = normal_(lo.ETHERPlus(W0, two_sided=two_sided, side="output"))
    W = array(module().to_dense())
    right = plus(array(module.right_vectors)) if two_sided else np.eye(5)
    expected = plus(array(module.left_vectors)) @ array(W0) @ right - array(W0)
    np.testing.assert_allclose(W, expected, atol=1e-13)
    assert module.feasible_set.contains(module().detach())
    assert (4 if two_sided else 2) == module.rank == np.linalg.matrix_rank(W)


def test_ether_plus_attains_three_times_the_norm() -> None:
    W0 = torch.zeros(4, 4, dtype=torch.float64)
    W0[1, 1] = 1.0
    module = lo.ETHERPlus(W0)
    with torch.no_grad():
        module.left_vectors.copy_(torch.eye(4)[:, :2])
        module.right_vectors.copy_(torch.eye(4)[:, :2])
    assert module().schatten_norm(2).item() == pytest.approx(3.0)


@pytest.mark.parametrize("blocks", [1, 2])
def test_ether_plus_starts_at_the_identity_with_a_gradient(blocks: int) -> None:
    module = lo.ETHERPlus(weight_of(7, 5), blocks=blocks)
    op = module()
    assert 0.0 == op.to_dense().abs().max().item()
    op.linear(weight_of(3, 5)).sum().backward()
    assert bool(module.left_vectors.grad.any())
    assert bool(module.right_vectors.grad.any())


@pytest.mark.parametrize("make", [lo.ETHER, lo.ETHERPlus])
def test_ether_reads_its_weight_without_a_copy(make) -> None:
    module, x = normal_(make(weight_of(300, 250).float(), blocks=3)), weight_of(2, 250).float()
    with forbid_dense(module.shape):
        module().linear(x).sum().backward()


@pytest.mark.parametrize("make", [lo.ETHER, lo.ETHERPlus])
def test_ether_compiles_to_one_graph_with_the_same_gradient(make) -> None:
    module, x = normal_(make(weight_of(7, 5).float(), blocks=2)), weight_of(3, 5).float()
    compiled = torch.compile(lambda: module().linear(x), backend="eager", fullgraph=True)
    gradients = [
        torch.autograd.grad(run().square().sum(), tuple(module.parameters()))
        for run in (lambda: module().linear(x), compiled)
    ]
    torch.testing.assert_close(*gradients)


def test_ether_plus_has_no_right_inverse() -> None:
    with pytest.raises(NoRightInverseError, match="optimise the parameters"):
        lo.ETHERPlus(weight_of(4, 4)).assign(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lo.ETHER(weight_of(3, 3), blocks=4), RankError, "blocks must be in 1..3"),
        (lambda: lo.ETHER(torch.zeros(3, 3)), TargetError, "must not be zero"),
        (lambda: lo.ETHER(torch.full((3, 3), math.nan)), TargetError, "must be finite"),
        (lambda: lo.Orthogonal(torch.zeros(3, 3)), TargetError, "must not be zero"),
        (lambda: lo.ETHERPlus(weight_of(2, 2), blocks=2), RankError, "use fewer blocks"),
    ],
)
def test_ether_refuses_bad_weights_and_blocks(make, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("start", [lo.pissa, lo.olora])
@pytest.mark.parametrize("scaling", [1.0, 4.0])
def test_starts_are_zero_and_leave_the_weight_alone(start, scaling: float) -> None:
    weight = weight_of(6, 5)
    before = weight.clone()
    module = start(weight, 2, scaling=scaling)
    assert 0.0 == module().to_dense().abs().max().item()
    normal_(module)
    assert np.linalg.matrix_rank(array(module().to_dense())) <= 4
    assert torch.equal(before, weight)


def test_pissa_starts_from_the_best_approximation() -> None:
    weight = weight_of(6, 5)
    U, s, Vh = np.linalg.svd(array(weight), full_matrices=False)
    inner = array(lo.pissa(weight, 2, scaling=4.0).inner().to_dense())
    np.testing.assert_allclose(inner, (U[:, :2] * s[:2]) @ Vh[:2], atol=1e-13)


def test_olora_starts_from_the_qr_factors() -> None:
    weight = weight_of(6, 5)
    Q, R = np.linalg.qr(array(weight))
    inner = array(lo.olora(weight, 2, scaling=4.0).inner().to_dense())
    np.testing.assert_allclose(inner, Q[:, :2] @ R[:2], atol=1e-13)


def test_starts_refuse_weights_that_are_not_finite() -> None:
    with pytest.raises(TargetError, match="must be a finite matrix"):
        lo.pissa(torch.full((2, 2), torch.nan), 1)


def test_rslora_scales_with_the_root_of_the_rank() -> None:
    assert 8.0 / 3 == lo.rslora((20, 20), 9, alpha=8.0).scaling


def decomposed(weight: torch.Tensor, **options) -> lo.WeightDecomposed:
    inner = lo.Factored(tuple(weight.shape), 2, scaling=2.0, dtype=weight.dtype)
    return lo.WeightDecomposed(inner, weight, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_decomposed_starts_at_the_weight(dtype: torch.dtype) -> None:
    weight, x = weight_of(6, 5).to(dtype), weight_of(3, 5, seed=1).to(dtype)
    module = decomposed(weight)
    assert torch.equal(torch.ones(6, dtype=dtype), module.row_scale(weight))
    assert torch.equal(x @ weight.mT, module(x, weight))


def test_weight_decomposed_equals_the_dense_formula() -> None:
    weight, x = weight_of(6, 5), weight_of(3, 5, seed=1)
    module = normal_(decomposed(weight))
    V = array(weight) + array(module.inner().to_dense())
    merged = array(module.magnitude)[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(array(module.linear(x, weight)), array(x) @ merged.T, atol=1e-12)
    np.testing.assert_allclose(array(module.merged_dense(weight)), merged, atol=1e-13)


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e-8, 1e4, 1e150])
def test_row_norms_survive_cancellation_and_any_size(size: float) -> None:
    weight = size * weight_of(6, 5)
    module = decomposed(weight)
    module.inner.assign(-weight, project=True)
    V = array(weight) + array(module.inner().to_dense())
    expected = np.linalg.norm(V / max(size, 1e-300), axis=1) * size
    np.testing.assert_allclose(array(module.row_norms(weight)), expected, rtol=1e-9)


def test_zero_rows_stay_zero_with_finite_gradients() -> None:
    weight = weight_of(6, 5)
    weight[2] = 0.0
    module = decomposed(weight, detach_norm=False)
    y = module(weight_of(3, 5, seed=1), weight)
    assert 0.0 == y[:, 2].abs().max().item()
    y.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())


def test_nearly_cancelled_rows_are_exact() -> None:
    weight = weight_of(3, 5)
    module = lo.WeightDecomposed(lo.Factored((3, 5), 3, dtype=torch.float64), weight)
    module.inner.assign(-weight * (1 - 1e-9))
    expected = 1e-9 * np.linalg.norm(array(weight), axis=1)
    np.testing.assert_allclose(array(module.row_norms(weight)), expected, rtol=1e-6)


def test_gradients_of_the_norm_are_exact_unless_detached() -> None:
    weight, x = weight_of(4, 3), weight_of(2, 3, seed=1)
    module = normal_(decomposed(weight, detach_norm=False))
    names = [k for k, _ in module.named_parameters()]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(module, parameters, (x, weight))

    assert torch.autograd.gradcheck(value, tuple(module.parameters()))


def test_detaching_the_norm_changes_gradients_only() -> None:
    weight, x = weight_of(4, 3), weight_of(2, 3, seed=1)
    exact, detached = (normal_(decomposed(weight, detach_norm=d)) for d in (False, True))
    values = [m(x, weight) for m in (exact, detached)]
    assert torch.equal(*values)
    for value in values:
        value.square().sum().backward()
    assert not torch.allclose(exact.inner.left.grad, detached.inner.left.grad)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: decomposed(weight_of(3, 3)).row_norms(weight_of(4, 3)), ShapeError, "must have"),
        (
            lambda: decomposed(weight_of(3, 3)).right_inverse(weight_of(3, 3)),
            NoRightInverseError,
            "no right inverse",
        ),
    ],
)
def test_weight_decomposed_refuses(make, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_weight_decomposed_holds_any_update() -> None:
    weight = weight_of(6, 5)
    inner = lo.SpectralLoRA((6, 5), 2, radius=0.5, dtype=torch.float64)
    module = normal_(lo.WeightDecomposed(inner, weight))
    rows = torch.linalg.vector_norm(module.merged_dense(weight), dim=1)
    assert torch.allclose(rows, module.magnitude.abs())
