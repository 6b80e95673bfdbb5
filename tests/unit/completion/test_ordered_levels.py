"""Ordered levels in the sampler: latent numbers, thresholds, the chain, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lowrank_opt import complete
from lowrank_opt.completion import Checkpoint, bayesian
from lowrank_opt.completion.after.conformal import residual_scale
from lowrank_opt.completion.bayes.likelihood import OrderedProbit
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.errors import OptionError
from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.kernels.loops.normal import draw_within, log_interval, normal_quantile
from lowrank_opt.kernels.ordered_levels import OrderedLevels, Scores
from lowrank_opt.observations import Observations

INF = np.inf
INTERVALS = [
    (-INF, -40.0), (-40.0, -39.9), (-37.0, -35.0), (-9.0, -8.9), (-INF, 0.3), (-1.0, 1.0),
    (0.2, 0.2 + 1e-6), (3.0, INF), (8.0, 9.0), (40.0, 50.0), (-3.0, 45.0), (-INF, INF),
]  # fmt: skip


def levels_of_scores(seed=0, m=30, n=20, cuts=(-1.0, 0.2, 1.5)):
    """Levels 1, 2, 3, ... of a matrix of rank one and biases, with noise of variance one."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, 1, generator=g), torch.randn(1, n, generator=g)
    z = a * b + a + b + torch.randn(m, n, generator=g)
    levels = 1.0 + (z.unsqueeze(2) > torch.tensor(cuts)).sum(2)
    seen = torch.rand(m, n, generator=g) < 0.5
    return tuple(Observations.from_dense(levels.where(x, torch.nan)) for x in (seen, ~seen))


def fit(observations, rank=1, **settings):
    settings = {"burn_in": 20, "samples": 40, "loss": "ordered_probit"} | settings
    generator = torch.Generator().manual_seed(0)
    return bayesian(observations, rank, generator=generator, **settings)


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.02, 0.3, 0.5, 0.9, 1 - 1e-12])
def test_normal_quantiles_are_those_of_scipy(p: float):
    np.testing.assert_allclose(normal_quantile(p), stats.norm.ppf(p), rtol=1e-14)


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_log_probability_of_an_interval_is_that_of_scipy(a: float, b: float):
    # In the left tail, where the oracle has digits too.
    low, high = (-b, -a) if a + b > 0 else (a, b)
    logs = stats.norm.logcdf(high), stats.norm.logcdf(low)
    expected = logs[0] + np.log1p(-np.exp(logs[1] - logs[0]))
    np.testing.assert_allclose(log_interval(a, b), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_draws_within_an_interval_have_its_distribution(a: float, b: float):
    u = (np.arange(2000) + 0.5) / 2000
    drawn = np.array([draw_within(a, b, x) for x in u])
    assert ((a <= drawn) & (drawn <= b)).all()
    low, high = (-b, -a) if a + b > 0 else (a, b)
    x = np.sort(-drawn if a + b > 0 else drawn)
    base, shift = stats.norm.logcdf(low), stats.norm.logcdf(high)
    share = np.exp(stats.norm.logcdf(x) - shift) - np.exp(base - shift)
    share /= -np.expm1(base - shift)
    # Quantiles at the middles of 2000 shares, in order; far out to the order of 1 / 36^2.
    np.testing.assert_allclose(share, u, atol=2e-3 if abs(high) > 36 else 1e-7)


def one_row(counts: list[int]) -> tuple[OrderedLevels, Scores]:
    """Levels of one row, in these numbers, around scores that are not all alike."""
    values = np.repeat(np.arange(len(counts)), counts).astype(float)
    cols = np.arange(len(values))
    levels = OrderedLevels.of(Observations(0 * cols, cols, values, (1, len(values))))
    means = np.linspace(-0.5, 0.7, len(values))
    return levels, Scores(means, np.array([1.2]), np.linspace(0.8, 1.1, len(values)))


def test_likelihood_of_thresholds_and_its_derivatives_are_those_of_scipy():
    levels, scores = one_row([2, 3, 1, 2])
    cuts, q = np.array([-0.7, 0.1, 0.9]), scores.rows[0] * scores.cols

    def log_likelihood(t: np.ndarray) -> float:
        ends = np.concatenate(([-INF], t, [INF]))
        upper, lower = ends[levels.levels + 1], ends[levels.levels]
        probability = np.diff(stats.norm.cdf(((lower - scores.means) * q,
                                              (upper - scores.means) * q)), axis=0)  # fmt: skip
        return float(np.log(probability).sum())

    found, h, E = levels.likelihood(scores, cuts), 1e-4, np.eye(3)
    np.testing.assert_allclose(found.value, log_likelihood(cuts), rtol=1e-12)
    gradient = [(log_likelihood(cuts + h * e) - log_likelihood(cuts - h * e)) / (2 * h) for e in E]
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-6)
    hessian = [
        (levels.likelihood(scores, cuts + h * e).gradient
         - levels.likelihood(scores, cuts - h * e).gradient) / (2 * h)
        for e in E
    ]  # fmt: skip
    np.testing.assert_allclose(found.hessian, hessian, atol=1e-6)


def test_thresholds_have_their_posterior_given_scores():
    levels, scores = one_row([1, 2, 2, 1])
    chain = OrderedProbit(levels, np.array([-1.0, 0.0, 1.0]), np.random.default_rng(0))
    held = replace(levels)
    object.__setattr__(held, "scores", lambda *_: scores)
    chain.levels = held
    side = Moments.of(torch.zeros(1, 1), torch.zeros(1))
    drawn = []
    for _ in range(2400):
        chain.renew((side, side), (np.ones(1), np.ones(1)))
        drawn.append(chain.thresholds[1])

    def density(t: float) -> float:
        return np.exp(levels.likelihood(scores, np.array([-1.0, t, 1.0])).value)

    grid = np.linspace(-0.999, 0.999, 401)
    below = integrate.cumulative_trapezoid([density(t) for t in grid], grid, initial=0)
    # Every fourth draw: the chain moves nearly independently, but not quite.
    found = stats.kstest(drawn[::4], lambda t: np.interp(t, grid, below / below[-1]))
    assert found.pvalue > 1e-3


def test_ends_of_thresholds_stay_and_the_others_are_in_order():
    result = fit(levels_of_scores()[0])
    t = result.thresholds
    assert (40, 3) == tuple(t.shape)
    assert torch.equal(t[:, [0, 2]], t[:1, [0, 2]].expand(40, 2))
    assert bool((t.diff(dim=1) > 0).all())
    assert len(t[:, 1].unique()) > 20


def test_levels_are_predicted_by_their_mean_and_deviation():
    """Of one draw, summed over levels by SciPy."""
    result = fit(levels_of_scores()[0], samples=1)
    i, j = np.array([0, 3, 7]), np.array([1, 0, 5])
    mean, std = result.predict(i, j, return_std=True)
    score = (result.row_factors[0, i] * result.col_factors[0, j]).sum(1) + result.mean
    score = (score + result.row_bias[0, i] + result.col_bias[0, j]).double().numpy()
    precision = result.noise_precision[0] * result.row_precision[0, i] * result.col_precision[0, j]
    ends = np.concatenate(([-INF], result.thresholds[0].numpy(), [INF]))
    standard = (ends - score[:, None]) * precision.double().sqrt().numpy()[:, None]
    shares, levels = np.diff(stats.norm.cdf(standard), axis=1), np.arange(1.0, 5.0)
    expected = shares @ levels
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(shares @ levels**2 - expected**2), rtol=1e-4)


def test_errors_of_new_levels_are_as_large_as_their_deviations():
    seen, held = levels_of_scores(m=60, n=40)
    mean, std = fit(seen, samples=80).predict(held.rows, held.cols, return_std=True)
    # Of 1200 entries: four sets of them gave 0.92 to 1.01.
    assert 0.85 < float(((held.values - mean) / std).square().mean()) < 1.15


def test_only_the_order_of_levels_matters_for_the_fit():
    seen, _ = levels_of_scores()
    stretched = seen.with_values(seen.values**3 - 100)
    one, two = fit(seen, samples=2), fit(stretched, samples=2)
    assert torch.equal(one.row_factors, two.row_factors)
    assert [-99.0, -92.0, -73.0, -36.0] == two.levels.tolist()


def test_two_levels_have_one_noise_precision_and_a_share_as_prediction():
    seen, held = levels_of_scores(cuts=(0.3,))
    result = fit(seen.with_values(seen.values - 1))
    assert 1 == len(result.noise_precision.unique())
    predicted = result.predict(held.rows, held.cols)
    assert bool(((predicted > 0) & (predicted < 1)).all())


def test_draws_of_levels_survive_a_file_and_an_interruption(tmp_path):
    seen, held = levels_of_scores()
    whole = fit(seen, samples=6)
    whole.save(tmp_path / "result")
    loaded = BayesianResult.load(tmp_path / "result")
    assert torch.equal(whole.predict(held.rows, held.cols), loaded.predict(held.rows, held.cols))

    def stop(line) -> None:
        if stop.left == 0:
            raise RuntimeError
        stop.left -= 1

    stop.left = 22
    from lowrank_opt.solvers import Gibbs

    solver, options = Gibbs(burn_in=20, samples=6), {"loss": "ordered_probit"}
    with pytest.raises(RuntimeError):
        complete(seen, 1, solver=solver, generator=torch.Generator().manual_seed(0),
                 checkpoint=Checkpoint(tmp_path / "state", every=1), callbacks=(stop,),
                 **options)  # fmt: skip
    resumed = complete(seen, 1, solver=solver, generator=torch.Generator().manual_seed(0),
                       checkpoint=Checkpoint(tmp_path / "state", every=1, resume=True),
                       **options)  # fmt: skip
    assert torch.equal(whole.row_factors, resumed.row_factors)
    assert torch.equal(whole.thresholds, resumed.thresholds)


def test_what_ordered_levels_cannot_do_is_refused():
    seen, _ = levels_of_scores()
    weighted = Observations(seen.rows, seen.cols, seen.values, seen.shape, seen.values)
    with pytest.raises(OptionError, match="takes no weights of ordered levels; got some"):
        fit(weighted)
    with pytest.raises(OptionError, match="takes the squared loss and ordered_probit; got"):
        complete(seen, 1, solver="gibbs", loss="huber")
    result = fit(seen, samples=1, burn_in=0)
    with pytest.raises(OptionError, match="thresholds and noise of their own each"):
        result.to_completion()
    with pytest.raises(OptionError, match="thresholds and noise of their own each"):
        residual_scale(result, seen)
