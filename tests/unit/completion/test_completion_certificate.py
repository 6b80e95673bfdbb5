"""Certificates: never below the truth, and close to it at a solution."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import (
    AdditiveBias,
    CompletionResult,
    ConvexProblem,
    OptimalityCertificate,
    certify_completion,
)
from lowrank_opt.completion.certificates.dual_bound import nuclear_norm_above
from lowrank_opt.errors import CertificateError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.sets import KyFanBall, RankAtMost, SchattenBall, SingularValueBox, SpectralSet
from tests.completion_cases import ball, factored, normal, observe
from tests.convex_oracle import convex_objective, fista, simplex, spectrally

M = normal(5, 4) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]).double())
SIGMA = torch.linalg.svdvals(M).numpy()


CLOSED_FORMS = {
    "nuclear": (SchattenBall(1, 4.0, 4), lambda s: simplex(s, 4.0)),
    "frobenius": (SchattenBall(2, 2.0, 4), lambda s: s * min(1.0, 2.0 / np.linalg.norm(s))),
    "spectral": (SchattenBall(math.inf, 1.5, 4), lambda s: np.minimum(s, 1.5)),
    "ky fan 1": (KyFanBall(1, 1.5, 4), lambda s: np.minimum(s, 1.5)),
    "ky fan 4": (KyFanBall(4, 4.0, 4), lambda s: simplex(s, 4.0)),
    "box": (SingularValueBox([2.0, 1.0, 1.0, 0.1]), lambda s: np.minimum(s, [2, 1, 1, 0.1])),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gap_is_nothing_at_the_projection_of_a_full_matrix(name):
    feasible_set, project = CLOSED_FORMS[name]
    optimum = 0.5 * float(((SIGMA - project(SIGMA)) ** 2).sum())
    best = lo.LowRankOperator.from_dense(spectrally(project)(M))
    certificate = certify_completion(ConvexProblem(Observations.from_dense(M), feasible_set), best)
    assert certificate.lower_bound <= optimum * (1 + 1e-14)
    assert certificate.objective >= optimum * (1 - 1e-14)
    # Singular values of zero are known to the root of the precision of the Gram matrix.
    assert certificate.relative_gap < 2e-7


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_gap_covers_the_excess_of_any_member(name, seed):
    feasible_set, project = CLOSED_FORMS[name]
    optimum = 0.5 * float(((SIGMA - project(SIGMA)) ** 2).sum())
    member = feasible_set.sample(
        (5, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    certificate = certify_completion(
        ConvexProblem(Observations.from_dense(M), feasible_set), member
    )
    assert certificate.lower_bound <= optimum <= certificate.objective
    assert certificate.objective - optimum <= certificate.gap


def test_soft_thresholding_solves_the_penalized_problem():
    shrunk = np.maximum(SIGMA - 0.7, 0.0)
    optimum = 0.5 * float(((SIGMA - shrunk) ** 2).sum()) + 0.7 * shrunk.sum()
    best = lo.LowRankOperator.from_dense(spectrally(lambda s: np.maximum(s - 0.7, 0.0))(M))
    certificate = certify_completion(ConvexProblem(Observations.from_dense(M), 0.7), best)
    assert certificate.lower_bound <= optimum * (1 + 1e-14)
    assert certificate.objective >= optimum * (1 - 1e-14)
    assert certificate.relative_gap < 1e-10


@pytest.mark.parametrize("ridge", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", ["ball", "spectral", "penalty"])
def test_gap_agrees_with_an_independent_solver(kind, weights, ridge):
    obs = observe(normal(9, 7), 0.6, weights=weights)
    constraint, proximal = {
        "ball": (SchattenBall(1, 3.0, 7), lambda s, _: simplex(s, 3.0)),
        "spectral": (SchattenBall(math.inf, 0.5, 7), lambda s, _: np.minimum(s, 0.5)),
        "penalty": (0.4, lambda s, step: np.maximum(s - 0.4 * step, 0.0)),
    }[kind]
    W, bias = fista(obs, proximal, ridge=ridge)
    norm = 0.4 * float(torch.linalg.svdvals(W).sum()) if kind == "penalty" else 0.0
    nearly_optimal = convex_objective(obs, W, bias, ridge) + norm
    certificate = certify_completion(
        ConvexProblem(obs, constraint, ridge or None), lo.LowRankOperator.from_dense(W), bias
    )
    assert certificate.lower_bound <= nearly_optimal <= certificate.objective * (1 + 1e-12)
    assert certificate.relative_gap < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_complete_over_a_ball_comes_with_a_small_gap(p, dtype):
    obs = observe(normal(12, 10), 0.7)
    chart = lo.HomogeneousBall((12, 10), 10, radius=4.0, p=p, generator=torch.Generator())
    result = lo.complete(obs, chart.to(dtype), tolerance=1e-12)
    certificate = result.certificate()
    assert certificate.relative_gap < (2e-3 if dtype == torch.float32 else 1e-5)
    assert certificate.objective == pytest.approx(min(result.history.objective), rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_an_early_stopped_result_has_a_gap_that_covers_its_excess(iterations):
    obs = observe(normal(12, 10), 0.7)
    early = lo.complete(obs, ball((12, 10), 10, 4.0), max_iterations=iterations).certificate()
    late = lo.complete(obs, ball((12, 10), 10, 4.0), tolerance=1e-12).certificate()
    assert early.objective - late.objective <= early.gap
    assert early.lower_bound <= late.objective


def test_factors_with_a_ridge_penalty_solve_the_nuclear_norm_problem():
    obs = observe(normal(10, 8), 0.8)
    result = lo.complete(obs, factored((10, 8), 8), penalty=1.0, bias=None, tolerance=1e-13)
    certificate = result.certificate()
    assert certificate.relative_gap < 1e-4
    assert certificate.objective == pytest.approx(min(result.history.objective), rel=1e-6)


def test_a_weighted_ball_comes_with_a_small_gap():
    obs = observe(normal(9, 8), 0.7)
    weights = (normal(9, seed=3).abs() + 0.2, normal(8, seed=4).abs() + 0.2)
    chart = lo.Weighted(ball((9, 8), 8, 3.0), row_weights=weights[0], col_weights=weights[1])
    certificate = lo.complete(obs, chart, tolerance=1e-12).certificate()
    assert certificate.relative_gap < 1e-4


def test_a_nested_ball_comes_with_a_small_gap():
    obs = observe(normal(9, 8), 0.7)
    frames = (torch.linalg.qr(normal(9, 4)).Q, torch.linalg.qr(normal(8, 4)).Q)
    chart = lo.NestedSVD(frames, ball((4, 4), 4, 2.0))
    certificate = lo.complete(obs, chart, tolerance=1e-12).certificate()
    assert certificate.relative_gap < 1e-4


def test_a_shifted_set_moves_the_optimum():
    offset = lo.LowRankOperator.from_dense(0.3 * normal(5, 4, seed=9))
    feasible_set, project = CLOSED_FORMS["nuclear"]
    best = lo.LowRankOperator.from_dense(
        spectrally(project)(M + offset.to_dense()) - offset.to_dense()
    )
    shifted = lo.sets.ShiftedSet(feasible_set, offset)
    certificate = certify_completion(ConvexProblem(Observations.from_dense(M), shifted), best)
    assert certificate.relative_gap < 1e-9


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-20, 1e20, 1e140])
def test_the_relative_gap_does_not_depend_on_the_unit(size):
    feasible_set = SchattenBall(1, 4.0 * size, 4)
    best = lo.LowRankOperator.from_dense(spectrally(lambda s: simplex(s, 4.0))(M)) * size
    certificate = certify_completion(
        ConvexProblem(Observations.from_dense(M * size), feasible_set), best
    )
    # Squares of the smallest ones vanish: the bound is then zero, and still one.
    assert certificate.relative_gap < 1e-9 or (size < 1e-150 and certificate.gap < 1e-300)


def test_objectives_that_overflow_have_an_infinite_gap():
    problem = ConvexProblem(Observations.from_dense(M * 1e200), SchattenBall(1, 1.0, 4))
    certificate = certify_completion(problem, lo.LowRankOperator.from_dense(0 * M))
    assert math.inf == certificate.gap


@pytest.mark.parametrize(("value", "radius", "optimum"), [(3.0, 2.0, 0.5), (3.0, 5.0, 0.0)])
def test_a_single_entry(value, radius, optimum):
    obs = Observations([0], [0], torch.tensor([value], dtype=torch.float64), (1, 1))
    best = lo.LowRankOperator.from_dense(torch.tensor([[min(value, radius)]]).double())
    certificate = certify_completion(ConvexProblem(obs, SchattenBall(1, radius, 1)), best)
    assert certificate.lower_bound <= optimum <= certificate.objective
    assert certificate.gap < 1e-12


def test_rows_without_entries_and_weights_of_zero_do_not_matter():
    obs = observe(normal(6, 5), 0.9)
    padded = Observations(
        [*obs.rows.tolist(), 7],
        [*obs.cols.tolist(), 6],
        torch.cat((obs.values, torch.tensor([1e6]).double())),
        (9, 7),
        torch.cat((torch.ones(len(obs)).double(), torch.zeros(1).double())),
    )
    W = SchattenBall(1, 2.0, 3).project(lo.LowRankOperator.from_dense(normal(6, 5)))
    left, right = torch.zeros(9, W.rank).double(), torch.zeros(7, W.rank).double()
    left[:6], right[:5] = W.left, W.right
    plain = certify_completion(ConvexProblem(obs, SchattenBall(1, 2.0, 5)), W)
    wide = certify_completion(
        ConvexProblem(padded, SchattenBall(1, 2.0, 5)), lo.LowRankOperator(left, W.scale, right)
    )
    assert plain.gap == pytest.approx(wide.gap, rel=1e-9)


def test_an_exact_fit_has_no_gap():
    problem = ConvexProblem(Observations.from_dense(torch.eye(3)), SchattenBall(1, 5.0, 3))
    assert certify_completion(problem, lo.LowRankOperator.from_dense(torch.eye(3))).gap < 1e-12


def test_given_biases_are_subtracted_from_the_values():
    bias = AdditiveBias(1.0, normal(5), normal(4, seed=1))
    shift = bias.mean + bias.rows[:, None] + bias.cols
    best = lo.LowRankOperator.from_dense(spectrally(lambda s: simplex(s, 4.0))(M))
    certificate = certify_completion(
        ConvexProblem(Observations.from_dense(M + shift), SchattenBall(1, 4.0, 4)), best, bias
    )
    assert certificate.relative_gap < 1e-9


def test_the_nuclear_norm_of_stored_factors_is_bounded_from_above():
    op = lo.LowRankOperator(normal(8, 3), normal(3, seed=1), normal(6, 3, seed=2))
    truth = float(torch.linalg.svdvals(op.to_dense()).sum())
    assert truth <= nuclear_norm_above(op) <= truth * (1 + 1e-10)


def test_cancelling_factors_keep_the_error_of_their_size():
    op = lo.LowRankOperator.from_dense(normal(6, 5))
    nothing = op * 1e8 - op * 1e8
    assert 0 < nuclear_norm_above(nothing) < 1e-2


def test_a_loaded_result_says_what_to_do(tmp_path):
    result = lo.complete(observe(normal(6, 5), 0.8), ball((6, 5), 2, 1.0))
    result.save(tmp_path / "result.npz")
    with pytest.raises(CertificateError, match="certify_completion"):
        CompletionResult.load(tmp_path / "result.npz").certificate()


def test_a_loaded_result_is_certified_by_naming_its_problem(tmp_path):
    obs, chart = observe(normal(6, 5), 0.8), ball((6, 5), 2, 1.0)
    result = lo.complete(obs, chart)
    result.save(tmp_path / "result.npz")
    loaded = CompletionResult.load(tmp_path / "result.npz")
    problem = ConvexProblem(obs, chart.feasible_set, bias_penalty=1.0)
    certificate = certify_completion(problem, loaded.operator, loaded.bias)
    assert result.certificate() == certificate


@pytest.mark.parametrize(
    "options",
    [{"loss": "huber"}, {"penalty": 1.0}],
    ids=["another loss", "a penalty on bounded parameters"],
)
def test_what_is_not_known_to_be_convex_has_no_certificate(options):
    result = lo.complete(
        observe(normal(6, 5), 0.8), ball((6, 5), 2, 1.0), max_iterations=2, **options
    )
    with pytest.raises(CertificateError, match="a certificate needs a convex problem"):
        result.certificate()


def test_factors_without_a_bound_or_penalty_have_no_certificate():
    result = lo.complete(observe(normal(6, 5), 0.8), factored((6, 5), 2), max_iterations=2)
    with pytest.raises(CertificateError, match="a certificate needs a convex problem"):
        result.certificate()


def test_biases_without_a_penalty_are_held_fixed():
    obs = observe(normal(6, 5), 0.8)
    result = lo.complete(obs, ball((6, 5), 5, 1.0), bias_penalty=0.0, tolerance=1e-12)
    assert result.problem is not None
    assert result.problem.bias_penalty is None
    assert result.certificate().relative_gap < 1e-4


class NoMaximizer(SpectralSet):
    rank = 2

    def singular_value_excess(self, values):
        return values.amax() - 1

    def project_singular_values(self, values):
        return values.clamp_max(1.0)


@pytest.mark.parametrize("feasible_set", [RankAtMost(2), NoMaximizer()])
def test_sets_without_a_support_function_are_refused(feasible_set):
    with pytest.raises(CertificateError, match="a bounded set whose support function is known"):
        ConvexProblem(observe(normal(6, 5), 0.8), feasible_set)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_penalties_must_be_positive(bad):
    obs = observe(normal(6, 5), 0.8)
    with pytest.raises(CertificateError, match="the penalty must be positive and finite"):
        ConvexProblem(obs, bad)
    with pytest.raises(CertificateError, match="hold them fixed with bias_penalty=None"):
        ConvexProblem(obs, 1.0, bad)


def test_other_shapes_are_refused():
    problem = ConvexProblem(observe(normal(6, 5), 0.8), 1.0)
    with pytest.raises(ShapeError, match="operator and biases must be of shape"):
        certify_completion(problem, lo.LowRankOperator.from_dense(normal(5, 6)))


@pytest.mark.parametrize("exact", [False, True])
def test_certificates_of_float32_are_computed_in_float64(exact):
    obs, op = observe(normal(6, 5), 0.8), lo.LowRankOperator.from_dense(normal(6, 5, seed=1), 2)
    stored = ConvexProblem(obs.to(dtype=torch.float32), SchattenBall(1, 2.0, 2))
    same = ConvexProblem(stored.observations.to(dtype=torch.float64), stored.constraint)
    half = op.to(dtype=torch.float32)
    bounds = [
        certify_completion(problem, W, exact=exact)
        for problem, W in ((stored, half), (same, half.to(dtype=torch.float64)))
    ]
    assert 1 == len({(x.objective, x.lower_bound) for x in bounds})
    assert bounds[0].lower_bound < bounds[0].objective


def test_a_completion_that_is_not_a_number_has_no_bound():
    problem = ConvexProblem(observe(normal(6, 5), 0.8), SchattenBall(1, 2.0, 2))
    op = lo.LowRankOperator.from_dense(normal(6, 5)) * math.nan
    found = certify_completion(problem, op)
    assert (math.inf, 0.0, 0.0) == (found.objective, found.lower_bound, found.failure_probability)


def test_gaps_of_close_bounds_are_exact():
    assert (0.5, 0.25) == (
        OptimalityCertificate(2.5, 2.0).gap,
        OptimalityCertificate(2.5, 2.0).relative_gap,
    )
    assert "document" not in repr(OptimalityCertificate(2.5, 2.0, document={}))


def test_a_zero_bound_has_an_infinite_relative_gap():
    assert math.inf == OptimalityCertificate(1.0, 0.0).relative_gap


def test_a_ball_between_features_comes_with_a_small_gap():
    obs = observe(normal(9, 8), 0.7)
    chart = lo.Inductive(ball((3, 8), 3, 2.0), normal(9, 3, seed=5), None)
    certificate = lo.complete(obs, chart, tolerance=1e-12).certificate()
    assert certificate.relative_gap < 1e-4
