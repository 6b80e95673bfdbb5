"""Callbacks of scikit-learn: called once for each task, in order, with what they ask for."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from lowrank_opt.errors import OptionError
from lowrank_opt.estimators import LowRankImputer, MatrixCompletion, Recommender
from lowrank_opt.estimators.choice.callbacks import _WithoutCallbacks

callback = pytest.importorskip("sklearn.callback")


class Recorder:
    def __init__(self, stop_after: int = 10**6) -> None:
        self.log: list[tuple[str, str]] = []
        self.metadata: list[dict] = []
        self.estimators: list[object] = []
        self.stop_after = stop_after

    def setup(self, estimator: object, context: object) -> None:
        self.log.append(("setup", context.task_name))

    def teardown(self, estimator: object, context: object) -> None:
        self.log.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator: object, context: object) -> None:
        self.log.append(("begin", context.task_name))

    def on_fit_task_end(
        self, estimator: object, context: object, *, metadata=None, fitted_estimator=None
    ) -> bool:
        self.log.append(("end", context.task_name))
        if context.task_name == "iteration":
            self.metadata.append(metadata)
        if context.task_name == "setting":
            self.estimators.append(fitted_estimator)
        return context.task_name == "setting" and len(self.estimators) >= self.stop_after


def ratings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pairs = np.argwhere(rng.random((30, 20)) < 0.7)
    W = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20))
    return pairs, W[pairs[:, 0], pairs[:, 1]]


ESTIMATORS = {
    "completion": (MatrixCompletion(random_state=0), ratings()),
    "penalised": (MatrixCompletion(solver="als", random_state=0), ratings()),
    "recommender": (Recommender(MatrixCompletion(random_state=0)), ratings()),
    "imputer": (
        LowRankImputer(random_state=0),
        (np.where(np.random.default_rng(0).random((30, 6)) < 0.2, np.nan, 1.0 * np.eye(30, 6)),),
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_tasks_are_nested(name: str):
    estimator, data = ESTIMATORS[name]
    recorder = Recorder()
    clone(estimator).set_callbacks(recorder).fit(*data)
    assert [("setup", "fit"), ("begin", "fit"), ("begin", "setting")] == recorder.log[:3]
    assert [("end", "setting"), ("end", "fit"), ("teardown", "fit")] == recorder.log[-3:]
    depth, open_tasks = 0, []
    for event, task in recorder.log[1:-1]:
        if event == "begin":
            open_tasks.append(task)
        else:
            assert task == open_tasks.pop()
        depth = max(depth, len(open_tasks))
    assert (3, []) == (depth, open_tasks)
    assert all(x["objective"] >= 0 and x["seconds"] >= 0 for x in recorder.metadata)


def test_every_setting_of_the_path_is_told_with_its_estimator():
    pairs, y = ratings()
    recorder = Recorder()
    model = MatrixCompletion(random_state=0).set_callbacks(recorder).fit(pairs, y)
    # Those of the path, and the fit of all entries.
    assert len(model.path_) + 1 == len(recorder.estimators)
    ranks = [x.rank_ for x in recorder.estimators]
    assert [int(p.setting["rank"]) for p in model.path_.points] == ranks[:-1]
    np.testing.assert_array_equal(model.predict(pairs), recorder.estimators[-1].predict(pairs))


def test_a_callback_ends_the_search():
    pairs, y = ratings()
    model = MatrixCompletion(solver="als", random_state=0)
    many = len(clone(model).fit(pairs, y).path_)
    assert 2 == len(model.set_callbacks(Recorder(stop_after=2)).fit(pairs, y).path_) < many


def test_callbacks_change_nothing_and_are_torn_down_after_errors():
    pairs, y = ratings()
    plain, recorder = MatrixCompletion(random_state=0).fit(pairs, y), Recorder()
    told = MatrixCompletion(random_state=0).set_callbacks(recorder).fit(pairs, y)
    np.testing.assert_array_equal(plain.predict(pairs), told.predict(pairs))
    with pytest.raises(TypeError, match="FitCallback"):
        told.set_callbacks(print)


def test_callbacks_of_scikit_learn(capsys: pytest.CaptureFixture[str]):
    pairs, y = ratings()
    monitor = callback.ScoringMonitor(scoring="neg_mean_squared_error")
    model = MatrixCompletion(random_state=0).set_callbacks(monitor).fit(pairs, y)
    scores = [x["neg_mean_squared_error"] for x in monitor.get_logs().data]
    expected = -np.mean((model.predict(pairs) - y) ** 2)
    assert expected == pytest.approx(scores[-1])
    assert len(model.path_) + 2 == len(scores)
    search = GridSearchCV(MatrixCompletion(random_state=0), {"rank": [1, 2]}, cv=2)
    search.set_params(estimator__validation=None).fit(pairs, y)
    assert 2 == search.best_params_["rank"]


def test_an_earlier_scikit_learn_is_named():
    without = _WithoutCallbacks()
    assert without is without.set_callbacks()
    with pytest.raises(OptionError, match=r"need scikit-learn 1\.9; got 1"):
        without.set_callbacks(Recorder())
