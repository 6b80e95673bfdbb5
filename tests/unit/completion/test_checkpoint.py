"""Checkpoints: an iteration that was killed and goes on ends as one that never stopped."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.completion import CompletionResult, Iteration, variational
from lowrank_opt.completion.complete import complete
from lowrank_opt.completion.loop.checkpoint import Checkpoint, fingerprint
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.errors import DataError, OptionError
from lowrank_opt.observations import Observations
from tests.completion_cases import normal, observe, seeded

OBSERVED = observe(normal(30, 4) @ normal(4, 25, seed=1) + 0.5 * normal(30, 25, seed=2), 0.6)


class Killed(BaseException):
    """What no handler of errors catches."""


def killed_after(count: int) -> Callable[[Iteration], None]:
    seen: list[Iteration] = []

    def report(iteration: Iteration) -> None:
        seen.append(iteration)
        if len(seen) == count:
            raise Killed

    return report


def momentum(variables: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(variables, lr=1e-3, momentum=0.9)


def fit(
    checkpoint: Checkpoint | None, *, dtype: torch.dtype = torch.float64, **options: object
) -> CompletionResult:
    ball = lo.HomogeneousBall((30, 25), 4, radius=60.0, dtype=dtype, generator=seeded())
    settings = {"validation": 0.1, "max_iterations": 40, "tolerance": 1e-9} | options
    return complete(OBSERVED, ball, generator=seeded(3), checkpoint=checkpoint, **settings)


def numbers(result: CompletionResult) -> dict[str, object]:
    columns = result.history.columns()
    del columns["seconds"]
    tensors = (*result.operator, result.bias.rows, result.bias.cols)
    return columns | {"status": result.status, "tensors": [x.tolist() for x in tensors]}


def everything(result: object) -> dict[str, object]:
    if isinstance(result, CompletionResult):
        return numbers(result)
    columns = result.history.columns()
    del columns["seconds"]
    fields = (getattr(result, field.name) for field in dataclasses.fields(result))
    return columns | {"tensors": [x.tolist() for x in fields if isinstance(x, torch.Tensor)]}


def goes_on_as_if_never_stopped(
    run: Callable[..., object], folder: Path, *, every: int, killed: int
) -> None:
    """Kill a run after some iterations, go on from its checkpoint, and compare with a whole one."""
    reported: list[Iteration] = []
    expected = run(progress=reported.append)
    with pytest.raises(Killed):
        run(checkpoint=Checkpoint(folder, every=every), progress=killed_after(killed))
    seen: list[Iteration] = []
    again = Checkpoint(folder, every=every, resume=True)
    resumed = run(checkpoint=again, progress=seen.append)
    np.testing.assert_equal(everything(resumed), everything(expected))
    # It went on, instead of beginning again.
    assert len(reported) - len(seen) == every * ((killed - 1) // every)


@pytest.mark.parametrize("solver", ["lbfgs", "first_order", lo.solvers.FirstOrder(momentum)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("killed", [2, 11, 20])
def test_killed_and_resumed_is_the_same(
    tmp_path: Path, solver: object, dtype: torch.dtype, killed: int
):
    def run(checkpoint: Checkpoint | None = None, **options: object) -> CompletionResult:
        return fit(checkpoint, dtype=dtype, solver=solver, **options)

    goes_on_as_if_never_stopped(run, tmp_path, every=3, killed=killed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("killed", [3, 6, 11])
def test_posterior_killed_and_resumed_is_the_same(tmp_path: Path, dtype: torch.dtype, killed: int):
    observed = OBSERVED.to(dtype=dtype)

    def sweeps(**options: object) -> CompletionResult:
        settings = {"validation": 0.1, "max_iterations": 14, "tolerance": 0.0, "patience": 99}
        return variational(observed, 5, generator=seeded(3), **(settings | options))

    goes_on_as_if_never_stopped(sweeps, tmp_path, every=2, killed=killed)


SWEEPING = {
    "als": {"penalty": 0.5},
    "als held out": {"penalty": 0.5, "validation": 0.1},
    "als one by one": {"penalty": 0.5, "solver": lo.solvers.ALS(method="cg", gap=None)},
    "soft_impute": {"penalty": 2.0},
    "soft_impute held out": {"penalty": 2.0, "validation": 0.1},
    "max_norm": {"solver": lo.solvers.MaxNorm(radius=2.0, max_iterations=30)},
    "gibbs": {"solver": lo.solvers.Gibbs(burn_in=4, samples=5, thinning=2)},
    "frank_wolfe": {"model": lo.SchattenBall(1, 200.0, 25), "max_iterations": 12},
    "frank_wolfe of small rank": {"model": lo.SchattenBall(1, 120.0, 5), "validation": 0.1},
    "sgd in its trial": {"solver": "sgd", "patience": 10},
    "sgd": {"solver": lo.solvers.SGD(max_iterations=20)},
    "sgd held out": {"solver": lo.solvers.SGD(max_iterations=20), "validation": 0.1},
    "riemannian": {"solver": lo.solvers.Riemannian(max_iterations=20)},
    "riemannian of one stage": {"solver": lo.solvers.Riemannian("spectral", max_iterations=20)},
    "scaled_gd": {"solver": lo.solvers.ScaledGD(max_iterations=20)},
    "gauss_newton": {"solver": lo.solvers.GaussNewton(max_iterations=14)},
    "singular_value_projection": {"solver": lo.solvers.SingularValueProjection(max_iterations=20)},
}


@pytest.mark.parametrize("name", list(SWEEPING))
def test_sweeps_killed_and_resumed_are_the_same(tmp_path: Path, name: str):
    observed = OBSERVED.to(dtype=torch.float32)

    def run(**options: object) -> object:
        given = {"solver": name.split()[0], "model": 4} | SWEEPING[name] | options
        return complete(observed, generator=seeded(3), **given)

    for killed in (2, 7):
        goes_on_as_if_never_stopped(run, tmp_path / str(killed), every=2, killed=killed)


def test_stochastic_steps_killed_after_their_trial_are_the_same(tmp_path: Path):
    def run(**options: object) -> object:
        return complete(OBSERVED, 4, solver="sgd", generator=seeded(3), **options)

    trial: list[Iteration] = []
    expected = run(progress=trial.append)
    epochs = len(expected.history)
    last = killed_after(len(trial) - epochs + 5)
    with pytest.raises(Killed):
        run(checkpoint=Checkpoint(tmp_path, every=2), progress=last)
    seen: list[Iteration] = []
    resumed = run(checkpoint=Checkpoint(tmp_path, every=2, resume=True), progress=seen.append)
    np.testing.assert_equal(everything(resumed), everything(expected))
    assert len(seen) == epochs - 4


def test_solver_without_a_state_refuses():
    def iterates() -> Iterator[Iterate]:
        raise AssertionError("no work starts")
        yield

    run = Run(checkpoint=Checkpoint("x"))
    with pytest.raises(OptionError, match="leaves no checkpoints"):
        iterate(iterates(), OBSERVED, None, run, tolerance=0.0, max_iterations=1)


def test_more_iterations_than_at_first(tmp_path: Path):
    fit(Checkpoint(tmp_path, every=1), max_iterations=20, validation=None)
    resumed = fit(Checkpoint(tmp_path, resume=True), max_iterations=50, validation=None)
    expected = fit(None, max_iterations=50, validation=None)
    np.testing.assert_equal(numbers(resumed), numbers(expected))


def test_without_resume_a_state_is_not_read(tmp_path: Path):
    (tmp_path / "checkpoint.json").write_text("{")
    assert Checkpoint(tmp_path).restored() is None
    assert Checkpoint(tmp_path / "none", resume=True).restored() is None


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x) | st.lists(x).map(tuple),
    max_leaves=20,
)


@given(TREES)
def test_states_come_back(tmp_path_factory: pytest.TempPathFactory, tree: object):
    folder = tmp_path_factory.mktemp("state")
    Checkpoint(folder).offer(0, lambda: tree)
    found = Checkpoint(folder, resume=True).restored()
    # repr tells apart what == does not: types, and signs of zero; NaN equals itself.
    assert repr(tree) == repr(found)


def test_tensors_and_arrays_come_back(tmp_path: Path):
    state = {"a": torch.tensor([math.nan, -0.0]), "b": [np.eye(2), np.float32([1]), torch.ones(())]}
    Checkpoint(tmp_path, every=5).offer(10, lambda: state)
    assert repr(state) == repr(Checkpoint(tmp_path, resume=True).restored())


def test_state_of_something_else(tmp_path: Path):
    with pytest.raises(OptionError, match="made of tensors, numbers and text; got a set: this"):
        Checkpoint(tmp_path).offer(0, lambda: {"x": {1}})


def test_only_every_so_many(tmp_path: Path):
    Checkpoint(tmp_path / "a", every=4).offer(7, lambda: {})
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_every_is_checked(every: int):
    with pytest.raises(OptionError, match="every must be a positive integer; got"):
        Checkpoint("x", every=every)


def test_other_settings_are_refused(tmp_path: Path):
    Checkpoint(tmp_path, settings={"rank": 3, "pair": (1, 2)}).offer(0, lambda: {})
    Checkpoint(tmp_path, resume=True, settings={"rank": 3, "pair": (1, 2)}).restored()
    with pytest.raises(OptionError, match=r"the settings it began with; got rank=4 after 3 in"):
        Checkpoint(tmp_path, resume=True, settings={"rank": 4, "pair": (1, 2)}).restored()


@pytest.mark.parametrize("state", [{"x": 1}, {"tensor": "9"}, {"float": "abc"}, {"dict": [1]}])
def test_damaged_state_is_refused(tmp_path: Path, state: dict):
    Checkpoint(tmp_path).offer(0, lambda: {})
    file = tmp_path / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": state}))
    with pytest.raises(DataError, match=r"a checkpoint must be as Checkpoint wrote it; .* damaged"):
        Checkpoint(tmp_path, resume=True).restored()


def test_removed(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path, resume=True)
    checkpoint.offer(0, lambda: {})
    checkpoint.remove()
    assert checkpoint.restored() is None


def test_fingerprint_tells_data_apart():
    def of(*values: float, weights: list[float] | None = None) -> str:
        return fingerprint(Observations([0, 1], [0, 1], [*values], (2, 2), weights))

    assert of(1.0, 2.0) == of(1.0, 2.0)
    assert 3 == len({of(1.0, 2.0), of(1.0, 3.0), of(1.0, 2.0, weights=[1.0, 2.0])})


def test_states_are_written_at_most_so_often_after_the_first(tmp_path, monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path, every=2, seconds=1.0)
    for step in range(1, 13):
        now[0] += 0.3
        checkpoint.offer(step, lambda step=step: seen.append(step) or step)
    # Offered at 0.6, 1.2, 1.8, ... seconds.
    assert [2, 6, 10] == seen
    assert 10 == Checkpoint(tmp_path, resume=True).restored()
