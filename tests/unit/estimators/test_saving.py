"""Estimators in folders: what comes back predicts, recommends and goes on as what was saved."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_opt.errors import DataError, OptionError
from lowrank_opt.estimators import MatrixCompletion, Recommender
from tests.unit.estimators.cases import quick, ratings

UNKNOWN = [(999, 0), (0, 999), (999, 999)]


def copies(model: MatrixCompletion | Recommender, folder: Path) -> list:
    """The model through a folder, twice, through pickle, and copied."""
    model.save(folder / "m")
    again = type(model).load(folder / "m")
    again.save(folder / "again")
    return [
        again,
        type(model).load(folder / "again"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ]


def said(ask: Callable[[], object]) -> object:
    """What is answered; a refusal is an answer."""
    try:
        return ask()
    except OptionError as error:
        return str(error)


def answers(model: MatrixCompletion, asked: list) -> dict[str, object]:
    settings = {name: x for name, x in vars(model).items() if name.endswith("_")}
    for foreign in ("result_", "row_labels_", "col_labels_"):
        del settings[foreign]
    return settings | {
        "params": model.get_params(),
        "predict": model.predict(asked, return_known=True),
        "std": said(lambda: model.predict(asked, return_std=True)),
        "interval": said(lambda: model.predict_interval(asked, coverage=0.8)),
        "ids": (model.row_labels_.to_ids(), model.col_labels_.to_ids()),
        "result": model.result_.predict([0, 1], [2, 3]).tolist(),
        "shown": repr(model),
    }


def lists(model: Recommender) -> dict[str, object]:
    later = copy.deepcopy(model).partial_fit([(77, 5, 3.0), (78, 99, 1.0)])
    return {
        "predict": model.predict(UNKNOWN),
        "interval": said(lambda: model.model_.predict_interval(UNKNOWN)),
        "recommend": model.recommend([77, 0, 5], k=4),
        "similar": (*model.similar_users([0], 3), *model.similar_items([1], 3)),
        "seen": model.observations_.values.tolist(),
        "later": later.recommend([77, 78], k=4),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "als"},
        {"radius": 100.0, "clip": (1, 5)},
        {"rank": 2, "penalty": 1.0, "bias_penalty": 1.0},
        {"solver": "bayesian", "rank": 2, "max_iterations": 5},
        {"shape": (40, 30), "rank": 2, "penalty": 1.0, "bias": None, "validation": None},
    ],
    ids=str,
)
def test_a_model_answers_as_before_by_every_way(tmp_path: Path, options: dict[str, object]):
    """Copied before anything was asked, and after."""
    pairs, y = ratings()
    model = MatrixCompletion(random_state=3, **options).fit(pairs, y)
    early = copies(model, tmp_path)
    asked = [*pairs.tolist(), *UNKNOWN] if "shape" not in options else pairs.tolist()
    expected = answers(model, asked)
    for again in (*early, *copies(model, tmp_path)):
        np.testing.assert_equal(answers(again, asked), expected)


@pytest.mark.parametrize("solver", ["auto", "bayesian"])
def test_a_recommender_answers_as_before_by_every_way(tmp_path: Path, solver: str):
    """Of draws, intervals are those of the point estimate that is kept."""
    pairs, y = ratings()
    inner = MatrixCompletion(rank=2, solver=solver, max_iterations=5, random_state=0)
    model = Recommender(inner).fit(pairs, y).fold_in_rows([(77, 3, 1.0), (77, 4, 2.0)])
    early, expected = copies(model, tmp_path), lists(model)
    assert not isinstance(expected["interval"], str)
    for again in (*early, *copies(model, tmp_path)):
        np.testing.assert_equal(lists(again), expected)


def test_ids_and_names_come_back(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "user": pd.to_datetime(["2020-01-01", "2021-01-01", "2020-01-01"]),
            "item": ["007", 7, ("a", 1)],
            "y": [1.0, 2.0, 3.0],
        }
    )
    model = quick().fit(frame)
    model.save(tmp_path)
    again = MatrixCompletion.load(tmp_path)
    assert model.row_labels_.ids.dtype == again.row_labels_.ids.dtype
    assert model.row_labels_.to_ids() == again.row_labels_.to_ids()
    assert ["007", 7, ("a", 1)] == again.col_labels_.to_ids() == list(again.result_.col_ids)
    assert ["user", "item"] == again.feature_names_in_.tolist()


def test_a_generator_of_random_numbers_is_left_out(tmp_path: Path):
    pairs, y = ratings()
    model = quick(random_state=np.random.RandomState(0)).fit(pairs, y)
    model.save(tmp_path / "b")
    assert MatrixCompletion.load(tmp_path / "b").random_state is None


def test_damage_and_other_estimators_are_refused(tmp_path: Path):
    pairs, y = ratings()
    quick().fit(pairs, y).save(tmp_path)
    with pytest.raises(DataError, match=r"holds a MatrixCompletion: use MatrixCompletion\.load"):
        Recommender.load(tmp_path)
    description = json.loads((tmp_path / "estimator.json").read_text())
    del description["settings"]
    (tmp_path / "estimator.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"must be as save wrote it.*settings"):
        MatrixCompletion.load(tmp_path)
    with pytest.raises(DataError, match="an estimator is a folder"):
        MatrixCompletion.load(tmp_path / "nothing")
