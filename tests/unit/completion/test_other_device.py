"""Every solver on a device that is not the CPU, emulated, against plain torch on the CPU.

The emulated device computes with the same operations, so that results are the same to the last
bits; what it shows is that nothing mixes devices, and how often the host is waited for.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt.completion import conformal
from lowrank_opt.completion.after.drift import fit_with_drift
from lowrank_opt.completion.after.fold_in import FactorPrior, fold_in_cols, fold_in_rows
from lowrank_opt.completion.after.left_out import left_out_residuals
from lowrank_opt.completion.after.path import Setting, Walk, follow_path
from lowrank_opt.completion.loop.checkpoint import Checkpoint
from lowrank_opt.estimators import LowRankImputer, MatrixCompletion, Recommender
from lowrank_opt.estimators.ranking import Candidates, best_columns, most_similar
from lowrank_opt.kernels import use_backend
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.batches import gaussian
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.metrics import map_at_k, ndcg_at_k, recall_at_k, rmse
from lowrank_opt.observations import Observations
from lowrank_opt.solvers import SOLVERS, Gibbs, MaxNorm, solver_of
from tests.completion_cases import normal, observe, seeded
from tests.emulated import DEVICE, Elsewhere, emulated_device

SHAPE = (20, 15)


def observed(**options: bool) -> Observations:
    return observe(normal(20, 2) @ normal(2, 15, seed=1), 0.6, **options)


def solver_named(name: str) -> object:
    chosen = {"max_norm": MaxNorm(radius=3.0), "gibbs": Gibbs(burn_in=1, samples=2)}
    return chosen.get(name) or solver_of(name)


def model_of(name: str) -> object:
    ball = lo.HomogeneousBall(SHAPE, 3, radius=9.0, dtype=torch.float64, generator=seeded())
    models = {"lbfgs": ball, "first_order": ball, "frank_wolfe": lo.SchattenBall(1, 9.0, 15)}
    return models.get(name, 2)


def run(name: str, observations: Observations, device: torch.device, **options: object) -> object:
    model = model_of(name)
    if isinstance(model, lo.Parameterization):
        model = model.to(device)
    penalty = {"penalty": 0.1} if name in ("als", "soft_impute") else {}
    if name != "gibbs":
        options = {"max_iterations": 4, **options}
    return lo.complete(
        observations.to(device=device),
        model,
        solver=solver_named(name),
        generator=seeded(),
        **penalty,
        **options,
    )


def everywhere(result: object) -> Tensor:
    i, j = torch.arange(SHAPE[0]), torch.arange(SHAPE[1])
    return result.predict(i.repeat_interleave(SHAPE[1]), j.repeat(SHAPE[0])).double()


def on_both(name: str, observations: Observations, **options: object) -> tuple[object, object]:
    # Where numbers are is asked here: the CPU sums in another order, to the rounding of float32.
    same = pytest.MonkeyPatch.context()
    with use_backend("torch"), same as patch:
        patch.setattr(gaussian, "_bags", gaussian._padded_bags)
        here = run(name, observations, torch.device("cpu"), **options)
    with emulated_device():
        return here, run(name, observations, DEVICE, **options)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solver_computes_where_the_entries_are(name: str):
    here, there = on_both(name, observed(weights=True))
    with emulated_device():
        found = everywhere(there)
        assert isinstance(found, Elsewhere)
        torch.testing.assert_close(everywhere(here), found.cpu(), rtol=1e-9, atol=1e-9)
        assert here.history.objective == pytest.approx(there.history.objective, rel=1e-9)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solver_agrees_between_the_backends(name: str):
    obs, found = observed(weights=True), []
    for backend in ("numba", "torch"):
        with use_backend(backend):
            found.append(everywhere(run(name, obs, torch.device("cpu"))))
    # Gibbs and the start of others draw in float32.
    tolerance = 1e-4 if name in ("gibbs", "variational") else 1e-7
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [k for k, s in SOLVERS.items() if s.traits.validation])
def test_validation_entries_are_judged_there(name: str):
    here, there = on_both(name, observed(), validation=0.2)
    assert here.history.validation_rmse == pytest.approx(there.history.validation_rmse, rel=1e-9)


@pytest.mark.parametrize("name", [k for k, s in SOLVERS.items() if s.traits.checkpoint])
def test_a_checkpoint_goes_on_there(name: str, tmp_path):
    # Gibbs has three sweeps, and goes on after the second.
    few, more = ({} if name == "gibbs" else {"max_iterations": most} for most in (4, 8))
    with emulated_device():
        whole = everywhere(run(name, observed(), DEVICE, **more))
        run(name, observed(), DEVICE, checkpoint=Checkpoint(tmp_path, every=2), **few)
        again = Checkpoint(tmp_path, every=2, resume=True)
        rest = everywhere(run(name, observed(), DEVICE, checkpoint=again, **more))
        assert torch.equal(whole.cpu(), rest.cpu())


@pytest.mark.parametrize("name", ["als", "soft_impute"])
def test_a_start_may_be_elsewhere(name: str):
    start = run(name, observed(), torch.device("cpu"))
    with emulated_device():
        assert isinstance(everywhere(run(name, observed(), DEVICE, start=start)), Elsewhere)


@pytest.mark.parametrize("name", [k for k, s in SOLVERS.items() if s.traits.certificate])
def test_proofs_are_those_of_the_host(name: str):
    here, there = on_both(name, observed(), max_iterations=60)
    with emulated_device():
        assert there.certificate().gap == pytest.approx(here.certificate().gap, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("loss", ["absolute", "huber", "logistic", "ordered_probit"])
def test_losses_are_computed_there(loss: str):
    obs = observed()
    labels = (obs.values > 0).double() if loss == "logistic" else obs.values.clamp(-1, 1).round()
    obs = obs.with_values(obs.values if loss in ("absolute", "huber") else labels)
    here, there = on_both("first_order", obs, loss=loss)
    with emulated_device():
        torch.testing.assert_close(everywhere(here), everywhere(there).cpu(), rtol=1e-8, atol=1e-8)


def after(observations: Observations) -> list[Tensor]:
    """What is done with results: new rows and columns, left-out residuals, intervals."""
    result = lo.complete(observations, 2, solver="als", penalty=0.1, generator=seeded())
    prior = FactorPrior.empirical(result, observations)
    ridge = FactorPrior.ridge(2, penalty=0.1, bias_penalty=0.1)
    lower, upper = conformal(result, observations).interval([0, 1], [1, 2])
    return [
        fold_in_rows(result, observations, prior).operator.left,
        fold_in_cols(result, observations, ridge).operator.right,
        left_out_residuals(result, observations),
        lower,
        upper,
    ]


def test_what_comes_after_is_computed_there():
    with use_backend("torch"):
        here = after(observed())
    with emulated_device():
        for expected, found in zip(here, after(observed().to(device=DEVICE)), strict=True):
            assert isinstance(found, Elsewhere)
            torch.testing.assert_close(expected, found.cpu(), rtol=1e-8, atol=1e-8)


def along_a_path_and_in_time(observations: Observations) -> list[Tensor]:
    """Choose a penalty on a path, and follow biases that drift; times come from the host."""
    kept, held_out = observations.split(0.2, generator=seeded())

    def fit(entries: Observations, setting: Setting, start: object) -> object:
        return lo.complete(
            entries, 2, solver="als", start=start, generator=seeded(), max_iterations=3, **setting
        )

    path, best = follow_path(fit, kept, held_out, {"penalty": 1.0}, [Walk("penalty", 0.5, steps=2)])
    times = torch.arange(len(observations)).double()
    drifting = fit_with_drift(
        lambda left: lo.complete(left, 2, solver="als", penalty=0.1, generator=seeded()),
        observations,
        times,
        bins=3,
        day=20.0,
    )
    expanded = drifting.bias.bins.expand(observations, times)
    errors = observations.values.new_tensor(path.columns()["validation_rmse"])
    predicted = drifting.predict(torch.tensor([0, 1]), torch.tensor([1, 2]), times[:2])
    return [errors, best.operator.left, predicted, expanded.cols]


def ranked(observations: Observations) -> list[object]:
    """Rank columns for rows, of which one is unknown, and columns that are like others."""
    result = lo.complete(observations, 2, solver="als", penalty=0.1, generator=seeded())
    candidates = Candidates(result, observations)
    rows, some = np.array([3, -1, 0]), torch.tensor([1, 4, 7, 9])
    return [
        *best_columns(candidates, rows, 4, exclude_seen=True),
        *best_columns(candidates.among(some), rows, 9, exclude_seen=False),
        *most_similar(candidates, np.array([2, 5]), 3),
        *most_similar(candidates.flipped(), np.array([0]), 2),
    ]


def test_paths_and_drift_are_computed_there():
    with use_backend("torch"):
        here = along_a_path_and_in_time(observed())
    with emulated_device():
        there = along_a_path_and_in_time(observed().to(device=DEVICE))
        for expected, found in zip(here, there, strict=True):
            assert isinstance(found, Elsewhere)
            torch.testing.assert_close(expected, found.cpu(), rtol=1e-8, atol=1e-8)


def test_columns_are_ranked_there():
    with use_backend("torch"):
        here = ranked(observed())
    with emulated_device():
        there = ranked(observed().to(device=DEVICE))
    for expected, found in zip(here, there, strict=True):
        np.testing.assert_allclose(expected, found, rtol=1e-8, atol=1e-8)


def estimated(solver: str, device: torch.device) -> list[np.ndarray]:
    """Fit and ask an estimator, with ratings in a tensor; what it says is in arrays."""
    obs = observed()
    pairs, values = torch.stack((obs.rows, obs.cols), 1), obs.values.round(decimals=1).to(device)
    given = {"rank": 2, "max_iterations": 3, "random_state": 0}
    model = MatrixCompletion(
        SHAPE, solver=solver, penalty=0.5 if solver == "als" else None, **given
    )
    model.fit(pairs, values)
    assert device == model.result_.predict(0, 0).device
    return [model.predict(pairs), *model.predict_interval(pairs[:5], coverage=0.5)]


def recommended(device: torch.device) -> list[np.ndarray]:
    obs = observed().to(device=device)
    options = {"rank": 2, "penalty": 0.5, "validation": None, "max_iterations": 3}
    model = Recommender(MatrixCompletion(solver="als", random_state=0, **options)).fit(obs)
    found = [model.recommend([0, 3], k=3).ids, model.similar_items([2], k=3).scores]
    model.partial_fit([(3, 2, 4.0), (30, 1, 2.0)]).fold_in_rows([(31, 4, 1.0)])
    assert device == model.observations_.device
    return [*found, model.recommend([30, 31], k=4).scores, model.predict([(30, 3), (3, 40)])]


def imputed(device: torch.device) -> list[np.ndarray]:
    X = (normal(20, 2) @ normal(2, 15, seed=1)).to(device)
    X[::3, ::2] = torch.nan
    model = LowRankImputer(rank=2, random_state=0, max_iterations=5).fit(X)
    assert device == model.result_.operator.device
    return [model.transform(X), model.statistics_]


def measured(device: torch.device) -> list[np.ndarray]:
    obs = observed().to(device=device)
    held_out, lists = obs.with_values(obs.values.abs()), torch.arange(9).expand(20, 9).to(device)
    found = [measure(lists, held_out, 4) for measure in (ndcg_at_k, recall_at_k, map_at_k)]
    return [np.array([*found, rmse(obs.values, held_out.values)])]


ASKED = {"lists": recommended, "imputer": imputed, "metrics": measured}


@pytest.mark.parametrize("ask", ["als", "gradient", "bayesian", *ASKED])
def test_estimators_compute_there(ask: str):
    def answers(device: torch.device) -> list[np.ndarray]:
        return ASKED[ask](device) if ask in ASKED else estimated(ask, device)

    with use_backend("torch"):
        here = answers(torch.device("cpu"))
    with emulated_device():
        there = answers(DEVICE)
    for expected, found in zip(here, there, strict=True):
        np.testing.assert_allclose(expected, found, rtol=1e-4, atol=1e-4)


def half_sweep(obs: Observations) -> Callable[[], object]:
    rows = RowProblems.of(obs, obs.csr, torch.float64)
    x, one = obs.values.new_zeros(20, 3), torch.eye(3, dtype=torch.float64).to(obs.device)
    features = normal(15, 3).to(obs.device)
    offsets, strengths = features[:, 0].clone(), x.new_ones(20)
    return lambda: rows.solve(x, features, offsets, precision=one, strengths=strengths)


def test_a_half_sweep_waits_for_its_plan_and_its_loss_alone():
    with emulated_device() as reads:
        work = half_sweep(observed().to(device=DEVICE))
        reads.clear()
        work()
        assert ["_to_copy", "_local_scalar_dense"] == reads


def test_loss_and_gradient_wait_for_nothing():
    with emulated_device() as reads:
        obs = observed().to(device=DEVICE)
        left, right = (normal(k, 2).to(DEVICE).requires_grad_() for k in SHAPE)
        op = lo.LowRankOperator(left, left.new_ones(2), right)
        reads.clear()
        lo.kernels.observed_squared_loss(op, obs).backward()
        assert [] == reads


def test_the_counter_counts_and_the_device_refuses_to_mix():
    with emulated_device() as reads:
        x = torch.ones(3).to(DEVICE)
        reads.clear()
        assert float(x.sum()) == 3.0
        assert x[x > 0].cpu().tolist() == [1.0, 1.0, 1.0]
        assert ["_local_scalar_dense", "index", "_to_copy"] == reads
        with pytest.raises(RuntimeError, match="on one device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()


def test_steps_in_waves_wait_once_an_epoch():
    with emulated_device() as reads:
        obs = observed().to(device=DEVICE)
        steps = backend_of(DEVICE).steps(obs, 2)
        factors = tuple(normal(k, 2).to(DEVICE) for k in SHAPE)
        biases = tuple(normal(k).to(DEVICE) for k in SHAPE)
        reads.clear()
        steps.epoch(factors, biases, rate=0.1, penalty=0.1)
        assert ["_local_scalar_dense"] == reads
