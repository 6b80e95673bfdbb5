"""Errors of predicted ratings, in float64 whatever comes in."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError

Values = Tensor | npt.ArrayLike


def rmse(predicted: Values, observed: Values) -> float:
    r"""Give the root of the mean squared error.

    Returns :math:`\sqrt{\tfrac1n \sum_i (x_i - y_i)^2}`, computed in float64.

    Parameters
    ----------
    predicted : Tensor or array, shape (n,)
        Or of any shape with at least one entry, on any device.
    observed : Tensor or array, shape of `predicted`
        Nothing is broadcast.

    Returns
    -------
    float
        NaN if an entry is NaN; no overflow in between if the result is a float64.

    Raises
    ------
    ShapeError
        If the shapes differ.
    ObservationError
        If there is no entry.

    Examples
    --------
    >>> rmse([3.0, 4.0], [0.0, 0.0])
    3.5355339059327378
    """
    e = _errors(predicted, observed)
    # Rescale by the largest error first: squaring 1e-200 underflows, 1e200 overflows.
    peak = float(e.max())
    if peak == 0.0 or not np.isfinite(peak):
        return peak
    return peak * float(np.sqrt(np.mean(np.square(e / peak))))


def mae(predicted: Values, observed: Values) -> float:
    r"""Give the mean absolute error.

    Returns :math:`\tfrac1n \sum_i |x_i - y_i|`, computed in float64.

    Parameters
    ----------
    predicted : Tensor or array, shape (n,)
        Or of any shape with at least one entry, on any device.
    observed : Tensor or array, shape of `predicted`
        Nothing is broadcast.

    Returns
    -------
    float
        NaN if an entry is NaN.

    Raises
    ------
    ShapeError
        If the shapes differ.
    ObservationError
        If there is no entry.

    Examples
    --------
    >>> mae([3.0, 4.0], [0.0, 0.0])
    3.5
    """
    return float(np.mean(_errors(predicted, observed)))


def _errors(predicted: Values, observed: Values) -> npt.NDArray[np.float64]:
    x, y = _to_float64(predicted), _to_float64(observed)
    if x.shape != y.shape:
        raise ShapeError(
            f"predicted and observed must have the same shape; got {x.shape} and {y.shape}; "
            "reshape one of them"
        )
    if x.size == 0:
        raise ObservationError("an error needs at least one entry; got none; check the test set")
    return np.abs(x - y)


def _to_float64(values: Values) -> npt.NDArray[np.float64]:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)
