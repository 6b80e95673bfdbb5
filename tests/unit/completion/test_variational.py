"""The variational solver: its kernel against dense formulas, its bound, its robustness."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import variational
from lowrank_opt.completion.bayes.noise import Gammas
from lowrank_opt.completion.bayes.normal_wishart import NormalWishart
from lowrank_opt.errors import OptionError
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.observations import Observations
from tests.builders import seeded

M, N, K = 23, 17, 3


def entries(weighted=True, count=150, seed=0, m=M, n=N):
    g = seeded(seed)
    cells = torch.randperm(m * n, generator=g)[:count]
    values = 3 + torch.randn(count, generator=g, dtype=torch.float64)
    weights = torch.rand(count, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    return Observations(cells // n, cells % n, values, (m, n), weights)


def planted(noise, dtype=torch.float64, scale=1.0, count=2000, m=80, n=60, rank=3):
    g = seeded()
    U, V = (torch.randn(size, rank, generator=g, dtype=torch.float64) for size in (m, n))
    W = scale * (U @ V.T)
    Y = W + noise * scale * torch.randn(m, n, generator=g, dtype=torch.float64)
    cells = torch.randperm(m * n, generator=g)[:count]
    return Observations(cells // n, cells % n, Y.view(-1)[cells].to(dtype), (m, n)), W


@pytest.fixture
def problem():
    """Entries, uncertain columns, and dense copies of both."""
    obs, rng = entries(), np.random.default_rng(0)
    mean = rng.standard_normal((N, K + 1))
    root = 0.3 * rng.standard_normal((N, K + 1, K + 1))
    covariance = root @ root.transpose(0, 2, 1)
    other = Moments.of(*map(torch.from_numpy, (mean[:, :K], mean[:, K])))
    kept = [*range(K), K + 1]
    for j in range(N):
        dense = np.outer(other.means[j], other.means[j])
        dense[np.ix_(kept, kept)] += covariance[j]
        other.products[j] = torch.from_numpy(dense[np.tril_indices(K + 2)])
    W, Y = np.zeros((M, N)), np.zeros((M, N))
    W[obs.rows, obs.cols], Y[obs.rows, obs.cols] = obs.weights, obs.values
    return obs, other, mean, covariance, W, Y


def dense_posterior(mean, covariance, W, Y, scales, precision, pull):
    features = np.c_[mean[:, :K], np.ones(N)]
    seconds = np.einsum("na,nb->nab", features, features)
    seconds[:, :K, :K] += covariance[:, :K, :K]
    cross = np.zeros((N, K + 1))
    cross[:, :K] = covariance[:, :K, K]
    A = scales[:, None, None] * np.einsum("mn,nab->mab", W, seconds) + precision
    targets = (W * Y) @ features - W @ (features * mean[:, K:] + cross)
    b = scales[:, None] * targets + pull
    return A, np.linalg.solve(A, b[..., None])[..., 0]


def test_posterior_of_rows_is_that_of_dense_formulas(problem, row_backend):
    obs, other, mean, covariance, W, Y = problem
    rng = np.random.default_rng(1)
    scales, pull = rng.uniform(0.5, 2, M), rng.standard_normal((M, K + 1))
    precision = np.diag([1.0, 2, 3, 4]) + 0.1
    multipliers = rng.uniform(0.5, 2, N)
    A, x = dense_posterior(mean, covariance, W * multipliers, Y, scales, precision, pull)
    own = Moments.of(torch.zeros(M, K).double(), torch.zeros(M).double())
    given = {"scales": scales, "precision": precision, "pull": pull, "multipliers": multipliers}
    losses, logdets = GaussianRows.of(obs, obs.csr, torch.float64).posterior(
        own, other, **{name: torch.from_numpy(x) for name, x in given.items()}
    )
    np.testing.assert_allclose(own.unknowns, x, rtol=1e-9)
    np.testing.assert_allclose(logdets, np.linalg.slogdet(A)[1], rtol=1e-9)
    total = np.einsum("ma,mb->ab", x, x) + np.linalg.inv(A).sum(axis=0)
    np.testing.assert_allclose(own.total(), total, rtol=1e-9)
    # The expected squared residual, by its definition over a large sample of both sides.
    C = np.linalg.inv(A)
    features = np.c_[mean[:, :K], np.ones(N)]
    residual = Y - x @ features.T - mean[:, K]
    spread = np.einsum("mab,na,nb->mn", C, features, features) + covariance[None, :, K, K]
    spread = spread + np.einsum("nab,ma,mb->mn", covariance[:, :K, :K], x[:, :K], x[:, :K])
    spread += np.einsum("mab,nab->mn", C[:, :K, :K], covariance[:, :K, :K])
    spread += 2 * np.einsum("na,ma->mn", covariance[:, K, :K], x[:, :K])
    expected = (W * multipliers * (residual**2 + spread)).sum(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_draws_have_the_mean_and_covariance_of_the_posterior(problem, row_backend):
    obs, other, mean, covariance, W, Y = problem
    precision, ones = np.eye(K + 1), np.ones(M)
    given = {"scales": ones, "precision": precision, "pull": np.zeros((M, K + 1))}
    A, x = dense_posterior(mean, covariance, W, Y, ones, precision, given["pull"])
    own, rng = Moments.of(torch.zeros(M, K).double(), torch.zeros(M).double()), seeded()
    given = {name: torch.from_numpy(x) for name, x in given.items()}
    rows, draws = GaussianRows.of(obs, obs.csr, torch.float64), np.empty((4000, M, K + 1))
    for draw in draws:
        noise = torch.randn(M, K + 1, generator=rng, dtype=torch.float64)
        rows.draw(own, other, **given, noise=noise)
        draw[:] = own.unknowns
    root = np.linalg.cholesky(A)
    white = np.einsum("mab,sma->smb", root, draws - x)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(
        np.einsum("sma,smb->mab", white, white) / 4000,
        np.broadcast_to(np.eye(K + 1), (M, K + 1, K + 1)),
        atol=8 / 4000**0.5,
    )


def test_rows_do_not_depend_on_threads():
    obs, before = entries(count=20000, m=300, n=200), torch.get_num_threads()
    zero = torch.zeros(300, 6, dtype=torch.float64)
    columns = torch.randn(200, 5, generator=seeded(), dtype=torch.float64)
    other = Moments.of(columns, zero[:200, 0])
    sides = [Moments.of(zero[:, :5], zero[:, 5]) for _ in range(2)]
    given = {"scales": zero[:, 0] + 1, "precision": torch.eye(6).double(), "pull": zero}
    try:
        for threads, own in zip((1, 2), sides, strict=True):
            torch.set_num_threads(threads)
            GaussianRows.of(obs, obs.csr, torch.float64).posterior(own, other, **given)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(sides[0].products, sides[1].products)


@pytest.mark.parametrize("strength", [5.0, math.inf])
@pytest.mark.parametrize("weighted", [True, False])
def test_free_energy_never_increases(weighted, strength):
    obs = entries(weighted)
    settings = {"noise_strength": strength, "tolerance": 0.0, "max_iterations": 60}
    history = variational(obs, 4, **settings, generator=seeded()).history.objective
    assert 20 < len(history)
    assert all(np.diff(history) <= 1e-11 * history[0])


def test_divergences_are_those_of_a_sample():
    from scipy.stats import wishart

    count, rng = 20_000, np.random.default_rng(0)
    x = rng.standard_normal((40, 2)) + 1
    q, p = NormalWishart.posterior(x.sum(0), x.T @ x, 40), NormalWishart.prior(2)
    precision = wishart.rvs(df=q.degrees, scale=q.scale, size=count, random_state=rng)
    roots = np.linalg.inv(np.linalg.cholesky(precision)).transpose(0, 2, 1)
    mean = q.mean + (roots @ rng.standard_normal((count, 2, 1)))[..., 0] / q.weight**0.5
    densities = []
    for d in (q, p):
        gap = mean - d.mean
        energy = d.weight * np.einsum("sa,sab,sb->s", gap, precision, gap)
        log_wishart = wishart.logpdf(np.moveaxis(precision, 0, -1), df=d.degrees, scale=d.scale)
        densities.append(log_wishart + np.log(d.weight) - energy / 2)  # (K / 2) log of the weight
    ratios = densities[0] - densities[1]
    error = 5 * float(np.std(ratios)) / count**0.5
    assert q.divergence() == pytest.approx(float(np.mean(ratios)), abs=error)


def test_divergence_of_gammas_is_that_of_numerical_integration():
    from scipy.integrate import quad
    from scipy.stats import gamma

    q, p = gamma(3.0, scale=1 / 2.0), gamma(1.5, scale=1 / 0.7)
    expected, _ = quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), 0, 50)
    assert expected == pytest.approx(
        Gammas(np.array([3.0]), np.array([2.0]), 1.5, 0.7).divergence(), rel=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_planted_matrix_is_found_at_any_scale(scale):
    obs, W = planted(0.1, scale=scale)
    result = variational(obs, 6, tolerance=1e-4, max_iterations=100, generator=seeded())
    # An oracle that knew the other side would be off by sqrt(rank (m + n) / count) of the noise.
    oracle = 0.1 * (3 * 140 / 2000) ** 0.5 / 3**0.5
    assert float((result.to_dense() - W).norm() / W.norm()) < 2 * oracle


def test_single_precision_agrees_with_double():
    single, double = (
        variational(planted(0.3, dtype)[0], 3, max_iterations=15, generator=seeded()).to_dense()
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.float32 == single.dtype
    assert float((single - double).norm() / double.norm()) < 0.05


def test_noisy_rows_count_less():
    obs, W = planted(0.1)
    loud = obs.rows < 20
    g = seeded(1)
    noise = 3 * torch.randn(len(obs), generator=g, dtype=torch.float64) * loud
    obs = obs.with_values(obs.values + noise)
    errors = [
        (variational(obs, 3, noise_strength=x, generator=seeded()).to_dense() - W)[20:].norm()
        for x in (10.0, math.inf)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_entries_of_weight_zero_do_not_count():
    obs, _ = planted(0.1)
    weights = torch.ones(len(obs), dtype=torch.float64)
    weights[:100] = 0
    values = obs.values.clone()
    values[:100] = 1e3
    marked = Observations(obs.rows, obs.cols, values, obs.shape, weights)
    ends = [variational(x, 3, generator=seeded()) for x in (marked, obs.take(weights > 0))]
    torch.testing.assert_close(ends[0].to_dense(), ends[1].to_dense(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "values"),
    [([0], [3.0]), ([0, 1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0, 5.0]), ([1, 3], [2.0, 2.0])],
)
def test_tiny_data_give_finite_predictions_within_reach(rows, values):
    result = variational(Observations(rows, rows, values, (6, 7)), 4, generator=seeded())
    dense = result.to_dense()
    assert bool(torch.isfinite(dense).all())
    assert min(values) - 1e-5 <= float(dense.min())
    assert float(dense.max()) <= max(values) + 1e-5


def test_unseen_rows_are_predicted_by_what_rows_are_like_on_average():
    obs, _ = planted(0.1)
    larger = Observations(obs.rows, obs.cols, obs.values, (82, 60))
    result = variational(larger, 3, generator=seeded())
    assert torch.equal(result.predict(80, torch.arange(60)), result.predict(81, torch.arange(60)))


def test_result_lies_in_a_set_that_was_asked_for():
    obs, _ = planted(0.1)
    feasible = lo.SchattenBall(p=1, radius=50.0, rank=3)
    result = variational(obs, feasible, generator=seeded())
    assert feasible.contains(result.operator)
    assert 50.0 == pytest.approx(float(result.operator.schatten_norm(1)))


def test_validation_returns_the_best_sweep():
    obs, _ = planted(1.0)
    result = variational(obs, 10, validation=0.2, tolerance=0.0, generator=seeded())
    assert len(result.history.validation_rmse) == len(result.history)
    assert all(map(math.isfinite, result.history.validation_rmse))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"rank": 0}, OptionError, "rank must be a positive integer"),
        ({"noise_strength": 0.0}, OptionError, "noise_strength must be positive"),
        ({"tolerance": -1.0}, OptionError, "tolerance must be finite and nonnegative"),
        ({"max_iterations": 0}, OptionError, "max_iterations must be a positive integer"),
    ],
)
def test_settings_outside_their_domain_raise(setting, error, message):
    with pytest.raises(error, match=message):
        variational(entries(), **setting)


def test_without_biases_there_are_none():
    """A matrix of rank 2 without a mean is found; offsets are left to the factors."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30))
    seen = rng.random(W.shape) < 0.6
    noisy = W + 0.05 * rng.normal(size=W.shape)
    observed = Observations.from_dense(np.where(seen, noisy, np.nan))
    for part in (observed, observed.to(dtype=torch.float32)):
        result = lo.complete(
            part, 2, solver="variational", bias=None, generator=torch.Generator().manual_seed(0)
        )
        bias = result.bias
        assert (0.0, 0.0, 0.0) == (
            bias.mean,
            float(bias.rows.abs().max()),
            float(bias.cols.abs().max()),
        )
        error = (result.to_dense().double().numpy() - W)[~seen]
        assert np.sqrt(np.mean(error**2)) < 0.06
        objective = np.array(result.history.objective)
        assert (np.diff(objective) <= 1e-4 * objective[1:]).all()


def test_without_biases_growing_goes_on():
    rng = np.random.default_rng(1)
    W = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 60))
    seen = rng.random(W.shape) < 0.7
    observed = Observations.from_dense(np.where(seen, W + 0.1 * rng.normal(size=W.shape), np.nan))
    result = lo.complete(observed, 30, solver="variational", bias=None)
    assert np.sqrt(np.mean((result.to_dense().numpy() - W)[~seen] ** 2)) < 0.2
