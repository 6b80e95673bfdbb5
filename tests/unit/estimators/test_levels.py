"""`MatrixCompletion` of ordered levels."""

import numpy as np
import pytest

from lowrank_opt.errors import OptionError
from lowrank_opt.estimators import MatrixCompletion


def levels(seed=0, m=30, n=20):
    """Pairs, levels 1 to 4 of noise around a matrix of rank one, and features of the rows."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((m, 1)), rng.standard_normal((n, 1))
    z = u @ v.T + u + rng.standard_normal((m, n))
    i, j = np.nonzero(rng.random((m, n)) < 0.5)
    return np.column_stack((i, j)), 1.0 + np.digitize(z, [-1.0, 0.3, 1.5])[i, j], u


def fit(pairs, y, **settings):
    settings = {"loss": "ordered_probit", "rank": 1, "max_iterations": 6} | settings
    return MatrixCompletion(random_state=0, **settings).fit(pairs, y)


def test_levels_are_predicted_between_the_lowest_and_the_highest():
    pairs, y, _ = levels()
    model = fit(pairs, y)
    predicted, std, known = model.predict(
        [(0, 1), (0, 99), (99, 1), (99, 99)], return_std=True, return_known=True
    )
    assert ["pair", "row", "column", "mean"] == known.tolist()
    assert ((1 <= predicted) & (predicted <= 4) & (std > 0)).all()
    np.testing.assert_allclose(predicted[3], y.mean(), rtol=1e-6)
    # Where the column is unknown, a row tells what its levels are, not its latent bias.
    of_row = y[pairs[:, 0] == 0]
    np.testing.assert_allclose(predicted[1], (of_row.sum() + 4 * y.mean()) / (len(of_row) + 4),
                               atol=0.2)  # fmt: skip
    low, high = model.predict_interval(pairs, coverage=0.9)
    assert 0.8 < np.mean((low <= y) & (y <= high)) <= 1


def test_fit_of_levels_survives_a_file_and_extreme_values(tmp_path):
    pairs, y, _ = levels()
    model = fit(pairs, y)
    model.save(tmp_path / "model")
    loaded = MatrixCompletion.load(tmp_path / "model")
    assert np.array_equal(model.predict(pairs), loaded.predict(pairs))
    assert "ordered_probit" == loaded.loss
    huge = fit(pairs, y * 2.0**400)
    np.testing.assert_allclose(huge.predict(pairs) / 2.0**400, model.predict(pairs), rtol=1e-12)


def test_rows_that_come_with_features_are_predicted_on_the_scale_of_levels():
    pairs, y, u = levels()
    model = MatrixCompletion(loss="ordered_probit", rank=1, max_iterations=6, random_state=0)
    model.fit(pairs, y, row_features=u)
    new = np.vstack((u, [[3.0]]))
    predicted = model.predict([(30, 0), (30, 99)], row_features=new)
    assert ((1 <= predicted) & (predicted <= 4)).all()
    np.testing.assert_allclose(predicted[1], y.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"loss": "huber"}, None, "loss must be 'squared' or 'ordered_probit'; got 'huber'"),
        ({"solver": "als"}, None, "is for solver='bayesian'; got ALS: leave the solver out"),
        ({"bias": None}, None, "fits additive biases; got bias=None"),
        ({}, 2.0, "takes no weights of ordered levels; got some"),
    ],
)
def test_what_levels_are_not_for_is_refused(settings, weights, message: str):
    pairs, y, _ = levels()
    settings = {"loss": "ordered_probit", "rank": 1} | settings
    given = None if weights is None else np.full(len(y), weights)
    with pytest.raises(OptionError, match=message):
        MatrixCompletion(**settings).fit(pairs, y, given)
