"""Side information by ids: aligned with the entries, and of use where there are none."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.estimators.data.entries import entries_of
from lowrank_opt.estimators.data.side import with_side
from lowrank_opt.tables import read_triplets

M, N = 60, 25


def planted(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ratings by text ids whose user factors are a function of two features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(M, 2))
    W = 3 + features @ rng.normal(size=(2, 3)) @ rng.normal(size=(3, N))
    i, j = np.nonzero(rng.random((M, N)) < 0.5)
    y = W[i, j] + 0.1 * rng.normal(size=len(i))
    frame = pd.DataFrame({"user": [f"u{x}" for x in i], "item": [f"f{x}" for x in j], "y": y})
    side = pd.DataFrame(features, columns=["a", "b"], index=[f"u{x}" for x in range(M)])
    return frame.sample(frac=1, random_state=seed), side.sample(frac=1, random_state=seed + 1)


def test_features_of_strangers_predict_them():
    frame, side = planted()
    new = frame["user"].isin([f"u{x}" for x in range(10)])
    options = {"rank": 4, "max_iterations": 40, "random_state": 0}
    model = MatrixCompletion(**options).fit(frame[~new], row_features=side)
    blind = MatrixCompletion(solver="bayesian", **options).fit(frame[~new])
    pairs, y = frame.loc[new, ["user", "item"]], frame.loc[new, "y"]
    errors = [np.sqrt(np.mean((x.predict(pairs) - y) ** 2)) for x in (model, blind)]
    assert errors[0] < 0.5 * errors[1]
    assert {"pair"} == set(model.predict(pairs, return_known=True)[1])


def aligned(side: object, **options: object) -> dict[object, list[float]]:
    entries = entries_of(read_triplets([("b", 0, 1.0), ("a", 1, 2.0)]), None)
    found, (left, right), _ = with_side(entries, side, None)
    assert [] == right
    assert found.observations.shape == (len(found.row_labels), 2)
    return dict(zip(found.row_labels.to_ids(), np.asarray(left[0]).tolist(), strict=True))


def test_lines_follow_ids():
    expected = {"a": [1.0], "b": [2.0], "c": [3.0]}
    assert expected == aligned(pd.DataFrame({"x": [3, 1, 2]}, index=["c", "a", "b"]))
    assert expected == aligned(pl.DataFrame({"id": ["c", "a", "b"], "x": [3, 1, 2]}))


def test_arrays_are_by_position():
    pairs, y, features = [(0, 0), (1, 1), (2, 0)], [1.0, 2.0, 4.0], np.eye(3)
    options = {"rank": 1, "max_iterations": 3, "random_state": 0}
    model = MatrixCompletion(shape=(3, 2), **options).fit(pairs, y, row_features=features)
    again = MatrixCompletion(**options).fit(pairs, y, row_features=pd.DataFrame(features))
    np.testing.assert_array_equal(model.predict(pairs), again.predict(pairs))
    with pytest.raises(ShapeError, match=r"a line for each position 0\.\.2; got 2 lines"):
        MatrixCompletion(**options).fit(pairs, y, row_features=np.eye(2))
    with pytest.raises(ShapeError, match="ids such as"):
        MatrixCompletion(**options).fit([("a", 0), ("b", 1)], [1, 2], row_features=np.eye(2))


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (pd.DataFrame({"x": [1, 2]}, index=["a", "c"]), "none for 1 of 2, the first 'b'"),
        (pd.DataFrame({"x": [1, 2, 3]}, index=["a", "a", "b"]), "each id once; got 1 again"),
        (pd.DataFrame({"x": [1, None]}, index=["a", "b"]), "column 'x' has 1 missing"),
        (pd.DataFrame({"x": [1, 2]}), "row_features must be integers.*got text"),
    ],
)
def test_what_does_not_fit_is_named(side: object, message: str):
    with pytest.raises(ObservationError, match=message):
        aligned(side)


def test_other_solvers_are_refused():
    frame, side = planted()
    with pytest.raises(OptionError, match="takes no side information"):
        MatrixCompletion(solver="als").fit(frame, row_features=side)
