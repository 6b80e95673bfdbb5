"""A planted problem has the rank, spectrum, entries and noise that were asked for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_opt.errors import ObservationError, OptionError, RankError
from problems.synthetic import (
    PlantedProblem,
    coherence,
    planted_low_rank,
    planted_not_at_random,
)


def planted(*args: object, seed: int = 0, **options: object) -> PlantedProblem:
    generator = torch.Generator().manual_seed(seed)
    return planted_low_rank(*args, generator=generator, **options)  # type: ignore[arg-type]


def dense(problem: PlantedProblem) -> torch.Tensor:
    left, scale, right = problem.truth
    return (left * scale) @ right.T


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    data=st.data(),
    condition_number=st.sampled_from([1.0, 10.0, 1e4]),
)
def test_truth_has_the_planted_spectrum(
    m: int, n: int, data: st.DataObject, condition_number: float
) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    kappa = condition_number if rank > 1 else 1.0
    problem = planted((m, n), rank, oversampling=1.0, condition_number=kappa)
    sigma = torch.linalg.svdvals(dense(problem))
    assert math.sqrt(m * n) == pytest.approx(float(sigma.norm()), rel=1e-12)
    assert kappa == pytest.approx(float(sigma[0] / sigma[rank - 1]), rel=1e-9)
    assert float(sigma[rank:].sum()) <= 1e-12 * float(sigma[0])


def test_singular_values_are_geometric() -> None:
    sigma = torch.linalg.svdvals(
        dense(planted((20, 30), 5, oversampling=2.0, condition_number=16.0))
    )
    ratios = sigma[:4] / sigma[1:5]
    assert [2.0] * 4 == pytest.approx(ratios.tolist(), rel=1e-10)


@pytest.mark.parametrize("oversampling", [0.1, 1.0, 3.0, 5.0])
def test_values_are_the_entries_of_the_truth(oversampling: float) -> None:
    problem = planted((40, 30), 3, oversampling=oversampling)
    obs = problem.observations
    assert round(oversampling * 3 * (40 + 30 - 3)) == len(obs)
    torch.testing.assert_close(
        dense(problem)[obs.rows, obs.cols], obs.values, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("oversampling", [2.0, 6.0, 400 / 39])
def test_places_are_distinct(oversampling: float) -> None:
    obs = planted((20, 20), 1, oversampling=oversampling).observations
    places = set(zip(obs.rows.tolist(), obs.cols.tolist(), strict=True))
    assert len(obs) == len(places)


def test_places_are_uniform() -> None:
    counts = torch.zeros(6, 7)
    for seed in range(500):
        obs = planted((6, 7), 1, oversampling=1.0, seed=seed).observations
        counts[obs.rows, obs.cols] += 1
    # Binomial(500, 12/42) has standard deviation 10.1; five of them.
    assert float((counts - 500 * 12 / 42).abs().max()) < 51


def test_noise_has_the_asked_size() -> None:
    problem = planted((200, 200), 2, oversampling=10.0, noise=0.5)
    obs = problem.observations
    errors = obs.values - dense(problem)[obs.rows, obs.cols]
    # The estimate from 7960 errors has a standard deviation of 0.004; five of them.
    assert 0.5 == pytest.approx(float(errors.square().mean().sqrt()), abs=0.02)
    assert 0.0 == pytest.approx(float(errors.mean()), abs=0.03)


def test_problem_is_repeated_by_its_seed() -> None:
    first, again, other = (
        planted((9, 8), 2, oversampling=1.5, noise=0.1, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first.observations.values, again.observations.values)
    assert torch.equal(dense(first), dense(again))
    assert not torch.equal(dense(first), dense(other))


def test_problem_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    planted((9, 8), 2, oversampling=1.5, noise=0.1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_problem_has_the_asked_dtype(dtype: torch.dtype) -> None:
    obs, truth = planted((9, 8), 2, oversampling=1.5, dtype=dtype)
    assert dtype == obs.values.dtype == truth.dtype


@pytest.mark.parametrize("rank", [0, 9, -1])
def test_impossible_rank_is_an_error(rank: int) -> None:
    with pytest.raises(RankError, match=rf"rank must be in 1\.\.8 for a 9 x 8.*rank={rank}"):
        planted((9, 8), rank)


@pytest.mark.parametrize(("rank", "value"), [(2, 0.5), (2, math.inf), (2, math.nan), (1, 2.0)])
def test_impossible_condition_number_is_an_error(rank: int, value: float) -> None:
    with pytest.raises(OptionError, match=r"condition_number must be finite and at least 1"):
        planted((9, 8), rank, condition_number=value)


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_impossible_noise_is_an_error(noise: float) -> None:
    with pytest.raises(OptionError, match="noise must be finite and not negative"):
        planted((9, 8), 2, noise=noise)


@pytest.mark.parametrize("oversampling", [0.0, -1.0, 2.5, math.nan])
def test_impossible_oversampling_is_an_error(oversampling: float) -> None:
    with pytest.raises(ObservationError, match=r"1\.\.72 entries .* at most 2\.4 works here"):
        planted((9, 8), 2, oversampling=oversampling)


def test_spikiness_raises_the_coherence_and_keeps_the_spectrum() -> None:
    problems = [planted((80, 60), 3, condition_number=10.0, spikiness=k) for k in (0, 0.5, 1, 3)]
    measured = [coherence(problem.truth) for problem in problems]
    assert measured == sorted(measured)
    # The largest of 140 chi-squared variables of 3 degrees of freedom, over 3.
    assert 1.0 <= measured[0] < 7.0
    assert measured[-1] == pytest.approx(80 / 3, rel=0.1)
    for problem in problems:
        sigma = torch.linalg.svdvals(dense(problem))
        assert 10.0 == pytest.approx(float(sigma[0] / sigma[2]), rel=1e-9)


def selected(seed: int = 0, **options: float) -> PlantedProblem:
    generator = torch.Generator().manual_seed(seed)
    return planted_not_at_random((90, 70), 3, oversampling=3.0, generator=generator, **options)


def test_large_entries_are_seen_more_often() -> None:
    means = [float(selected(selection=k).observations.values.mean()) for k in (-1.0, 0.0, 1.0)]
    count = len(selected().observations)
    assert round(3.0 * 3 * (90 + 70 - 3)) == count
    # Entries have root mean square 1: the mean of a uniform sample is within 5 deviations of 0.
    assert abs(means[1]) < 5 / math.sqrt(count)
    assert means[0] < -0.2
    assert means[2] > 0.2


def test_popular_rows_are_seen_more_often() -> None:
    plain, popular = (
        selected(selection=0.0, popularity=k).observations.row_counts.double() for k in (0.0, 1.0)
    )
    # Counts without popularity vary like those of draws with replacement, at most.
    assert float(plain.var()) < 2.0 * float(plain.mean())
    assert float(popular.var()) > 5.0 * float(popular.mean())


def test_places_are_distinct_and_values_are_those_of_the_truth() -> None:
    observations, truth = selected()
    places = observations.rows * 70 + observations.cols
    assert len(places) == len(places.unique())
    torch.testing.assert_close(
        observations.values, truth.entries(observations.rows, observations.cols)
    )


@pytest.mark.parametrize("options", [{"selection": math.nan}, {"popularity": math.inf}])
def test_influences_must_be_finite(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="selection and popularity must be finite"):
        selected(**options)


def test_spikiness_must_not_be_negative() -> None:
    with pytest.raises(OptionError, match="spikiness must be finite and not negative"):
        planted((5, 4), 1, oversampling=1.0, spikiness=-1.0)
