"""Side information of every make, as numbers."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch

import lowrank_opt as lo
from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.features import as_features

X = np.array([[1.0, 0.0], [0.0, 2.5], [0.0, 0.0]])


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.astype(">f4"),
        X[::-1].copy()[::-1],
        np.ma.array(X),
        torch.from_numpy(X),
        torch.from_numpy(X).to_sparse(),
        torch.from_numpy(X).to_sparse_csr(),
        torch.from_numpy(X).bfloat16(),
        sp.csc_array(X),
        sp.coo_matrix(X),
        pd.DataFrame(X),
        pd.DataFrame(X).convert_dtypes(),
        pl.DataFrame(X),
        pl.LazyFrame(X),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_make_gives_the_same_numbers(data: object):
    found = as_features(data)
    dense = found if isinstance(found, np.ndarray) else found.toarray()
    np.testing.assert_array_equal(X, dense)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_categories_become_indicators(make: object):
    frame = make({"job": ["cook", "poet", "cook"], "age": [20, 30, 40], "old": [False, True, True]})
    expected = [[1, 0, 20, 0], [0, 1, 30, 1], [1, 0, 40, 1]]
    assert expected == as_features(frame).tolist()
    if make is pd.DataFrame:
        assert expected == as_features(frame.astype({"job": "category"})).tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([[1.0, np.nan]]), "column 1 has 1 missing"),
        (np.ma.array([[1.0, 2.0]], mask=[[True, False]]), "column 0 has 1 missing"),
        (sp.csr_array(np.array([[1.0, np.nan]])), "column 1 has 1 missing"),
        (pd.DataFrame({"age": [1, None], "a": [1, 2]}), "column 'age' has 1 missing"),
        (pd.DataFrame({"a": ["x", None]}), "column 'a' has 1 missing"),
        (pl.DataFrame({"a": [1, None]}), "column 'a' has 1 missing"),
        (pd.DataFrame({"a": pd.to_datetime(["2020", "2021"])}), "column 'a' has .*: convert it"),
        (np.array([["x"]]), "features must be real numbers"),
    ],
)
def test_gaps_are_named(data: object, message: str):
    with pytest.raises(ObservationError, match=message):
        as_features(data)


@pytest.mark.parametrize("data", [np.zeros(3), np.zeros((2, 2, 2)), pd.DataFrame(index=[1, 2])])
def test_features_are_a_matrix(data: object):
    with pytest.raises(ShapeError, match="must"):
        as_features(data)


def test_frames_reach_the_solver():
    observed = lo.Observations([0, 1, 2, 0], [0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0], (3, 2))
    frame = pd.DataFrame({"a": ["x", "y", "x"], "b": [1.0, 2.0, 3.0]})
    solver = lo.solvers.Gibbs(samples=2, burn_in=1)
    results = [
        lo.complete(
            observed,
            1,
            solver=solver,
            row_features=[features],
            generator=torch.Generator().manual_seed(0),
        )
        for features in (frame, as_features(frame))
    ]
    assert torch.equal(results[0].row_factors, results[1].row_factors)
