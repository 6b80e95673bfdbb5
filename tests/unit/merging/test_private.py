"""Private merging: the privacy profile against integrals, the noise against its law."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, RadiusError, RankError
from lowrank_opt.merging import (
    PrivacyBudget,
    composed_mu,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    private_merge,
)
from lowrank_opt.merging.federated.noise import gaussian, near_best_of_rank, noisy_mean
from lowrank_opt.merging.federated.private import Adjacency
from lowrank_opt.testing import forbid_dense
from tests.builders import seeded

M, N, R = 60, 50, 3


def members(
    count: int, *, radius: float = 1.0, dtype: torch.dtype = torch.float64
) -> list[lo.LowRankOperator]:
    """Return updates on the sphere of a radius."""
    g = seeded(1)
    one = torch.ones(R).double()
    draws = [(torch.randn(M, R, generator=g), torch.randn(N, R, generator=g)) for _ in range(count)]
    ops = [lo.LowRankOperator(left.double(), one, right.double()) for left, right in draws]
    return [(op * (radius / float(op.schatten_norm(2)))).to(dtype=dtype) for op in ops]


def sharing_right(ops: Sequence[lo.LowRankOperator]) -> list[lo.LowRankOperator]:
    """Return updates of one right factor and at most the radius 1."""
    ops = [lo.LowRankOperator(op.left, torch.ones_like(op.scale), ops[0].right) for op in ops]
    largest = max(float(op.schatten_norm(2)) for op in ops)
    return [lo.LowRankOperator(op.left / largest, op.scale, op.right) for op in ops]


def mean_dense(ops: Sequence[lo.LowRankOperator]) -> torch.Tensor:
    return torch.stack([op.to_dense() for op in ops]).mean(0)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 8.0, 40.0])
def test_profile_is_the_hockey_stick_integral(epsilon: float, mu: float) -> None:
    def excess(x: float) -> float:
        return float(norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x))

    # The integrand is positive to the right of the point where the likelihood ratio is e^epsilon.
    start = epsilon / mu + mu / 2
    expected, _ = quad(excess, start, max(start, mu) + 40, points=[start + 1, max(start, mu) + 4])
    assert expected == pytest.approx(gaussian_delta(epsilon, mu), rel=1e-6, abs=1e-13)


def test_profile_keeps_its_digits_in_the_tail() -> None:
    # Far out both terms of the textbook formula are equal to all digits of float64.
    expected = norm.pdf(10.0 - 0.005) * (1 / 10.0**2) * 0.01
    assert expected == pytest.approx(gaussian_delta(0.1, 0.01), rel=0.05)


@pytest.mark.parametrize(("epsilon", "mu"), [(1e4, 1.0), (5.0, 1e3), (1.0, 1e-200), (700.0, 40.0)])
def test_profile_never_overflows(epsilon: float, mu: float) -> None:
    assert 0.0 <= gaussian_delta(epsilon, mu) <= 1.0


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1.0, 50.0])
def test_mu_is_the_largest_within_the_budget(epsilon: float, delta: float) -> None:
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_delta(epsilon, mu) <= delta
    assert gaussian_delta(epsilon, mu * (1 + 1e-6)) > delta


@pytest.mark.parametrize("mu", [0.01, 1.0, 30.0])
def test_epsilon_is_the_smallest_for_mu(mu: float) -> None:
    epsilon = gaussian_epsilon(mu, 1e-6)
    assert gaussian_delta(epsilon, mu) <= 1e-6 < gaussian_delta(epsilon * (1 - 1e-6), mu)
    assert 0.0 == gaussian_epsilon(1e-9, 1e-6)


def test_composition_is_the_convolution_of_privacy_losses() -> None:
    # The loss of one mu-GDP release is N(mu^2 / 2, mu^2); losses of independent releases add up.
    grid = np.linspace(-12, 14, 5201)
    step = grid[1] - grid[0]
    densities = [norm.pdf(grid, mu * mu / 2, mu) for mu in (0.6, 0.8)]
    loss, density = 2 * grid[0] + step * np.arange(2 * len(grid) - 1), np.convolve(*densities)
    expected = float((np.clip(1 - np.exp(1.0 - loss), 0, None) * density).sum() * step * step)
    assert expected == pytest.approx(gaussian_delta(1.0, composed_mu([0.6, 0.8])), rel=1e-5)


def test_budget_is_spent_by_its_rounds() -> None:
    budget = PrivacyBudget(epsilon=2.0, delta=1e-6)
    each = budget.mu_of_each(7)
    assert budget.spent([each] * 7) == pytest.approx(2.0, rel=1e-6)
    assert budget.spent([each] * 7) <= 2.0 * (1 + 1e-8)
    assert 0.0 == budget.spent([])


@pytest.mark.parametrize(
    ("adjacency", "denominator", "sensitivity"),
    [("replace-one", None, 2 * 3.0 / 20), ("add-remove", 25, 3.0 / 25)],
)
def test_sensitivity_follows_from_the_declared_radius(
    adjacency: Adjacency, denominator: int | None, sensitivity: float
) -> None:
    result = private_merge(
        members(20, radius=0.5),
        epsilon=1.0,
        delta=1e-5,
        radius=3.0,
        adjacency=adjacency,
        denominator=denominator,
        generator=seeded(),
    )
    assert sensitivity == pytest.approx(result.sensitivity)
    assert sensitivity / gaussian_mu(1.0, 1e-5) == pytest.approx(result.sigma)
    assert (1.0, 1e-5) == (result.epsilon, result.delta)


def test_sensitivity_bounds_the_distance_of_neighbours_and_is_attained() -> None:
    op, *others = members(10)
    first, second = mean_dense([op, *others]), mean_dense([-op, *others])
    result = private_merge([op, *others], epsilon=1.0, delta=1e-5, radius=1.0)
    assert float((first - second).norm()) == pytest.approx(result.sensitivity)


def test_dense_noise_has_its_standard_deviation() -> None:
    ops = members(10)
    result = private_merge(
        ops, epsilon=1.0, delta=1e-5, radius=1.0, mechanism="dense", rank=N, project=False,
        generator=seeded(),
    )  # fmt: skip
    noise = result.operator.to_dense() - mean_dense(ops)
    assert result.sigma == pytest.approx(float(noise.std()), rel=0.03)
    assert abs(float(noise.mean())) < 4 * result.sigma / math.sqrt(M * N)
    assert float(torch.linalg.matrix_norm(noise, 2)) < 1.1 * result.noise_norm


def test_ffa_noise_is_in_the_row_space_only() -> None:
    ops = sharing_right(members(10))
    result = private_merge(
        ops, epsilon=1.0, delta=1e-5, radius=1.0, mechanism="ffa", project=False,
        generator=seeded(),
    )  # fmt: skip
    noise = result.operator.to_dense() - mean_dense(ops)
    Q = torch.linalg.qr(ops[0].right).Q
    assert torch.equal(ops[0].right, result.operator.right)
    assert float((noise - noise @ Q @ Q.mT).norm()) < 1e-12 * float(noise.norm())
    assert result.sigma == pytest.approx(float(noise.norm()) / math.sqrt(M * R), rel=0.1)


@pytest.mark.parametrize("largest", [1 + 1e-16, 3.0])
def test_ffa_shrinks_what_exceeds_the_radius_in_left_factors(largest: float) -> None:
    """Clients of different excess still share a right factor and a scale, bit for bit."""
    ops = sharing_right(members(10))
    sizes = torch.linspace(0.5, largest, 10).double()
    norms = [float(op.schatten_norm(2)) for op in ops]
    big = [
        lo.LowRankOperator(op.left * (size / norm), op.scale, op.right)
        for op, size, norm in zip(ops, sizes, norms, strict=True)
    ]
    result = private_merge(
        big, epsilon=1e9, delta=0.5, radius=1.0, mechanism="ffa", clip=True, generator=seeded()
    )
    wanted = mean_dense([op * min(1.0, 1 / float(op.schatten_norm(2))) for op in big])
    torch.testing.assert_close(wanted, result.operator.to_dense(), atol=1e-3, rtol=0)
    assert torch.equal(ops[0].right, result.operator.right)


def test_implicit_result_is_near_the_best_of_the_same_noisy_matrix() -> None:
    mean = members(1)[0] * 2.0
    implicit = near_best_of_rank(mean, 0.02, R, seeded(3))
    g = seeded(3)
    gaussian((N, R + 8), mean, g)  # what the iteration starts from is drawn before the noise
    noisy = noisy_mean(mean, 0.02, g).to_dense()
    best = torch.linalg.svdvals(noisy)[R:].norm()
    assert float((noisy - implicit.to_dense()).norm()) < 1.001 * float(best)


def test_noisy_mean_is_one_matrix_in_every_pass() -> None:
    noisy = noisy_mean(members(1)[0], 0.5, seeded())
    dense = noisy.to_dense()
    assert torch.allclose(dense, noisy @ torch.eye(N, dtype=torch.float64))
    assert torch.allclose(dense.mT, noisy.transposed(torch.eye(M, dtype=torch.float64)))


def test_implicit_mechanism_never_forms_the_matrix() -> None:
    client = lo.LowRankOperator(torch.ones(200, 1), torch.tensor([1e-3]), torch.ones(150, 1))
    with forbid_dense((200, 150)):
        result = private_merge([client] * 2, epsilon=1.0, delta=1e-5, radius=1.0)
    assert 1 == result.operator.rank


@pytest.mark.parametrize("mechanism", ["implicit", "dense", "ffa"])
def test_result_is_in_the_declared_ball_and_loses_little_when_noise_is_small(
    mechanism: str,
) -> None:
    ops = sharing_right(members(4))
    options: dict[str, Any] = {"radius": 1.0, "mechanism": mechanism, "generator": seeded()}
    loud = private_merge(ops, epsilon=0.01, delta=1e-9, **options)
    quiet = private_merge(ops, epsilon=1e9, delta=0.5, **options)
    assert lo.SchattenBall(2, 1.0, R) == loud.feasible_set
    assert loud.feasible_set.contains(loud.operator)
    assert float((quiet.operator.to_dense() - mean_dense(ops)).norm()) < 0.1 * float(
        mean_dense(ops).norm()
    )


def test_rounds_and_matrices_share_the_budget() -> None:
    models = [{"a": op, "b": op.mT} for op in members(5)]
    results = private_merge(models, epsilon=1.0, delta=1e-5, radius={"a": 1.0, "b": 2.0}, rounds=8)
    mus = [result.mu for result in results.values()] * 8
    assert 2.0 * results["a"].sigma == pytest.approx(results["b"].sigma)
    assert composed_mu(mus) == pytest.approx(gaussian_mu(1.0, 1e-5))


def test_generator_repeats_and_default_does_not() -> None:
    def merged(generator: torch.Generator | None) -> torch.Tensor:
        torch.manual_seed(0)
        result = private_merge(members(3), epsilon=1.0, delta=1e-5, radius=1.0, generator=generator)
        return result.operator.to_dense()

    assert torch.equal(merged(seeded()), merged(seeded()))
    assert not torch.equal(merged(None), merged(None))


def test_parameterizations_declare_the_radius() -> None:
    clients = [lo.NBLoRA((8, 6), rank=4, radius=0.5, p=math.inf) for _ in range(5)]
    result = private_merge(clients, epsilon=1.0, delta=1e-5)
    assert 2 * 0.5 * 2 / 5 == pytest.approx(result.sensitivity)
    assert torch.float32 == result.operator.dtype


def test_excess_is_clipped_on_request_and_rounding_always() -> None:
    big = [3.0 * op for op in members(4)]
    with pytest.raises(NotInSetError, match="client 0 exceeds it by 2"):
        private_merge(big, epsilon=1.0, delta=1e-5, radius=1.0)
    options: dict[str, Any] = {
        "epsilon": 1e9,
        "delta": 0.5,
        "radius": 1.0,
        "mechanism": "dense",
        "rank": N,
    }
    clipped = private_merge(big, clip=True, generator=seeded(), **options)
    plain = private_merge(members(4), generator=seeded(), **options)
    rounded = private_merge(
        [op * (1 + 1e-7) for op in members(4, dtype=torch.float32)],
        generator=seeded(), **options,
    )  # fmt: skip
    assert torch.allclose(plain.operator.to_dense(), clipped.operator.to_dense(), atol=1e-12)
    assert torch.allclose(
        plain.operator.to_dense(), rounded.operator.to_dense().double(), atol=1e-6
    )


OPS = members(2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": -1.0}, OptionError, "epsilon must be nonnegative"),
        ({"delta": 0.0}, OptionError, r"delta must be in \(0, 1\)"),
        ({"delta": 1.0}, OptionError, r"delta must be in \(0, 1\)"),
        ({"radius": None}, RadiusError, "one Frobenius norm bound"),
        ({"radius": 0.0}, RadiusError, "positive and finite"),
        ({"adjacency": "other"}, OptionError, "adjacency must be one of"),
        ({"mechanism": "laplace"}, OptionError, "mechanism must be one of"),
        ({"adjacency": "add-remove"}, OptionError, "hides how many clients"),
        ({"denominator": 5}, OptionError, "divides by the number of clients"),
        ({"mechanism": "ffa"}, OptionError, "share a frozen right factor"),
        ({"mechanism": "ffa", "rank": 1}, OptionError, "keeps the rank of its clients"),
        ({"rank": N + 1}, RankError, r"1\.\.50"),
        ({"rounds": 0}, OptionError, "at least one release"),
        ({"clients": []}, OptionError, "at least one client"),
        ({"clients": [OPS[0], OPS[1].truncate(1)]}, RankError, "would tell about them"),
    ],
)
def test_private_merge_refuses(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {
        "clients": OPS,
        "epsilon": 1.0,
        "delta": 1e-5,
        "radius": 1.0,
        **options,
    }
    with pytest.raises(error, match=message):
        private_merge(**given)


def test_profile_refuses_what_is_no_guarantee() -> None:
    with pytest.raises(OptionError, match="mu > 0"):
        gaussian_delta(1.0, 0.0)
