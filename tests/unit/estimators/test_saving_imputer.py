"""A saved imputer transforms as the one that was saved."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_opt.errors import DataError
from lowrank_opt.estimators import LowRankImputer, MatrixCompletion


def table(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5)) + 1
    X[rng.random(X.shape) < 0.2] = np.nan
    X[:, 4] = np.nan
    return pd.DataFrame(X, columns=list("abcde"))


SETTINGS = {
    "default": {},
    "indicator": {"add_indicator": True},
    "empty kept": {"keep_empty_features": True},
    "bounds": {"min_value": np.array([0.0, 0, 0, -1, 0]), "max_value": 3.0},
    "pandas.NA": {"missing_values": pd.NA},
    "given": {"rank": 1, "penalty": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_loaded_imputer_transforms_as_before(name: str, tmp_path: Path):
    model = LowRankImputer(random_state=0, **SETTINGS[name]).set_output(transform="pandas")
    model.fit(table(0)).save(tmp_path)
    again = LowRankImputer.load(tmp_path)
    new = table(1)
    pd.testing.assert_frame_equal(model.transform(new), again.transform(new))
    assert list(model.get_feature_names_out()) == list(again.get_feature_names_out())
    assert (model.rank_, model.penalty_) == (again.rank_, again.penalty_)
    np.testing.assert_array_equal(model.statistics_, again.statistics_)
    with pytest.raises(ValueError, match="feature names"):
        again.transform(new[list("edcba")])
    again.fit(table(0))


def test_constant_columns_have_no_result(tmp_path: Path):
    X = np.array([[1.0, np.nan], [1.0, 2.0]])
    LowRankImputer().fit(X).save(tmp_path)
    assert LowRankImputer.load(tmp_path).transform(X).tolist() == [[1, 2], [1, 2]]
    with pytest.raises(DataError, match=r"holds a LowRankImputer: use LowRankImputer\.load"):
        MatrixCompletion.load(tmp_path)
