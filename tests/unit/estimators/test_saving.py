"""Estimators in folders: what comes back predicts, recommends and goes on as what was saved."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_opt.errors import DataError
from lowrank_opt.estimators import MatrixCompletion, Recommender
from tests.unit.estimators.cases import quick, ratings

UNKNOWN = [(999, 0), (0, 999), (999, 999)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "als"},
        {"radius": 100.0, "clip": (1, 5)},
        {"solver": "bayesian", "rank": 2, "max_iterations": 5},
        {"shape": (40, 30), "rank": 2, "penalty": 1.0, "bias": None, "validation": None},
    ],
    ids=str,
)
def test_a_model_comes_back(tmp_path: Path, options: dict[str, object]):
    pairs, y = ratings()
    model = MatrixCompletion(random_state=3, **options).fit(pairs, y)
    model.save(tmp_path / "m")
    again = MatrixCompletion.load(tmp_path / "m")
    assert model.get_params() == again.get_params()
    assert (model.setting_, model.clip_, model.path_) == (
        again.setting_,
        again.clip_,
        again.path_,
    )
    asked = [*pairs.tolist(), *UNKNOWN] if "shape" not in options else pairs
    for a, b in zip(
        model.predict(asked, return_known=True),
        again.predict(asked, return_known=True),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    if len(model.path_) > 0:
        np.testing.assert_array_equal(model.predict_interval(asked), again.predict_interval(asked))
    if options.get("solver") == "bayesian":
        np.testing.assert_array_equal(
            model.predict(pairs, return_std=True), again.predict(pairs, return_std=True)
        )


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


def test_a_recommender_goes_on(tmp_path: Path):
    pairs, y = ratings()
    model = Recommender(quick()).fit(pairs, y).fold_in_rows([(77, 3, 1.0), (77, 4, 2.0)])
    model.save(tmp_path)
    again = Recommender.load(tmp_path)
    for other in (model, again):
        other.partial_fit([(77, 5, 3.0), (78, 99, 1.0)])
    found = [x.recommend([77, 78, 0, 5], k=4) for x in (model, again)]
    assert found[0].ids.tolist() == found[1].ids.tolist()
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-9)
    assert model.estimator.get_params() == again.estimator.get_params()


def test_what_cannot_be_saved_is_refused(tmp_path: Path):
    pairs, y = ratings()
    model = quick().fit([(frozenset({i}), j) for i, j in pairs.tolist()], y)
    with pytest.raises(DataError, match="in a file must be text"):
        model.save(tmp_path / "a")
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
