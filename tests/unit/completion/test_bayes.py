import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lowrank_opt.completion import bayesian
from lowrank_opt.completion.bayes import lines
from lowrank_opt.completion.bayes.gibbs_sweeps import draw_normal_wishart, draw_wishart
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.errors import DataError, ObservationError, OptionError, ShapeError
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import Observations


def planted(seed=0, m=60, n=50, rank=2, noise=0.3, share=0.5):
    g = torch.Generator().manual_seed(seed)
    truth = 3 + torch.randn(m, rank, generator=g) @ torch.randn(rank, n, generator=g)
    seen = torch.rand(m, n, generator=g) < share
    noisy = truth + noise * torch.randn(m, n, generator=g)
    held_out = Observations.from_dense(noisy.where(~seen, torch.nan))
    return Observations.from_dense(noisy.where(seen, torch.nan)), held_out


def fit(observations, rank=2, seed=0, **settings):
    settings = {"burn_in": 30, "samples": 60} | settings
    return bayesian(observations, rank, generator=torch.Generator().manual_seed(seed), **settings)


def test_row_draws_have_the_gaussian_posterior_of_a_dense_computation(row_backend):
    rng, m, count = np.random.default_rng(0), 40_000, 3
    obs = Observations(np.repeat(np.arange(m), count), np.tile(np.arange(count), m),
                       np.tile([1.0, -2.0, 0.5], m), (m, count))  # fmt: skip
    F, P, pull = rng.standard_normal((count, 2)), np.array([[2.0, 0.5], [0.5, 1.0]]), [0.3, -0.7]
    solution, noise = torch.zeros(m, 2, dtype=torch.float64), rng.standard_normal((m, 2))
    given = {"precision": P, "strengths": np.ones(m), "pull": np.tile(pull, (m, 1)), "noise": noise}
    RowProblems.of(obs, obs.csr, torch.float64).solve(
        solution,
        *map(torch.from_numpy, (F, np.zeros(count))),
        scale=1.7,
        **{name: torch.from_numpy(array) for name, array in given.items()},
    )
    x = solution.numpy()
    covariance = np.linalg.inv(1.7 * F.T @ F + P)
    mean = covariance @ (1.7 * F.T @ [1.0, -2.0, 0.5] + pull)
    deviation = np.sqrt(np.diag(covariance) / m)
    assert (np.abs(x.mean(0) - mean) < 5 * deviation).all()
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=8 * covariance.max() / math.sqrt(m))


def test_wishart_draws_have_mean_and_variance_of_the_distribution():
    inverse_scale, degrees, count = np.array([[2.0, 0.6], [0.6, 1.0]]), 7, 20_000
    rng = np.random.default_rng(0)
    draws = np.array([draw_wishart(inverse_scale, degrees, rng) for _ in range(count)])
    scale = np.linalg.inv(inverse_scale)
    variance = degrees * (scale**2 + np.outer(np.diag(scale), np.diag(scale)))
    assert (np.abs(draws.mean(0) - degrees * scale) < 5 * np.sqrt(variance / count)).all()
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.1)


def test_normal_wishart_mean_is_the_shrunk_average():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 2)) + np.array([3.0, -1.0])
    zero = np.zeros((2, 2))
    sums = (x.sum(0), x.T @ x, 6)
    means = np.array([draw_normal_wishart(*sums, zero, 0, rng)[0] for _ in range(20_000)])
    error = means.mean(0) - 6 * x.mean(0) / 8
    assert (np.abs(error) < 5 * means.std(0) / math.sqrt(len(means))).all()


@pytest.mark.parametrize("shape", [0.05, 0.7, 1.0, 3.0, 1e6])
def test_gamma_draws_of_rows_have_the_distribution(shape: float):
    obs = Observations([0], [0], [1.0], shape=(20_000, 1))
    drawn = lines.Lines(obs, 0, np.random.default_rng(0)).gamma(np.full(20_000, shape))
    assert stats.kstest(drawn, stats.gamma(shape).cdf).pvalue > 1e-3


@given(
    ends=st.lists(st.integers(0, 30), max_size=3).map(lambda x: sorted([0, *x, 30])),
    seed=st.integers(0, 9),
)
def test_draws_of_a_row_depend_on_nothing_else(ends: list[int], seed: int):
    """However rows are spread, whatever shapes the others have, and draw after draw."""
    obs = Observations([0], [0], [1.0], shape=(30, 1))
    shapes = np.random.default_rng(seed).gamma(0.5, 2, 30)

    def drawn(held: slice, others: float) -> list[np.ndarray]:
        mine = lines.Lines(obs, 0, np.random.default_rng(seed))
        mine.held = held
        given = np.where(np.arange(30) < 15, shapes, others * shapes)[held]
        return [mine.gamma(given), mine.normal(3, np.float32), mine.gamma(given)]

    with mock.patch.object(lines, "BLOCK", 7):
        whole, other = drawn(slice(0, 30), 1.0), drawn(slice(0, 30), 9.0)
        parts = [drawn(slice(a, b), 1.0) for a, b in pairwise(ends)]
    for k, x in enumerate(whole):
        assert np.array_equal(x, np.concatenate([part[k] for part in parts]))
        assert np.array_equal(x[:15], other[k][:15])
    assert not np.array_equal(whole[0], whole[2])


def test_planted_matrix_is_predicted_to_the_noise():
    # 3 (m + n) unknowns add 9 % to the variance, 4.4 % to its root, at full efficiency.
    kept, held = planted(m=150, n=120)
    errors = fit(kept).predict(held.rows, held.cols) - held.values
    assert float(errors.square().mean().sqrt()) < 1.1 * 0.3


def test_intervals_cover_what_they_promise():
    kept, held = planted(m=150, n=120)
    mean, std = fit(kept).predict(held.rows, held.cols, return_std=True)
    covered = ((held.values - mean).abs() < 1.6449 * std).double().mean()
    assert 0.88 < covered < 0.92


def test_noise_precision_is_found():
    kept, _ = planted(m=150, n=120)
    assert 1 / 0.3**2 == pytest.approx(float(fit(kept).noise_precision.mean()), rel=0.06)


def test_unseen_rows_are_predicted_from_features():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(120, 3, generator=g)
    truth = 2 + X @ torch.randn(3, 30, generator=g)
    seen = (torch.arange(120) < 90)[:, None] & (torch.rand(120, 30, generator=g) < 0.6)
    kept = Observations.from_dense(truth.where(seen, torch.nan))
    fitted = fit(kept, 3, row_features=[X], burn_in=60).predict(
        torch.arange(90, 120)[:, None], torch.arange(30)
    )
    assert float((fitted - truth[90:]).norm() / (truth[90:] - 2).norm()) < 0.2


def test_equal_generators_give_equal_draws():
    kept, _ = planted()
    first, second = (fit(kept, samples=3, implicit=True) for _ in range(2))
    assert torch.equal(first.row_factors, second.row_factors)


def test_weights_are_counted_like_repeated_noise():
    # A weight scales a value's precision: a heavy contradicting value pulls harder.
    kept, _ = planted()
    heavy = torch.ones(len(kept))
    heavy[0] = 1e4
    moved = kept.values.clone()
    moved[0] += 2
    weighted = Observations(kept.rows, kept.cols, moved, kept.shape, heavy)
    plain = Observations(kept.rows, kept.cols, moved, kept.shape)
    misses = [
        float((fit(x).predict(kept.rows[:1], kept.cols[:1]) - moved[0]).abs())
        for x in (weighted, plain)
    ]
    assert misses[0] < 0.2 * misses[1]


def test_completion_is_the_posterior_mean():
    kept, held = planted()
    posterior = fit(kept, samples=7)
    expected = posterior.predict(held.rows, held.cols)
    actual = posterior.to_completion().predict(held.rows, held.cols)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_prediction_moments_are_those_of_dense_draws():
    p = fit(planted()[0], samples=9)
    dense = p.row_factors @ p.col_factors.mT + p.row_bias[..., None] + p.col_bias[:, None] + p.mean
    mean, std = p.predict(torch.arange(60)[:, None], torch.arange(50), return_std=True)
    relative = p.row_precision[..., None] * p.col_precision[:, None]
    noise = (1 / (p.noise_precision[:, None, None] * relative)).mean(0)
    expected = (dense.var(0) + noise).sqrt().float()
    torch.testing.assert_close(mean, dense.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, expected, rtol=1e-3, atol=1e-5)


def test_file_gives_back_the_draws(tmp_path):
    posterior = fit(planted()[0], samples=3)
    posterior.save(tmp_path / "draws.npz")
    loaded = BayesianResult.load(tmp_path / "draws.npz")
    assert torch.equal(posterior.predict([0, 1], [1, 2]), loaded.predict([0, 1], [1, 2]))
    assert posterior.history.objective == loaded.history.objective


def test_foreign_file_raises(tmp_path):
    (tmp_path / "draws.npz").write_bytes(b"not a folder")
    with pytest.raises(DataError, match=r"a result is a folder with .*: Not a directory"):
        BayesianResult.load(tmp_path / "draws.npz")


def test_index_out_of_range_raises():
    with pytest.raises(ObservationError, match=r"rows must be in 0\.\.59"):
        fit(planted()[0], samples=1).predict(60, 0)


def test_features_of_another_length_raise():
    with pytest.raises(ShapeError, match="row_features must have 60 lines"):
        fit(planted()[0], row_features=[torch.ones(59, 2)])


def test_equal_values_are_predicted_everywhere():
    posterior = bayesian(Observations([0, 1], [0, 1], [2.0, 2.0], (2, 2)), 1)
    assert float((posterior.predict([[0], [1]], [0, 1]) - 2).abs().max()) < 1.0


def test_noise_levels_of_rows_are_found():
    kept, held = planted(m=150, n=120)
    g = torch.Generator().manual_seed(1)
    loud = torch.where(kept.rows < 75, 4.0, 1.0)
    noise = (loud.square() - 1).sqrt() * 0.3 * torch.randn(len(kept), generator=g)
    posterior = fit(kept.with_values(kept.values + noise), noise_strength=4.0)
    _, std = posterior.predict(held.rows, held.cols, return_std=True)
    ratio = float(std[held.rows < 75].mean() / std[held.rows >= 75].mean())
    assert 3 < ratio < 4.5


def test_one_noise_level_on_request():
    posterior = fit(planted()[0], noise_strength=math.inf)
    assert posterior.row_precision is not None
    assert bool((posterior.row_precision == 1).all())


def test_noise_strength_outside_its_domain_raises():
    with pytest.raises(OptionError, match="noise_strength must be positive"):
        fit(planted()[0], noise_strength=0.0)


def test_values_far_from_zero_keep_their_signal():
    """Centred before they are cast: float32 does not hold 1e10 and a unit beside it."""
    near = planted()[0].to(dtype=torch.float64)
    far = near.with_values(near.values + 1e10)
    a, b = (fit(x, burn_in=2, samples=5).predict(near.rows, near.cols) for x in (near, far))
    assert torch.float64 == b.dtype
    assert float((a - (b - 1e10)).abs().max()) < 1e-3
