import numpy as np
import pytest
import torch

from lowrank_opt.completion import CompletionResult, CompletionStatus, als
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import Observations
from tests.completion_cases import normal, observe, seeded


def problem(seed=0, m=23, n=17, count=150, weighted=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(m * n, generator=g)[:count]
    values = 3 + torch.randn(count, generator=g, dtype=dtype)
    weights = torch.rand(count, generator=g, dtype=dtype) + 0.1 if weighted else None
    return Observations(cells // n, cells % n, values, (m, n), weights)


def dense_objective(result: CompletionResult, obs, penalty, exponent, ratio):
    U, V = result.operator.left, result.operator.right
    a, c = result.bias.rows, result.bias.cols
    dense = U @ V.T + a[:, None] + c + result.bias.mean
    w = torch.ones_like(obs.values) if obs.weights is None else obs.weights
    loss = (w * (dense[obs.rows, obs.cols] - obs.values) ** 2).sum()
    lam = [penalty * x.clamp_min(1).double() ** exponent for x in (obs.row_counts, obs.col_counts)]
    rows = (lam[0] * (U.square().sum(1) + ratio * a.square())).sum()
    return float(loss + rows + (lam[1] * (V.square().sum(1) + ratio * c.square())).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [True, False])
def test_row_solutions_equal_dense_normal_equations(weighted, dtype, row_backend):
    obs = problem(weighted=weighted)
    rng = np.random.default_rng(0)
    F, o, P = rng.standard_normal((17, 5)), rng.standard_normal(17), np.diag([1.0, 2, 3, 4, 5])
    s, pull = rng.uniform(0.5, 2, 23), rng.standard_normal((23, 5))
    W, Y = np.zeros(obs.shape), np.zeros(obs.shape)
    W[obs.rows, obs.cols] = 1 if obs.weights is None else obs.weights
    Y[obs.rows, obs.cols] = obs.values
    A = 1.7 * np.einsum("ij,ja,jb->iab", W, F, F) + s[:, None, None] * P
    expected = np.linalg.solve(A, (1.7 * (W * (Y - o)) @ F + pull)[..., None])[..., 0]
    x = torch.zeros(23, 5, dtype=dtype)
    rows = RowProblems.of(obs, obs.csr, dtype)
    F_, o_, P_, s_, pull_ = map(torch.from_numpy, (F, o, P, s, pull))
    given = {"precision": P_, "strengths": s_, "scale": 1.7, "pull": pull_}
    loss = rows.solve(x, F_.to(dtype), o_.to(dtype), **given)
    rtol = 2000 * torch.finfo(dtype).eps
    np.testing.assert_allclose(x, expected, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(loss, (W * (Y - o - expected @ F.T) ** 2).sum(), rtol=rtol)


def test_many_conjugate_gradient_steps_equal_the_exact_solution(row_backend):
    obs = problem()
    F, o, exact, iterated = normal(17, 4), normal(17, seed=1), normal(23, 4), normal(23, 4, seed=1)
    d, s = F.new_ones(4), F.new_ones(23)
    rows = RowProblems.of(obs, obs.csr, torch.float64)
    rows.solve(exact, F, o, precision=d.diag(), strengths=s)
    rows.improve(iterated, F, o, diagonal=d, strengths=s, steps=8)
    np.testing.assert_allclose(iterated, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["exact", "cg"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_objective_never_increases(method, exponent):
    settings = {"penalty": 0.1, "exponent": exponent, "tolerance": 0.0, "sweeps": 25}
    history = als(problem(), 4, method=method, **settings).history.objective
    assert all(np.diff(history) <= 1e-12 * history[0])


@pytest.mark.parametrize("method", ["exact", "cg"])
def test_objective_is_that_of_a_dense_evaluation(method):
    obs = problem()
    result = als(obs, 4, penalty=0.2, exponent=0.7, bias_ratio=0.3, sweeps=7, method=method)
    expected = dense_objective(result, obs, 0.2, 0.7, 0.3)
    assert expected == pytest.approx(result.history.objective[-1], rel=1e-10)


def test_end_is_a_stationary_point_of_the_dense_objective():
    obs = problem()
    result = als(obs, 3, penalty=0.5, sweeps=2000, tolerance=1e-15)
    U, V, a, c = (
        x.clone().requires_grad_()
        for x in (result.operator.left, result.operator.right, result.bias.rows, result.bias.cols)
    )
    dense = U @ V.T + a[:, None] + c + result.bias.mean
    loss = (obs.weights * (dense[obs.rows, obs.cols] - obs.values) ** 2).sum()
    lam, mu = 0.5 * obs.row_counts.clamp_min(1), 0.5 * obs.col_counts.clamp_min(1)
    loss = loss + (lam * (U.square().sum(1) + a**2)).sum() + (mu * (V.square().sum(1) + c**2)).sum()
    gradients = torch.autograd.grad(loss, (U, V, a, c))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4 * loss.item()


def test_noiseless_low_rank_matrix_is_recovered():
    g = torch.Generator().manual_seed(0)
    U, V = (torch.randn(k, 3, generator=g, dtype=torch.float64) for k in (60, 50))
    mask = torch.rand(60, 50, generator=g) < 0.5
    observed = Observations.from_dense((U @ V.T).where(mask, torch.nan))
    result = als(
        observed, 3, penalty=1e-9, bias=None, sweeps=300, tolerance=0.0, generator=seeded(0)
    )
    error = (result.to_dense() - U @ V.T).norm() / (U @ V.T).norm()
    assert error < 1e-6


@pytest.mark.parametrize("noisy", [True, False])
def test_row_solutions_do_not_depend_on_threads(noisy):
    obs, before = problem(m=300, n=200, count=20000), torch.get_num_threads()
    F, noise = normal(200, 5), normal(300, 5, seed=1) if noisy else None
    rows, solutions = (
        RowProblems.of(obs, obs.csr, torch.float64),
        (F.new_zeros(300, 5), F.new_ones(300, 5)),
    )
    try:
        for threads, x in zip((1, 2), solutions, strict=True):
            torch.set_num_threads(threads)
            given = {"precision": torch.eye(5).double(), "strengths": F.new_ones(300)}
            rows.solve(x, F, F.new_zeros(200), **given, noise=noise)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*solutions)


def test_rows_without_entries_are_predicted_by_the_mean_and_column_bias():
    obs = Observations([0, 1], [0, 1], [2.0, 4.0], shape=(3, 3))
    result = als(obs, 1, penalty=0.1)
    assert 3.0 == pytest.approx(float(result.predict(2, 2)))


def test_validation_returns_the_best_sweep():
    kept, held = problem(count=200).split(0.3, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    result = als(kept, 8, penalty=1e-3, sweeps=60, validation=held, tolerance=0.0, generator=g)
    error = result.predict(held.rows, held.cols) - held.values
    rmse = float(((held.weights * error**2).sum() / held.weights.sum()).sqrt())
    assert CompletionStatus.STOPPED_BY_VALIDATION == result.status
    assert min(result.history.validation_rmse) == pytest.approx(rmse)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"penalty": 0.0}, "needs a positive penalty"),
        ({"exponent": 1.5}, r"exponent must be in \[0, 1\]"),
        ({"method": "qr"}, "method must be 'exact' or 'cg'"),
        ({"bias": "free"}, "bias must be 'additive' or None"),
        ({"bias_ratio": 0.0}, "bias_penalty must be positive"),
        ({"sweeps": 0}, "max_iterations must be a positive integer"),
    ],
)
def test_settings_outside_their_domain_raise(setting, message):
    with pytest.raises(OptionError, match=message):
        als(problem(), 2, **({"penalty": 0.1} | setting))


def test_validation_of_another_shape_raises():
    with pytest.raises(ShapeError, match="validation entries must be of the same matrix"):
        als(problem(), 2, penalty=0.1, validation=problem(m=24))


def planted() -> Observations:
    return observe(normal(30, 3) @ normal(3, 20, seed=1), 0.6)


def test_start_at_the_minimum_is_kept():
    first = als(planted(), 3, penalty=0.1, sweeps=200, tolerance=1e-12)
    again = als(planted(), 3, penalty=0.1, sweeps=2, tolerance=1e-12, start=first)
    assert first.history.objective[-1] == pytest.approx(again.history.objective[0], rel=1e-6)


# Minimisation over factors has other local minima, in which some random starts end: these do not.
def test_start_of_lower_rank_and_smaller_shape_is_filled_up():
    small = planted().take(planted().rows < 25)
    part = Observations(small.rows, small.cols, small.values, (25, 20))
    start = als(part, 1, penalty=0.1, generator=seeded(0))
    settings = {"penalty": 0.01, "sweeps": 200, "tolerance": 1e-12}
    grown = als(planted(), 3, **settings, start=start, generator=seeded(0))
    cold = als(planted(), 3, **settings, generator=seeded(0))
    assert grown.history.objective[-1] <= 1.001 * cold.history.objective[-1]


def test_start_at_zero_is_left():
    start = als(planted(), 3, penalty=1e6, generator=seeded(0))
    settings = {"penalty": 0.01, "sweeps": 200, "tolerance": 1e-12}
    left = als(planted(), 3, **settings, start=start, generator=seeded(0))
    cold = als(planted(), 3, **settings, generator=seeded(0))
    assert left.history.objective[-1] <= 1.001 * cold.history.objective[-1]
