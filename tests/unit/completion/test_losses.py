"""Losses against closed forms, scipy's distributions and scikit-learn's regressions."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression, PoissonRegressor

import lowrank_opt as lo
from lowrank_opt.completion.model.box import InRange
from lowrank_opt.completion.model.links import link_of
from lowrank_opt.completion.model.losses import Squared, entry_loss
from lowrank_opt.completion.model.ordinal import (
    free_of,
    log_interval_probability,
    log_normal_cdf,
    negative_log_likelihood,
    thresholds_for,
    thresholds_of,
)
from lowrank_opt.errors import ObservationError, OptionError
from tests.completion_cases import ball, factored, normal, observe, seeded

D = torch.float64
NONE = torch.empty(0, dtype=D)
# log(Phi(a + w) - Phi(a)) to 60 digits of working precision, rounded.
INTERVALS = [
    (-0.5, 1.0, -0.9599163336956223),
    (-3.0, 1e-08, -23.839619262157036),
    (7.0, 1e-06, -39.23445259116707),
    (-50.0, 0.1, -1249.8411418668054),
    (40.0, 30.0, -804.6084420137538),
    (-5.0, 10.0, -5.733033080966979e-07),
    (0.0, 0.0001, -10.129278906847523),
]


# One entry.


@pytest.mark.parametrize(("lower", "width", "expected"), INTERVALS)
def test_log_interval_probability(lower: float, width: float, expected: float) -> None:
    a, w = torch.tensor([lower], dtype=D), torch.tensor([width], dtype=D)
    assert pytest.approx(expected, rel=1e-11) == float(log_interval_probability(a, w))


def test_log_interval_probability_is_differentiable() -> None:
    a = torch.tensor([-4.0, -1.0, -0.3, 0.0, 0.5, 3.0, 30.0], dtype=D, requires_grad=True)
    w = torch.tensor([0.5, 1e-3, 0.6, 2.0, 0.01, 7.0, 1.0], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(log_interval_probability, (a, w), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("far", [1e3, 1e5, 1e10, 1e100, 1e150])
@pytest.mark.parametrize("width", [1e-8, 1.0, 1e3])
def test_gradients_far_out_are_those_of_a_square(far: float, width: float) -> None:
    a = torch.tensor([far, -far - width], dtype=D, requires_grad=True)
    log_interval_probability(a, torch.full_like(a, width)).sum().backward()
    # Narrow beside the tail's length: from -x - 1/x down to -x - 1/width.
    bound = 2 / min(width, far) if width > 1 / far else 2 / far + width
    np.testing.assert_allclose([-far, far], a.grad, rtol=1e-13, atol=bound)


@pytest.mark.parametrize("x", [-1e150, -1e10, -40.0, -1e-9, 0.0, 1e-9, 5.0, 40.0])
def test_log_normal_cdf(x: float) -> None:
    point = torch.tensor([x], dtype=D, requires_grad=True)
    value = log_normal_cdf(point)
    value.backward()
    expected = stats.norm.logcdf(x)
    slope = np.exp(stats.norm.logpdf(x) - expected) if x > -1e3 else -x
    assert pytest.approx(expected, rel=1e-13) == float(value.detach())
    assert pytest.approx(slope, rel=1e-12, abs=1e-300) == float(point.grad)


def test_ordered_probit_is_the_probability_of_its_level() -> None:
    thresholds = torch.tensor([-1.2, -0.1, 0.4, 2.0], dtype=D)
    scores, levels = normal(60, seed=1), torch.arange(60) % 5
    edges = np.concatenate(([-np.inf], thresholds.numpy(), [np.inf]))
    s, k = scores.numpy(), levels.numpy()
    probability = stats.norm.cdf(edges[k + 1] - s) - stats.norm.cdf(edges[k] - s)
    losses = negative_log_likelihood(scores, levels, free_of(thresholds))
    np.testing.assert_allclose(losses, -np.log(probability), rtol=1e-10)
    total = torch.stack(
        [
            negative_log_likelihood(scores, torch.full((60,), j), free_of(thresholds))
            for j in range(5)
        ]
    )
    np.testing.assert_allclose(np.ones(60), (-total).exp().sum(0), rtol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_ordered_probit_is_differentiable_in_scores_and_thresholds(count: int) -> None:
    levels = torch.arange(12) % count
    scores, free = normal(12, seed=2).requires_grad_(), normal(count - 1, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, f: negative_log_likelihood(s, levels, f), (scores, free)
    )


@pytest.mark.parametrize("size", [0.0, 1e3, 1e30, 1e140])
@pytest.mark.parametrize("free", [[0.0, 0.0, 0.0], [1e3, -1e3, -1e3], [-5.0, 1e4, -1e300]])
def test_ordered_probit_stays_finite(size: float, free: list[float]) -> None:
    scores = torch.tensor([size, -size] * 4, dtype=D, requires_grad=True)
    parameters = torch.tensor(free, dtype=D, requires_grad=True)
    loss = negative_log_likelihood(scores, torch.arange(8) // 2, parameters)
    loss.sum().backward()
    for x in (loss, scores.grad, parameters.grad):
        assert bool(torch.isfinite(x).all())
    assert bool((loss >= 0).all())


@pytest.mark.parametrize("free", [[0.0, 1e3, -1e3], [-1e30, -1e-30, 5.0]])
def test_thresholds_are_in_order(free: list[float]) -> None:
    assert bool((thresholds_of(torch.tensor(free, dtype=D)).diff() >= 0).all())


def test_thresholds_of_shares_are_quantiles() -> None:
    shares = torch.tensor([0.1, 0.25, 0.4, 0.25], dtype=D)
    expected = stats.norm.ppf(shares.cumsum(0)[:-1].numpy())
    np.testing.assert_allclose(expected, thresholds_for(shares), rtol=1e-12)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_logistic_is_the_bernoulli_likelihood(low: float, size: float) -> None:
    scores, values = size * normal(20, seed=4), torch.where(torch.arange(20) % 2 == 0, 1.0, low)
    sign = np.where(values.numpy() > 0, -1, 1)
    losses = entry_loss("logistic").losses(scores, values, NONE)
    np.testing.assert_allclose(np.logaddexp(0, sign * scores.numpy()), losses, rtol=1e-13)


def test_poisson_is_half_the_deviance() -> None:
    scores, values = normal(20, seed=5), torch.arange(20.0, dtype=D) % 6
    v, mean = values.numpy(), scores.exp().numpy()
    expected = stats.poisson.logpmf(v, np.where(v > 0, v, 1e-300)) - stats.poisson.logpmf(v, mean)
    losses = entry_loss("poisson").losses(scores, values, NONE)
    np.testing.assert_allclose(expected, losses, rtol=1e-10, atol=1e-12)
    perfect = entry_loss("poisson").losses(values[1:6].log(), values[1:6], NONE)
    np.testing.assert_allclose(perfect, 0, atol=1e-14)


# Whole fits, biases alone against regressions on one-hot rows and columns.


def _cells(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    m, n = 8, 6
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(m), torch.arange(n), indexing="ij"))
    score = normal(m, seed=seed)[i] + normal(n, seed=seed + 1)[j]
    design = np.hstack((np.eye(m)[i.numpy()], np.eye(n)[j.numpy()]))
    return i, j, score, design


def _biases(i, j, values, loss, weights=None, **options) -> lo.CompletionResult:
    seen = lo.Observations(i, j, values, (8, 6), weights)
    # A ball so small that only the biases speak.
    ball = lo.HomogeneousBall((8, 6), 1, radius=1e-9, dtype=D)
    return lo.complete(seen, ball, loss=loss, bias_penalty=0.7, tolerance=1e-12, **options)


@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_biases_are_those_of_logistic_regression(weighted: bool) -> None:
    i, j, score, design = _cells()
    values = (score + normal(48, seed=9) > 0.3).double()
    weights = normal(48, seed=10).abs() + 0.1 if weighted else None
    result = _biases(i, j, values, "logistic", weights)
    peer = LogisticRegression(C=1 / 0.7, tol=1e-12, max_iter=10_000)
    peer.fit(design, values.numpy(), None if weights is None else weights.numpy())
    np.testing.assert_allclose(peer.predict_proba(design)[:, 1], result.predict(i, j), atol=1e-5)
    assert pytest.approx(float(peer.intercept_[0]), abs=1e-4) == result.bias.mean


def test_signs_and_bits_are_the_same_model() -> None:
    i, j, score, _ = _cells()
    bits = (score > 0).double()
    p, y = (_biases(i, j, v, "logistic").predict(i, j) for v in (bits, 2 * bits - 1))
    torch.testing.assert_close(2 * p - 1, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_poisson_biases_are_those_of_poisson_regression(offset: float) -> None:
    i, j, score, design = _cells()
    counts = torch.poisson((0.5 * score + offset).exp(), generator=seeded(3)).double()
    result = _biases(i, j, counts, "poisson")
    peer = PoissonRegressor(alpha=0.7 / 48, tol=1e-10, max_iter=10_000).fit(design, counts.numpy())
    np.testing.assert_allclose(peer.predict(design), result.predict(i, j), rtol=1e-4)


def test_ordered_probit_of_two_levels_is_probit_regression() -> None:
    i, j, score, design = _cells()
    values = torch.where(score > 0.2, 5.0, 2.0).double()
    sign = np.where(values.numpy() > 3, 1, -1)

    def objective(x: np.ndarray) -> float:
        latent = design @ x[1:] + x[0]
        return -stats.norm.logcdf(sign * latent).sum() + 0.35 * (x[1:] @ x[1:])

    best = optimize.minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    result = _biases(i, j, values, "ordered_probit")
    expected = 2 + 3 * stats.norm.cdf(design @ best.x[1:] + best.x[0])
    np.testing.assert_allclose(expected, result.predict(i, j), atol=1e-4)


def test_ordered_probit_without_structure_gives_the_shares() -> None:
    values = torch.tensor([1.0, 1, 2, 2, 2, 2, 3, 4, 4, 4], dtype=D)
    seen = lo.Observations([0] * 10, range(10), values, (1, 10))
    ball = lo.HomogeneousBall((1, 10), 1, radius=1e-12, dtype=D)
    result = lo.complete(seen, ball, loss="ordered_probit", bias=None, tolerance=1e-14)
    expected = stats.norm.ppf([0.2, 0.6, 0.7])
    np.testing.assert_allclose(expected, result.link.numbers[4:], atol=1e-5)
    np.testing.assert_allclose(values.mean(), result.predict(0, range(10)), rtol=1e-6)


# Low rank beside biases.


def _planted(link, seed: int = 0) -> tuple[lo.Observations, torch.Tensor]:
    scores = 1.5 * normal(30, 2, seed=seed) @ normal(2, 25, seed=seed + 1)
    return observe(link(scores), 0.8), scores


@pytest.mark.parametrize(
    ("loss", "link"),
    [
        ("logistic", lambda s: (s > 0).double()),
        ("ordered_probit", lambda s: torch.bucketize(s, torch.tensor([-2.0, 0.0, 2.0])).double()),
        ("poisson", lambda s: (0.4 * s + 1).exp().round()),
    ],
)
def test_the_right_loss_beats_the_mean_and_stays_in_its_range(loss, link) -> None:
    seen, scores = _planted(link)
    result = lo.complete(seen, factored((30, 25), 2), loss=loss, penalty=1.0, max_iterations=100)
    dense, truth = result.to_dense(), link(scores)
    assert (dense - truth).square().mean() < 0.5 * (truth - truth.mean()).square().mean()
    assert bool((dense >= 0).all())
    assert loss == "poisson" or float(dense.max()) <= float(truth.max())


def test_validation_is_measured_on_predictions() -> None:
    seen, _ = _planted(lambda s: (s > 0).double())
    kept, held = seen.split(0.2, generator=seeded(1))
    result = lo.complete(kept, factored((30, 25), 2), loss="logistic", penalty=1.0, validation=held)
    errors = result.predict(held.rows, held.cols) - held.values
    best = min(result.history.validation_rmse)
    assert pytest.approx(best, rel=1e-9) == float(errors.square().mean().sqrt())


def test_link_survives_a_file(tmp_path) -> None:
    seen, _ = _planted(lambda s: torch.bucketize(s, torch.tensor([-2.0, 0.0, 2.0])).double())
    result = lo.complete(seen, factored((30, 25), 2), loss="ordered_probit", max_iterations=5)
    result.save(tmp_path / "result")
    loaded = lo.CompletionResult.load(tmp_path / "result")
    assert result.link == loaded.link
    assert torch.equal(result.predict(0, range(25)), loaded.predict(0, range(25)))


# Predictions in a range.


def test_a_range_costs_nothing_beyond_an_end_of_the_same_value() -> None:
    losses = InRange(1.0, 5.0).losses(
        torch.tensor([7.0, 4.0, -3.0, 2.0, 7.0, -3.0]),
        torch.tensor([5.0, 5.0, 1.0, 1.0, 3.0, 3.0]),
        NONE,
    )
    assert [0.0, 0.5, 0.0, 0.5, 8.0, 18.0] == losses.tolist()


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber", torch.square])
def test_a_range_never_costs_less_than_its_prediction_and_is_convex(loss) -> None:
    boxed, plain = InRange(1.0, 5.0, loss), entry_loss(loss)
    scores = torch.linspace(-20, 20, 801, dtype=D).repeat(5)
    values = torch.arange(1.0, 6.0, dtype=D).repeat_interleave(801)
    losses = boxed.losses(scores, values, NONE)
    clipped = plain.losses(scores.clamp(1, 5), values, NONE)
    assert bool((losses >= clipped - 1e-12).all())
    inside = (scores >= 1) & (scores <= 5)
    torch.testing.assert_close(losses[inside], clipped[inside])
    assert bool((losses.view(5, 801).diff(n=2, dim=1) >= -1e-12).all())


def test_every_prediction_is_in_the_range() -> None:
    truth = (4 * normal(20, 2, seed=1) @ normal(2, 15, seed=2) + 3).clamp(1, 5)
    seen = observe(truth, 0.6)
    result = lo.complete(seen, factored((20, 15), 3), prediction_range=(1.0, 5.0), penalty=0.1)
    dense = result.to_dense()
    assert (1.0, 5.0) == (float(dense.min()), float(dense.max()))
    free = lo.complete(seen, factored((20, 15), 3), penalty=0.1)
    ranged, plain = ((x.clamp(1, 5) - truth).square().mean() for x in (dense, free.to_dense()))
    # The truth is clipped: a model that knows so needs less rank.
    assert ranged < plain


def test_a_range_no_score_leaves_changes_nothing() -> None:
    seen = observe(normal(12, 2, seed=1) @ normal(2, 10, seed=2), 0.7)
    wide, plain = (
        lo.complete(seen, factored((12, 10), 2), penalty=0.1, tolerance=1e-10, **options)
        for options in ({"prediction_range": (-1e3, 1e3)}, {})
    )
    torch.testing.assert_close(plain.to_dense(), wide.to_dense(), rtol=0, atol=1e-4)


# Refusals, before work starts.


@pytest.mark.parametrize(
    ("loss", "values", "message"),
    [
        ("logistic", [0.0, 2.0], "needs values in {0, 1} or in {-1, 1}; got 1 others"),
        ("logistic", [0.0, -1.0], "needs values in {0, 1} or in {-1, 1}; got 1 others"),
        ("poisson", [1.0, -0.5], "needs nonnegative values, not all zero"),
        ("poisson", [0.0, 0.0], "needs nonnegative values, not all zero"),
        ("ordered_probit", [3.0, 3.0], "needs 2 to 100 distinct values; got 1"),
        (InRange(0.0, 1.0), [0.5, 1.5], "values must be in the range"),
    ],
)
def test_refuses_values(loss, values, message) -> None:
    seen = lo.Observations([0, 1], [0, 1], values, (2, 2))
    with pytest.raises(ObservationError, match=message):
        lo.complete(seen, lo.Factored((2, 2), 1), loss=loss)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_refuses_an_empty_range(ends) -> None:
    seen = lo.Observations([0, 1], [0, 1], [1.0, 1.0], (2, 2))
    with pytest.raises(OptionError, match="a range must be finite, low < high"):
        lo.complete(seen, lo.Factored((2, 2), 1), prediction_range=ends)


def test_a_range_needs_a_loss_of_residuals() -> None:
    with pytest.raises(OptionError, match="a range needs a loss of residuals; got loss='logistic'"):
        InRange(0.0, 1.0, "logistic")


@pytest.mark.parametrize("loss", ["quadratic", 3])
def test_refuses_unknown_losses(loss) -> None:
    with pytest.raises(OptionError, match="loss must be 'squared'"):
        entry_loss(loss)


@pytest.mark.parametrize(
    ("name", "numbers"), [("probit", ()), ("logistic", (1.0,)), ("ordered_probit", (1.0, 2.0))]
)
def test_refuses_unknown_links(name, numbers) -> None:
    with pytest.raises(ObservationError, match="a link is one of"):
        link_of(name, numbers)


@pytest.mark.parametrize(
    "loss",
    ["squared", "absolute", "huber", "logistic", "ordered_probit", "poisson", InRange(0.0, 2.0)],
)
def test_convex_losses_lie_below_their_chords(loss) -> None:
    values = torch.tensor([0.0, 1.0] if loss == "logistic" else [0.0, 1.0, 2.0]).repeat(200)
    seen = lo.Observations(range(len(values)), [0] * len(values), values.double(), (len(values), 1))
    found = entry_loss(loss)
    free = found.start(seen, intercept=True)
    low, high = (4 * normal(len(values), seed=k) for k in (0, 1))
    ends = [found.losses(x, seen.values, free) for x in (low, high)]
    middle = found.losses((low + high) / 2, seen.values, free)
    assert found.convex
    assert bool((middle <= (ends[0] + ends[1]) / 2 + 1e-9).all())


def test_of_a_function_nothing_is_known() -> None:
    assert not entry_loss(torch.tanh).convex
    assert not InRange(0.0, 1.0, torch.tanh).convex


def test_an_equal_object_is_not_denied_a_certificate() -> None:
    seen = observe(normal(6, 5), 0.8)
    result = lo.complete(seen, ball((6, 5), 5, 2.0), loss=Squared())
    assert result.certificate().gap <= 1e-4 * result.certificate().objective
