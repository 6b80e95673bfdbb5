"""Federated aggregation against dense float64 arithmetic: identities, guarantees, refusals."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.merging import aggregate
from lowrank_opt.merging.clients.factors import aligned
from lowrank_opt.merging.federated.rules import FederatedMethod
from tests.unit.merging.cases import (
    METHODS,
    WEIGHTS,
    K,
    M,
    N,
    Pair,
    R,
    average_dense,
    clients_for,
    mean_factors,
    random_clients,
    update_dense,
)


@pytest.mark.parametrize("method", METHODS)
def test_ideal_and_bias_agree_with_dense(method: FederatedMethod) -> None:
    clients = clients_for(method)
    D = average_dense(clients)
    result = aggregate(clients, method, weights=WEIGHTS)
    assert torch.allclose(D, result.ideal.to_dense(), rtol=0, atol=1e-14)
    missed = float((D - update_dense(result)).norm() / D.norm())
    assert missed == pytest.approx(result.bias, abs=1e-14)


@pytest.mark.parametrize("method", ["flora", "fedex", "ffa"])
def test_exact_methods_send_the_average(method: FederatedMethod) -> None:
    result = aggregate(clients_for(method), method, weights=WEIGHTS)
    assert result.bias < 1e-14


def test_fedit_is_the_product_of_means() -> None:
    clients = random_clients()
    left, right = mean_factors(clients)
    result = aggregate(clients, "fedit", weights=WEIGHTS)
    assert result.broadcast is not None
    assert result.base_update is None
    assert torch.allclose(left, result.broadcast.left, rtol=0, atol=1e-15)
    assert torch.allclose(right, result.broadcast.right, rtol=0, atol=1e-15)


def test_residual_is_the_covariance_of_factors_in_few_columns() -> None:
    clients = random_clients()
    left, right = mean_factors(clients)
    pairs = zip(WEIGHTS, clients, strict=True)
    E = sum((p * (b - left) @ (a - right).mT for p, (b, a) in pairs), torch.zeros(1))
    result = aggregate(clients, "fedex", weights=WEIGHTS)
    assert result.base_update is not None
    assert R * (K - 1) == result.base_update.rank
    assert torch.allclose(E, result.base_update.to_dense(), rtol=0, atol=1e-14)


def test_truncated_residual_is_the_best_one() -> None:
    clients = random_clients()
    left, right = mean_factors(clients)
    sigma = torch.linalg.svdvals(average_dense(clients) - left @ right.mT)
    result = aggregate(clients, "fedex", weights=WEIGHTS, rank=2)
    expected = float(sigma[2:].norm() / average_dense(clients).norm())
    assert expected == pytest.approx(result.bias, rel=1e-12)
    assert 4 == result.feasible_set.rank


def test_flexlora_is_the_truncated_svd_and_takes_any_ranks() -> None:
    clients = random_clients(ranks=(1, 3, 2, 4))
    U, sigma, Vh = torch.linalg.svd(average_dense(clients))
    result = aggregate(clients, "flexlora", weights=WEIGHTS, rank=3)
    best = (U[:, :3] * sigma[:3]) @ Vh[:3]
    assert torch.allclose(best, update_dense(result), rtol=0, atol=1e-13)
    assert (M + N, 3 * (M + N), 2 * (M + N), 3 * (M + N)) == result.floats_down


def test_flora_takes_any_ranks_and_adds_them() -> None:
    clients = random_clients(ranks=(1, 3, 2, 4))
    result = aggregate(clients, "flora", weights=WEIGHTS)
    assert result.bias < 1e-15
    assert result.broadcast is None
    assert (10 * (M + N),) * K == result.floats_down
    assert (M + N, 3 * (M + N), 2 * (M + N), 4 * (M + N)) == result.floats_up


def fair_objective(clients: Sequence[Pair], left: Tensor, regularization: float) -> Tensor:
    mean_left, mean_right = mean_factors(clients)
    missed = average_dense(clients) - left @ mean_right.mT
    return missed.square().sum() + regularization * (left - mean_left).square().sum()


@pytest.mark.parametrize("regularization", [0.0, 0.01, 1.0])
def test_fair_is_stationary_for_its_objective(regularization: float) -> None:
    clients = random_clients()
    result = aggregate(clients, "fair", weights=WEIGHTS, regularization=regularization)
    assert result.broadcast is not None
    left = result.broadcast.left.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fair_objective(clients, left, regularization), left)
    assert float(slope.abs().max()) < 1e-13


def test_fair_without_penalty_projects_the_average_on_rows() -> None:
    clients = random_clients()
    _, right = mean_factors(clients)
    Q = torch.linalg.qr(right).Q
    result = aggregate(clients, "fair", weights=WEIGHTS, regularization=0.0)
    assert torch.allclose(average_dense(clients) @ Q @ Q.mT, update_dense(result), atol=1e-13)


def test_fair_goes_from_the_projection_to_fedit() -> None:
    clients = random_clients()
    grid = [0.0, 0.01, 0.1, 1.0, 100.0, math.inf]
    biases = [aggregate(clients, "fair", regularization=x).bias for x in grid]
    assert sorted(biases) == biases
    assert aggregate(clients, "fedit").bias == biases[-1]
    assert biases[0] < biases[-1]


def test_fair_stays_nearer_to_the_mean_with_a_larger_penalty() -> None:
    clients = random_clients()
    mean, _ = mean_factors(clients, (0.25,) * K)
    results = [aggregate(clients, "fair", regularization=x) for x in (0.0, 0.1, 1.0, 10.0)]
    lefts = [r.broadcast.left for r in results if r.broadcast is not None]
    cosines = [float(nn.functional.cosine_similarity(x.ravel(), mean.ravel(), 0)) for x in lefts]
    assert sorted(set(cosines)) == cosines


def cosine_objective(
    clients: Sequence[Pair], left: Tensor, regularization: float, power: int
) -> Tensor:
    mean_left, mean_right = mean_factors(clients)
    D, W = average_dense(clients), left @ mean_right.mT
    cosine = (D * W).sum() / (D.norm() * W.norm())
    return 1 - cosine + regularization * (left - mean_left).norm() ** power


@pytest.mark.parametrize("regularization", [0.01, 0.1])
def test_fair_squared_is_stationary_for_its_objective(regularization: float) -> None:
    clients = random_clients()
    result = aggregate(
        clients, "fair", weights=WEIGHTS, regularization=regularization, objective="cosine_squared"
    )
    assert result.broadcast is not None
    left = result.broadcast.left.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cosine_objective(clients, left, regularization, 2), left)
    assert float(slope.abs().max()) < 1e-7


def test_fair_squared_acts_where_the_printed_penalty_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(size, 3, generator=g, dtype=torch.float64) for size in (M, N)]
    noise = [torch.randn(K, size, 3, generator=g, dtype=torch.float64) for size in (M, N)]
    clients = [(start[0] + 0.2 * noise[0][k], start[1] + 0.2 * noise[1][k]) for k in range(K)]
    printed, squared = (
        aggregate(clients, "fair", regularization=0.01, objective=x)
        for x in ("cosine", "cosine_squared")
    )
    plain = aggregate(clients, "fedit")
    assert update_dense(plain).equal(update_dense(printed))
    assert not torch.allclose(update_dense(plain), update_dense(squared), rtol=1e-4)


def test_fair_with_dependent_rows_stays_finite() -> None:
    clients = [(left, right[:, [0, 0]]) for left, right in random_clients()]
    result = aggregate(clients, "fair", regularization=0.0)
    assert result.bias < aggregate(clients, "fedit").bias


def cosine_loss(clients: Sequence[Pair], left: Tensor, regularization: float) -> Tensor:
    D, (mean_left, mean_right) = average_dense(clients), mean_factors(clients)
    cosine = nn.functional.cosine_similarity(D.flatten(), (left @ mean_right.mT).flatten(), dim=0)
    return 1 - cosine + regularization * (left - mean_left).norm()


def test_cosine_objective_reaches_the_largest_cosine() -> None:
    clients = random_clients()
    D, (_, right) = average_dense(clients), mean_factors(clients)
    largest = (D @ torch.linalg.qr(right).Q).norm() / D.norm()
    result = aggregate(clients, "fair", weights=WEIGHTS, objective="cosine", regularization=0.0)
    assert result.broadcast is not None
    reached = 1 - cosine_loss(clients, result.broadcast.left, 0.0)
    assert float(largest) == pytest.approx(float(reached), rel=1e-9)


@pytest.mark.parametrize("regularization", [0.01, 0.05])
def test_cosine_objective_is_stationary(regularization: float) -> None:
    clients = random_clients()
    result = aggregate(
        clients, "fair", weights=WEIGHTS, objective="cosine", regularization=regularization
    )
    assert result.broadcast is not None
    left = result.broadcast.left.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cosine_loss(clients, left, regularization), left)
    assert float(slope.abs().max()) < 1e-6
    mean_left, _ = mean_factors(clients)
    assert cosine_loss(clients, left, regularization) < cosine_loss(clients, mean_left, 0.0)


def test_cosine_objective_with_a_steep_penalty_changes_nothing() -> None:
    clients = random_clients()
    result = aggregate(clients, "fair", objective="cosine", regularization=10.0)
    assert aggregate(clients, "fedit").bias == result.bias


@pytest.mark.parametrize("objective", ["frobenius", "cosine"])
def test_fair_of_means_that_cancel_is_finite(objective: str) -> None:
    (left, right), *_ = random_clients()
    clients = [(left, right), (-left, -right)]
    result = aggregate(clients, "fair", objective=objective)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert 1.0 == pytest.approx(result.bias)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_clients_does_not_matter(method: FederatedMethod) -> None:
    clients = clients_for(method)
    first = aggregate(clients, method, weights=WEIGHTS)
    second = aggregate(clients[::-1], method, weights=WEIGHTS[::-1])
    assert torch.allclose(update_dense(first), update_dense(second), rtol=0, atol=1e-12)
    assert first.bias == pytest.approx(second.bias, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_client_of_weight_zero_has_no_effect(method: FederatedMethod) -> None:
    clients = clients_for(method)
    first = aggregate(clients[:3], method, weights=[0.5, 0.25, 0.25])
    second = aggregate(clients, method, weights=[0.5, 0.25, 0.25, 0.0])
    assert torch.equal(update_dense(first), update_dense(second))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 3])
def test_identical_clients_give_the_client(method: FederatedMethod, count: int) -> None:
    (left, right), *_ = random_clients()
    result = aggregate([(left, right)] * count, method)
    assert torch.allclose(left @ right.mT, update_dense(result), rtol=0, atol=1e-13)
    assert result.bias < 1e-14


@pytest.mark.parametrize("method", METHODS)
def test_zero_clients_give_zero(method: FederatedMethod) -> None:
    clients = [(torch.zeros(M, R), torch.zeros(N, R))] * 2
    result = aggregate(clients, method)
    assert 0.0 == float(update_dense(result).abs().max())
    assert 0.0 == result.bias


def test_flexlora_of_zero_keeps_a_factor_with_gradient() -> None:
    result = aggregate([(torch.zeros(M, R), torch.ones(N, R))], "flexlora")
    assert result.broadcast is not None
    assert torch.linalg.matrix_rank(result.broadcast.right) == R


def test_scale_counts_once_even_if_it_differs() -> None:
    pairs = random_clients()
    scales = [0.5, 1.0, 2.0, 4.0]
    clients = [
        lo.LowRankOperator(left, torch.full((R,), s, dtype=left.dtype), right)
        for s, (left, right) in zip(scales, pairs, strict=True)
    ]
    scaled = [(s * left, right) for s, (left, right) in zip(scales, pairs, strict=True)]
    D = average_dense(scaled)
    assert torch.allclose(D, update_dense(aggregate(clients, "fedex", weights=WEIGHTS)), atol=1e-13)
    same = [lo.LowRankOperator(c.left, clients[2].scale, c.right) for c in clients]
    broadcast = aggregate(same, "flexlora").broadcast
    assert broadcast is not None
    assert torch.equal(clients[2].scale, broadcast.scale)


def rotated(clients: Sequence[Pair], seed: int = 1) -> list[Pair]:
    """Return the same products, each client in a gauge of its own."""
    g = torch.Generator().manual_seed(seed)
    draw = [torch.linalg.qr(torch.randn(R, R, generator=g).double()).Q for _ in clients]
    return [(left @ q, right @ q) for q, (left, right) in zip(draw, clients, strict=True)]


def nearby_clients() -> list[Pair]:
    (left, right), *_ = random_clients()
    return [(left + 0.05 * b, right + 0.05 * a) for b, a in random_clients(3)]


def test_fedit_depends_on_gauges_and_alignment_cures_it() -> None:
    (left, right), *_ = random_clients()
    reference = lo.LowRankOperator(left, torch.ones(R).double(), right)
    clients = nearby_clients()
    turned = aggregate(rotated(clients), "fedit").bias
    cured = [aggregate(c, "fedit", reference=reference) for c in (clients, rotated(clients))]
    assert torch.allclose(update_dense(cured[0]), update_dense(cured[1]), atol=1e-13)
    assert turned > 0.3
    assert cured[1].bias < 0.02


@pytest.mark.parametrize("method", ["flora", "flexlora"])
def test_product_methods_do_not_depend_on_gauges(method: FederatedMethod) -> None:
    clients = nearby_clients()
    first, second = (aggregate(c, method) for c in (clients, rotated(clients)))
    assert torch.allclose(update_dense(first), update_dense(second), rtol=0, atol=1e-13)


def test_alignment_divides_a_scale_that_is_not_common() -> None:
    left, right = random_clients()[0]
    op = lo.LowRankOperator(left, torch.tensor([2.0, -8.0]).double(), right)
    turned = aligned(op, lo.LowRankOperator(left, torch.ones(R).double(), right))
    assert torch.allclose(op.to_dense(), turned.to_dense(), rtol=0, atol=1e-13)
    assert torch.equal(torch.ones(R).double(), turned.scale)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("left_size", "right_size"), [(1e145, 1e145), (1e-310, 1.0), (1e150, 1e-150), (1e-140, 1e-140)]
)
def test_every_magnitude(method: FederatedMethod, left_size: float, right_size: float) -> None:
    clients = clients_for(method)
    sized = [(left * left_size, right * right_size) for left, right in clients]
    # What lambda and the residual's units mean changes with the size; the bias of the others not.
    expected = aggregate(clients, method, regularization=0.0).bias
    result = aggregate(sized, method, regularization=0.0)
    assert expected == pytest.approx(result.bias, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precision_is_rounded_once(method: FederatedMethod, dtype: torch.dtype) -> None:
    clients = clients_for(method, dtype=dtype)
    wide = [(left.double(), right.double()) for left, right in clients]
    result, expected = aggregate(clients, method), aggregate(wide, method)
    assert dtype == result.update.dtype
    assert torch.equal(expected.ideal.to_dense(), result.ideal.to(dtype=torch.float64).to_dense())
    difference = (update_dense(result) - update_dense(expected)).norm() / update_dense(
        expected
    ).norm()
    assert float(difference) < 4 * torch.finfo(dtype).eps


def test_half_precision_overflow_is_refused() -> None:
    clients = [(torch.ones(2, 1).half(), torch.full((2, 1), s).half()) for s in (6e4, -6e4)]
    with pytest.raises(TargetError, match=r"overflows torch\.float16"):
        aggregate(clients, "fedex")


def test_aggregation_never_forms_the_matrix() -> None:
    from lowrank_opt.testing import forbid_dense

    g = torch.Generator().manual_seed(0)
    clients = [(torch.randn(80, 2, generator=g), torch.randn(70, 2, generator=g))] * 3
    with forbid_dense((80, 70)):
        assert all(aggregate(clients, method).bias < 1e-6 for method in METHODS)
