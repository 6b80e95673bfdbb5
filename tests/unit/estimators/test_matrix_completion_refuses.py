"""What MatrixCompletion refuses, and scikit-learn's own checks of it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.utils import estimator_checks as checks

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.estimators import MatrixCompletion
from tests.unit.estimators.cases import quick, ratings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a positive integer, or None; got rank=0"),
        ({"rank": 1.5}, "rank must be a positive integer"),
        ({"radius": -1.0}, "radius must be positive, or None; got radius=-1.0"),
        ({"penalty": float("nan")}, "penalty must be positive"),
        ({"bias": "yes"}, "bias must be 'additive' or None; got bias='yes'"),
        ({"validation": 1.0}, r"validation must be a share in \(0, 1\)"),
        ({"shape": (3,)}, "shape must be two positive integers"),
        ({"clip": (2, 1)}, r"clip must be 'auto', None or \(smallest, largest\)"),
        ({"solver": "magic"}, "solver must be 'lbfgs', .*; got solver='magic'"),
        ({"solver": "variational", "penalty": 2.0}, r"got \['penalty'\] too"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str):
    with pytest.raises(OptionError, match=message):
        MatrixCompletion(**options).fit(*ratings())


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (np.zeros((5, 1), int), np.ones(5), ShapeError, "2 columns, row and column id; got"),
        (np.zeros((5, 4), int), np.ones(5), ShapeError, "of 4 feature"),
        (np.zeros(5, int), np.ones(5), ShapeError, "shape \\(n, 2\\); got shape \\(5,\\)"),
        (np.zeros((5, 2), int), np.ones(4), ShapeError, "one length; got pairs 5, y 4"),
        (np.zeros((2, 2), int), [1.0, np.nan], ObservationError, "y must be finite; got 1 of 2"),
        (np.zeros((2, 2), int), ["a", "b"], ObservationError, "y must be real numbers"),
        (np.zeros((0, 2), int), [], ObservationError, "at least one entry"),
        (np.zeros((2, 2), int), None, ObservationError, "values are needed"),
        ([("a", None), ("b", "c")], [1, 2], ObservationError, "cols must not be missing"),
    ],
)
def test_broken_inputs_are_refused(X: object, y: object, error: type, message: str):
    with pytest.raises(error, match=message):
        quick().fit(X, y)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, -1.0], "nonnegative; got -1.0 at position 1"), ([0.0, 0.0], "must be positive")],
)
def test_broken_weights_are_refused(weights: list[float], message: str):
    with pytest.raises(ObservationError, match=message):
        quick().fit([(0, 0), (1, 1)], [1.0, 2.0], sample_weight=weights)


def test_ids_beyond_the_shape_are_refused():
    with pytest.raises(ObservationError, match=r"positions in 0..2; got 5 at position 0"):
        quick(shape=(3, 3)).fit([(5, 0), (1, 1)], [1.0, 2.0])


def test_swapped_columns_are_refused():
    pairs, y = ratings()
    frame = pd.DataFrame(pairs, columns=["user", "item"])
    with pytest.raises(ValueError, match="could mean the order or the names"):
        quick().fit(frame, y).predict(frame[["item", "user"]])
    other = frame.set_axis(["number", "volume"], axis=1)
    with pytest.raises(ValueError, match="feature names should match"):
        quick().fit(other, y).predict(other[["volume", "number"]])


def test_unfitted_is_an_error():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        MatrixCompletion().predict([(0, 0)])


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator_asks_nothing_that_fails():
    checks.check_estimator(MatrixCompletion(), on_skip=None)


# With pairs as input, scikit-learn asks nothing by itself: these need no feature matrix.
@pytest.mark.parametrize(
    "check",
    [
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_get_params_invariance,
        checks.check_no_attributes_set_in_init,
        checks.check_parameters_default_constructible,
        checks.check_set_params,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_mixin_order,
    ],
)
def test_scikit_learn_check(check: object):
    check("MatrixCompletion", MatrixCompletion())
