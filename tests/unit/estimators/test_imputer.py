"""LowRankImputer: scikit-learn's checks, SimpleImputer's conventions, known low-rank matrices."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowrank_opt.errors import OptionError
from lowrank_opt.estimators import LowRankImputer


@parametrize_with_checks([LowRankImputer(), LowRankImputer(rank=2, keep_empty_features=True)])
def test_scikit_learn_check(estimator: object, check: object, monkeypatch: pytest.MonkeyPatch):
    # Without it scikit-learn skips its checks of array API inputs.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


def low_rank(seed: int = 0, share: float = 0.25, dtype: type = np.float64) -> tuple:
    """A matrix of rank 2 with columns of very different units, and the same with holes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 12)) * np.logspace(-3, 3, 12) + 5
    return X.astype(dtype), np.where(rng.random(X.shape) < share, np.nan, X).astype(dtype)


def scaled_error(filled: np.ndarray, X: np.ndarray, holes: np.ndarray) -> float:
    return float(np.sqrt(np.mean((((filled - X) / X.std(axis=0))[np.isnan(holes)]) ** 2)))


def test_low_rank_matrix_is_recovered():
    X, holes = low_rank()
    filled = LowRankImputer(random_state=0).fit_transform(holes)
    errors = [scaled_error(f, X, holes) for f in (filled, KNNImputer().fit_transform(holes))]
    assert errors[0] < 0.02 < 0.2 < errors[1]


def test_observed_entries_stay():
    _, holes = low_rank()
    filled = LowRankImputer(rank=2, random_state=0).fit_transform(holes)
    observed = ~np.isnan(holes)
    np.testing.assert_array_equal(holes[observed], filled[observed])
    assert np.isfinite(filled).all()


def test_unseen_rows_are_folded_in():
    X, holes = low_rank()
    imputer = LowRankImputer(random_state=0).fit(holes[:40])
    assert scaled_error(imputer.transform(holes[40:]), X[40:], holes[40:]) < 0.05


def test_input_is_not_written():
    _, holes = low_rank()
    before = holes.copy()
    LowRankImputer(rank=2, random_state=0).fit_transform(holes)
    np.testing.assert_array_equal(before, holes)


def test_float32_stays_and_agrees():
    X, holes = low_rank(dtype=np.float32)
    imputer = LowRankImputer(rank=2, penalty=0.1, random_state=0)
    single, double = (imputer.fit_transform(h) for h in (holes, holes.astype(np.float64)))
    assert np.float32 == single.dtype
    np.testing.assert_allclose(single / X.std(0), double / X.std(0), atol=1e-4)


def test_same_seed_same_result():
    _, holes = low_rank()
    one, two = (LowRankImputer(random_state=3).fit_transform(holes) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.filterwarnings("ignore:Skipping features")
@pytest.mark.parametrize("keep", [False, True])
def test_empty_columns_are_those_of_simple_imputer(keep: bool):
    _, holes = low_rank()
    frame = pd.DataFrame(holes).add_prefix("c")
    frame["c3"] = np.nan
    ours = LowRankImputer(rank=2, keep_empty_features=keep, random_state=0)
    simple = SimpleImputer(keep_empty_features=keep)
    filled = [x.set_output(transform="pandas").fit(frame).transform(frame) for x in (ours, simple)]
    assert filled[1].columns.tolist() == filled[0].columns.tolist()
    assert filled[1].columns.tolist() == ours.get_feature_names_out().tolist()
    assert keep == ("c3" in filled[0])
    assert not keep or (filled[0]["c3"] == 0).all()
    np.testing.assert_allclose(simple.statistics_, ours.statistics_)


def test_rows_without_values_get_the_means():
    _, holes = low_rank()
    imputer = LowRankImputer(rank=2, random_state=0).fit(holes)
    empty = imputer.transform(np.full((2, 12), np.nan))
    np.testing.assert_allclose(empty, np.tile(imputer.statistics_, (2, 1)))
    with_others = imputer.transform(np.vstack((holes[:3], np.full((1, 12), np.nan))))
    np.testing.assert_allclose(with_others[3], imputer.statistics_)


def test_other_placeholder():
    _, holes = low_rank()
    marked = np.where(np.isnan(holes), -999.0, holes)
    filled = [
        LowRankImputer(rank=2, missing_values=x, random_state=0).fit_transform(h)
        for x, h in ((np.nan, holes), (-999.0, marked))
    ]
    np.testing.assert_array_equal(*filled)
    with pytest.raises(ValueError, match="contains NaN"):
        LowRankImputer(missing_values=-999.0).fit(holes)


def test_constant_and_complete_columns():
    X = np.column_stack((np.full(20, 1e9), np.arange(20.0), np.full(20, 7.0)))
    X[3, 0] = X[5, 1] = np.nan
    filled = LowRankImputer(random_state=0).fit_transform(X)
    assert (1e9, 7.0) == (filled[3, 0], filled[3, 2])
    assert 0 <= filled[5, 1] <= 19


@pytest.mark.parametrize("unit", [1e-300, 1e-150, 1e150, 1e300])
def test_unit_of_a_column_does_not_matter(unit: float):
    _, holes = low_rank()
    imputer = LowRankImputer(rank=2, penalty=0.1, random_state=0)
    expected = imputer.fit_transform(holes / 1e4)
    np.testing.assert_allclose(
        imputer.fit_transform(holes / 1e4 * unit) / unit, expected, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    "X",
    [
        np.full((3, 2), 4.0),
        np.array([[1.0]]),
        np.array([[1.0, 2.0, np.nan]]),
        np.array([[1.0], [np.nan], [3.0]]),
    ],
    ids=["constant", "1 x 1", "one row", "one column"],
)
def test_degenerate_matrices(X: np.ndarray):
    filled = LowRankImputer(random_state=0, keep_empty_features=True).fit_transform(X)
    assert (X.shape, True) == (filled.shape, bool(np.isfinite(filled).all()))


def test_pipeline_and_grid_search():
    X, holes = low_rank()
    y = X[:, 0] / X[:, 0].std() - X[:, 5] / X[:, 5].std()
    pipeline = make_pipeline(LowRankImputer(random_state=0), Ridge(alpha=1e-6))
    assert cross_val_score(pipeline, holes, y, cv=3).min() > 0.8
    search = GridSearchCV(pipeline, {"lowrankimputer__rank": [1, 2]}, cv=3).fit(holes, y)
    assert {"lowrankimputer__rank": 2} == search.best_params_


def test_pickle():
    _, holes = low_rank()
    imputer = LowRankImputer(rank=2, random_state=0).fit(holes)
    again = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(imputer.transform(holes), again.transform(holes))


def test_path_is_kept():
    imputer = LowRankImputer(random_state=0).fit(low_rank()[1])
    best = imputer.path_.best
    assert (best.setting["penalty"], int(best.setting["rank"])) == (imputer.penalty_, imputer.rank_)
    assert 0 == len(LowRankImputer(rank=2, penalty=1.0).fit(low_rank()[1]).path_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a positive integer"),
        ({"penalty": -1.0}, "penalty must be positive"),
        ({"validation": 2.0}, "validation must be a share"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str):
    with pytest.raises(OptionError, match=message):
        LowRankImputer(**options).fit(low_rank()[1])


def line() -> np.ndarray:
    X = np.outer(np.arange(1.0, 20.0), [1.0, 2.0, -1.0, 3.0])
    X[3, 1] = X[5, 2] = np.nan
    return X


def test_masked_none_and_na_are_missing():
    X = line()
    expected = LowRankImputer(random_state=0).fit_transform(X)
    frame = pd.DataFrame(X).astype(object)
    frame.iloc[3, 1], frame.iloc[5, 2] = None, pd.NA
    masked = np.ma.masked_invalid(X).filled(-999.0)
    for given in (
        np.ma.masked_equal(masked, -999.0),
        frame,
        pd.DataFrame(X).convert_dtypes(),
        torch.from_numpy(X),
        frame.to_numpy(),
    ):
        for marker in (np.nan, pd.NA):
            model = LowRankImputer(missing_values=marker, random_state=0)
            np.testing.assert_array_equal(expected, model.fit_transform(given))


def test_bounds_hold_for_imputed_values_alone():
    X = line()
    filled = LowRankImputer(random_state=0, min_value=-2.0, max_value=[9, 5, 9, 9]).fit_transform(X)
    assert (5.0, -2.0) == (filled[3, 1], filled[5, 2])
    there = ~np.isnan(X)
    np.testing.assert_array_equal(X[there], filled[there])
    for bounds in ({"min_value": 2, "max_value": 1}, {"max_value": [1, 2]}, {"min_value": "a"}):
        with pytest.raises(OptionError, match="min_value"):
            LowRankImputer(**bounds).fit(X)


def test_indicator_is_that_of_scikit_learn():
    X = line()
    model = LowRankImputer(random_state=0, add_indicator=True).set_output(transform="pandas")
    filled = model.fit_transform(pd.DataFrame(X, columns=list("abcd")))
    assert [*"abcd", "missingindicator_b", "missingindicator_c"] == filled.columns.tolist()
    np.testing.assert_array_equal(
        MissingIndicator().fit_transform(X), filled.iloc[:, 4:].to_numpy(dtype=bool)
    )


def test_columns_with_nothing_in_common_get_about_their_means():
    X = np.random.default_rng(0).normal(size=(80, 6))
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.3, np.nan, X)
    model = LowRankImputer(random_state=0).fit(holes)
    means = scaled_error(SimpleImputer().fit_transform(holes), X, holes)
    assert scaled_error(model.transform(holes), X, holes) < 1.05 * means
    last = model.path_.points[-1]
    assert 0 == last.setting["rank"]
    assert 0.9 < model.path_.best.validation_rmse / last.validation_rmse <= 1


def test_the_rank_grows_as_far_as_it_helps():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 20)) @ rng.normal(size=(20, 40)) + 0.3 * rng.normal(size=(150, 40))
    holes = np.where(rng.random(X.shape) < 0.15, np.nan, X)
    chosen, bounded = (LowRankImputer(rank=r, random_state=0).fit(holes) for r in (None, 12))
    assert bounded.rank_ <= 12 < 17 < chosen.rank_
    errors = [scaled_error(model.transform(holes), X, holes) for model in (chosen, bounded)]
    assert errors[0] < 0.6 * errors[1]
    assert LowRankImputer(rank=30, random_state=0).fit(holes).rank_ <= 30
