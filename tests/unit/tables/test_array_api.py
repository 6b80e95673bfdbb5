"""Arrays that are no NumPy arrays: all that takes an array takes one with the interface alone."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from lowrank_opt.estimators import LowRankImputer, MatrixCompletion, Recommender
from lowrank_opt.observations import Observations
from lowrank_opt.tables import read_triplets

QUICK = {"rank": 1, "penalty": 0.5, "bias_penalty": 1.0, "random_state": 0, "max_iterations": 3}


class Interface:
    """What arrays of the array API have: axes, a dtype, DLPack; no length, and no hash."""

    __hash__ = None

    def __init__(self, data: object) -> None:
        self._data = np.asarray(data)
        self.dtype, self.shape, self.ndim = self._data.dtype, self._data.shape, self._data.ndim

    def __array_namespace__(self) -> object:
        return np

    def __dlpack__(self, **options: object) -> object:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __getitem__(self, key: object) -> "Interface":
        return Interface(self._data[key])


class WithArray(Interface):
    """As those of array-api-strict, which NumPy can convert."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(self._data, dtype=dtype)


PAIRS, VALUES, WEIGHTS = [[1, 2], [3, 4], [1, 4]], [1.0, 2.0, 3.5], [1.0, 2.0, 1.0]
BOTH = pytest.mark.parametrize("make", [Interface, WithArray])


@BOTH
def test_estimators(make: type[Interface]):
    pairs, values, weights = make(PAIRS), make(VALUES), make(WEIGHTS)
    expected = MatrixCompletion(**QUICK).fit(PAIRS, VALUES, WEIGHTS)
    for given in (
        (pairs, values, weights),
        ((pairs[:, 0], pairs[:, 1]), values, weights),
        ({"user": pairs[:, 0], "item": pairs[:, 1], "rating": values}, None, weights),
        (make(np.column_stack([PAIRS, VALUES])), None, weights),
    ):
        found = MatrixCompletion(**QUICK).fit(*given)
        np.testing.assert_array_equal(expected.predict(PAIRS), found.predict(pairs))
        assert expected.score(PAIRS, VALUES) == found.score(pairs, np.asarray(VALUES))


@BOTH
def test_recommender(make: type[Interface]):
    model = Recommender(MatrixCompletion(**QUICK)).fit(make(PAIRS), make(VALUES))
    expected = model.recommend([1, 3], k=2, items=[2, 4], exclude_seen=False).ids.tolist()
    found = model.recommend(make([1, 3]), k=2, items=make([2, 4]), exclude_seen=False)
    assert expected == found.ids.tolist()
    one = model.recommend(make(1), k=2, items=make([2, 4]), exclude_seen=False)
    assert expected[:1] == one.ids.tolist()
    assert model.similar_items([2], k=1).ids.tolist() == model.similar_items(make([2]), 1).ids
    model.partial_fit(make([[3, 2]]), make([5.0]), sample_weight=make([2.0]))
    assert 4 == len(model.observations_)


def test_features_and_dense_matrices():
    features = {"row_features": Interface(np.eye(5))}
    model = MatrixCompletion((5, 5), rank=1, max_iterations=2, random_state=0)
    assert (3,) == model.fit(Interface(PAIRS), Interface(VALUES), **features).predict(PAIRS).shape
    X = np.random.default_rng(0).normal(size=(9, 4))
    X[2, 1] = np.nan
    assert 35 == len(Observations.from_dense(Interface(X))) == len(read_triplets(Interface(X)))
    imputer = LowRankImputer(rank=1, penalty=1.0, random_state=0)
    expected = imputer.fit_transform(X)
    np.testing.assert_array_equal(expected, imputer.fit_transform(WithArray(X)))


MAKERS: dict[str, Callable[[np.ndarray], object]] = {
    "NumPy": lambda x: x,
    "interface": Interface,
    "pandas": pd.Series,
    "polars": pl.Series,
    "torch": torch.from_numpy,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_keep_their_dtype(make: Callable[[np.ndarray], object], dtype: type):
    values = np.array([0.1, 2.0], dtype=dtype)
    observed = Observations(make(np.array([0, 1])), make(np.array([1, 0])), make(values), (2, 2))
    assert values.dtype == observed.values.numpy().dtype
    assert values.tolist() == observed.values.tolist()
