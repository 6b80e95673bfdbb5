"""CONVERGED is proved: every start of every complete map ends at the optimum, or says that not.

The oracle is the certificate, which knows nothing of solvers, and Frank-Wolfe for the optimum.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import CompletionStatus, ConvexProblem, certify_completion
from lowrank_opt.completion.certificates.at_rank import gap_at_rank
from lowrank_opt.completion.solvers import gradient
from lowrank_opt.completion.solvers.proof import Proof
from lowrank_opt.observations import Observations
from tests.completion_cases import normal, observe, seeded

SHAPE = (14, 11)
Make = Callable[[int, float, int], lo.Parameterization]


def noisy(seed: int) -> Observations:
    truth = normal(14, 2, seed=seed) @ normal(2, 11, seed=seed + 1)
    return observe(truth + 0.3 * normal(14, 11, seed=seed + 2), 0.7, weights=seed % 2 == 1)


def homogeneous(rank: int, radius: float, seed: int) -> lo.Parameterization:
    return lo.HomogeneousBall(
        SHAPE, rank, radius=radius, dtype=torch.float64, generator=seeded(seed)
    )


def norm_bounded(rank: int, radius: float, seed: int) -> lo.Parameterization:
    torch.manual_seed(seed)
    return lo.NBLoRA(SHAPE, rank, radius=radius, p=1).double()


def delora(rank: int, radius: float, seed: int) -> lo.Parameterization:
    torch.manual_seed(seed)
    return lo.DeLoRA(SHAPE, rank, radius=radius).double()


def contractions(rank: int, radius: float, seed: int) -> lo.Parameterization:
    torch.manual_seed(seed)
    return lo.Contractions(SHAPE, rank, radius=radius, p=1).double()


def radial(rank: int, radius: float, seed: int) -> lo.Parameterization:
    torch.manual_seed(seed)
    return lo.RadialBall(SHAPE, rank, radius=radius, norm=1.0).double()


def weighted(rank: int, radius: float, seed: int) -> lo.Parameterization:
    rows, cols = (1 / (1 + normal(size, seed=3).abs()) for size in SHAPE)
    return lo.Weighted(homogeneous(rank, radius, seed), rows, cols)


def optimum(observations: Observations, chart: lo.Parameterization) -> float:
    found = lo.complete(observations, _hull(chart.feasible_set), solver="frank_wolfe")
    assert found.status is CompletionStatus.CONVERGED
    return found.certificate().objective


def _hull(feasible_set: lo.FeasibleSet) -> lo.FeasibleSet:
    """Return the ball of any rank."""
    if isinstance(feasible_set, lo.WeightedSet):
        inner = _hull(feasible_set.inner)
        return lo.WeightedSet(inner, feasible_set.row_weights, feasible_set.col_weights)
    assert isinstance(feasible_set, lo.SchattenBall)
    return lo.SchattenBall(1, feasible_set.radius, min(SHAPE))


@pytest.mark.parametrize(
    "make", [homogeneous, norm_bounded, delora, contractions, radial, weighted]
)
@pytest.mark.parametrize("rank", [5, 11])
@pytest.mark.parametrize(("radius", "seed"), [(4.0, 0), (13.0, 2)])
def test_every_complete_map_ends_at_the_optimum(make: Make, rank: int, radius: float, seed: int):
    observations, chart = noisy(seed), make(rank, radius, seed)
    result = lo.complete(observations, chart)
    assert result.status is CompletionStatus.CONVERGED
    certificate = result.certificate()
    assert certificate.gap <= 1e-4 * certificate.objective
    assert certificate.objective <= optimum(observations, chart) * (1 + 2e-4)


@pytest.mark.parametrize("solver", ["lbfgs", "first_order", "als", "soft_impute"])
@pytest.mark.parametrize("rank", [1, 6])
@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_penalties_end_at_the_optimum_or_say_that_not(solver: str, rank: int, penalty: float):
    observations = noisy(0)
    free = lo.Factored(SHAPE, rank, dtype=torch.float64, generator=seeded(2))
    result = lo.complete(
        observations, free, solver=solver, penalty=penalty, generator=seeded(3), tolerance=1e-4
    )
    certificate = result.certificate()
    proved = certificate.gap <= 1e-4 * certificate.objective
    assert proved == (result.status is CompletionStatus.CONVERGED)
    assert proved or rank == 1 or solver == "first_order"
    if not proved and result.status.succeeded:
        assert result.status is CompletionStatus.RANK_BINDS


def test_a_rank_that_binds_says_by_how_much():
    observations = noisy(0)
    result = lo.complete(observations, homogeneous(1, 15.0, 0))
    assert result.status is CompletionStatus.RANK_BINDS
    assert result.status.succeeded
    assert result.proved is not None
    assert result.proved.price_of_rank is not None
    best = optimum(observations, homogeneous(1, 15.0, 0))
    assert 0 < result.history.objective[-1] - best <= result.proved.gap
    # Stationary at its rank: nearly all of the gap is the price of the rank.
    assert 0.9 * result.proved.gap <= result.proved.price_of_rank <= result.proved.gap
    assert "of which the rank costs at most" in result.summary()


def test_a_rank_that_binds_ends_the_search():
    # Looking for the optimum of any rank, which this rank cannot hold, cost several times the fit.
    plain, proved = with_and_without_proof(seed=1)
    assert proved.status is CompletionStatus.RANK_BINDS
    assert len(proved.history) <= 2 * len(plain.history)


def test_a_bad_minimum_of_a_rank_that_binds_is_left():
    plain, proved = with_and_without_proof(seed=0)
    assert proved.status is CompletionStatus.RANK_BINDS
    assert proved.history.objective[-1] < 0.6 * plain.history.objective[-1]


def with_and_without_proof(seed: int) -> tuple[lo.CompletionResult, lo.CompletionResult]:
    observations = noisy(0)
    chart, again = homogeneous(2, 25.0, seed), homogeneous(2, 25.0, seed)
    plain = lo.complete(observations, chart, solver=lo.solvers.LBFGS(gap=None))
    return plain, lo.complete(observations, again)


@pytest.mark.parametrize("solver", ["als", "soft_impute", "lbfgs"])
def test_a_rank_that_suffices_is_not_said_to_bind(solver: str):
    # Next to the optimum, what is left of the gap looks like the price of the rank.
    observations = noisy(0)
    for rank in (4, 6):
        free = lo.Factored(SHAPE, rank, dtype=torch.float64, generator=seeded(1))
        result = lo.complete(
            observations, free, solver=solver, penalty=2.0, generator=seeded(1), tolerance=1e-3
        )
        assert result.status is CompletionStatus.CONVERGED


@pytest.mark.parametrize("solver", [lo.solvers.ALS(), lo.solvers.SoftImpute()])
def test_penalties_leave_a_saddle(solver: lo.solvers.Solver):
    # Columns of zeros have no gradient, and stay zero.
    observations = noisy(0)
    one = lo.complete(observations, 1, solver="soft_impute", penalty=1.0, generator=seeded(0))
    left, scale, right = one.operator.thin_svd()
    padded = lo.LowRankOperator(
        *(torch.nn.functional.pad(x, (0, 5)) for x in (left[:, :1], scale[:1], right[:, :1]))
    )
    started = replace(one, operator=padded)
    result = lo.complete(observations, 6, solver=solver, penalty=1.0, start=started)
    assert result.status is CompletionStatus.CONVERGED


def test_empty_columns_are_no_rank_that_binds():
    observations = noisy(0)
    chart = homogeneous(6, 8.0, 0)
    problem = ConvexProblem(observations, chart.feasible_set, bias_penalty=1.0)
    best_of_rank_one = lo.complete(observations, homogeneous(1, 8.0, 0), bias_penalty=1.0)
    one, bias = best_of_rank_one.operator, best_of_rank_one.bias
    alone = gap_at_rank(problem, one, bias)
    filled = lo.LowRankOperator(*(x[..., :1] for x in one.thin_svd()))
    assert alone.amount <= 0.1 * certify_completion(problem, one, bias).gap
    assert not alone.full
    assert not gap_at_rank(problem, filled, bias).full


def test_a_nearly_exact_fit_is_proved_to_the_size_of_the_data():
    truth = normal(14, 2, seed=0) @ normal(2, 11, seed=1)
    observations = observe(truth + 1e-3 * normal(14, 11, seed=2), 0.8)
    radius = 0.999 * float(torch.linalg.matrix_norm(truth, "nuc"))
    result = lo.complete(observations, homogeneous(11, radius, 0), bias=None)
    assert result.status is CompletionStatus.CONVERGED
    assert result.proved is not None
    unit = 0.5 * float((observations.values - observations.values.mean()).square().sum())
    assert result.proved.gap <= 1e-4 * max(result.proved.objective, 1e-2 * unit)


@pytest.mark.parametrize("make", [homogeneous, norm_bounded, weighted])
def test_a_start_on_a_saddle_is_left(make: Make):
    observations, chart = noisy(0), make(6, 8.0, 0)
    # One direction only: the gradients of all other columns are zero, and stay so.
    one = lo.LowRankOperator(*(x[..., :1] for x in chart().detach().thin_svd()))
    chart.assign(0.1 * one, project=True)
    result = lo.complete(observations, chart)
    assert result.status is CompletionStatus.CONVERGED
    assert result.certificate().objective <= optimum(observations, chart) * (1 + 2e-4)


def test_without_a_way_out_the_gap_stays_open(monkeypatch: pytest.MonkeyPatch):
    # The planted defect: a solver that never looks elsewhere.
    for way_out in ("escape", "polish"):
        monkeypatch.setattr(gradient, way_out, lambda *_, **__: False)
    result = lo.complete(noisy(0), norm_bounded(11, 4.0, 0))
    assert result.status is CompletionStatus.GAP_OPEN


def test_the_tolerance_alone_proves_nothing():
    result = lo.complete(noisy(0), homogeneous(1, 15.0, 0), solver=lo.solvers.LBFGS(gap=None))
    assert result.status is CompletionStatus.CONVERGED
    assert result.proved is None


def test_few_certificates_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked = []
    reached = Proof.reached
    monkeypatch.setattr(Proof, "reached", lambda *x: asked.append(1) or reached(*x))
    result = lo.complete(noisy(0), homogeneous(11, 8.0, 0))
    assert result.status.succeeded
    assert len(asked) <= 3 < len(result.history)
