"""Errors of predicted ratings, and of ranked lists, in float64 whatever comes in."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.observations import Observations

Values = Tensor | npt.ArrayLike
Floats = npt.NDArray[np.float64]


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


def psnr(predicted: Values, observed: Values, *, peak: float = 1.0) -> float:
    r"""Give the peak signal-to-noise ratio in decibels.

    Returns :math:`20 \log_{10}(\text{peak} / \mathrm{rmse})`, computed in float64.

    Parameters
    ----------
    predicted, observed
        As in `rmse`.
    peak : float
        Largest value of a pixel; positive and finite.

    Returns
    -------
    float
        Infinite if nothing differs; NaN if an entry is NaN.

    Raises
    ------
    ShapeError, ObservationError
        As `rmse`.
    OptionError
        If `peak` is not positive and finite.

    Examples
    --------
    >>> psnr([0.1, 0.9], [0.0, 1.0])
    20.0
    """
    if not 0.0 < peak < math.inf:
        raise OptionError(f"peak must be positive and finite; got {peak!r}; 1 or 255 are usual")
    error = rmse(predicted, observed)
    return math.inf if error == 0.0 else 20.0 * float(np.log10(peak) - np.log10(error))


def ndcg_at_k(ranked: Values, held_out: Observations, k: int) -> float:
    r"""Give the mean normalised discounted cumulative gain of the first k places.

    :math:`\sum_{t=1}^k g_t / \log_2(t + 1)`, divided by what the best order of the row's held-out
    entries would give; the gain :math:`g_t` is the held-out value of the t-th place, zero where
    there is none.

    Parameters
    ----------
    ranked : Tensor or array of int, shape (m, K)
        Columns by rank, best first, for each row; negative for an empty place. K may be less than
        k: the places that lack are empty.
    held_out : Observations, shape (m, n)
        Nonnegative values.
    k : int

    Returns
    -------
    float
        Mean over the rows with a positive held-out value.

    Raises
    ------
    ShapeError
        If there is not one list for each row.
    ObservationError
        If a value is negative, no row counts, or a column comes twice in a list.
    OptionError
        If k is not a positive integer.

    References
    ----------
    Jarvelin and Kekalainen (2002), Cumulated gain-based evaluation of IR techniques, section 2.

    Examples
    --------
    >>> held_out = Observations([0, 0], [3, 1], [1.0, 3.0], (1, 4))
    >>> ndcg_at_k([[1, 3, 0]], held_out, k=2), round(ndcg_at_k([[3, 1, 0]], held_out, k=2), 4)
    (1.0, 0.7967)
    """
    gains = held_out.values.double().cpu().numpy()
    if (gains < 0).any():
        raise ObservationError(
            f"gains must be nonnegative; got {float(gains.min())!r}: subtract the smallest value"
        )
    found = _gains(ranked, held_out, gains, k)
    discounts = 1 / np.log2(np.arange(k) + 2)
    best = _top(held_out, gains, k) @ discounts
    return _mean_over(best > 0, found @ discounts, best)


def recall_at_k(
    ranked: Values, held_out: Observations, k: int, *, relevant: float = -math.inf
) -> float:
    """Give the mean share of a row's relevant entries that are among the first k places.

    Parameters
    ----------
    ranked, held_out, k
        As in `ndcg_at_k`.
    relevant : float
        An entry is relevant if its value is at least that.

    Returns
    -------
    float
        Mean over the rows with a relevant entry.

    Raises
    ------
    ShapeError, ObservationError, OptionError
        As `ndcg_at_k`.

    Examples
    --------
    >>> held_out = Observations([0, 0], [3, 1], [1.0, 3.0], (1, 4))
    >>> recall_at_k([[3, 0]], held_out, k=2), recall_at_k([[3, 0]], held_out, k=2, relevant=2.0)
    (0.5, 0.0)
    """
    hits, counts = _hits(ranked, held_out, k, relevant)
    return _mean_over(counts > 0, hits.sum(1), counts)


def map_at_k(
    ranked: Values, held_out: Observations, k: int, *, relevant: float = -math.inf
) -> float:
    r"""Give the mean over rows of the average precision of the first k places.

    The sum over relevant places t of the share of relevant ones among the first t, divided by the
    smaller of k and the number of relevant entries.

    Parameters
    ----------
    ranked, held_out, k, relevant
        As in `recall_at_k`.

    Returns
    -------
    float
        Mean over the rows with a relevant entry.

    Raises
    ------
    ShapeError, ObservationError, OptionError
        As `ndcg_at_k`.

    Examples
    --------
    >>> held_out = Observations([0, 0], [3, 1], [1.0, 3.0], (1, 4))
    >>> map_at_k([[3, 0, 1]], held_out, k=3)
    0.8333333333333333
    """
    hits, counts = _hits(ranked, held_out, k, relevant)
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return _mean_over(counts > 0, (precision * hits).sum(1), np.minimum(counts, k))


def _hits(ranked: Values, held_out: Observations, k: int, relevant: float) -> tuple[Floats, Floats]:
    """Return ones at relevant places, shape (m, k), and the number of relevant entries."""
    ones = (held_out.values.double().cpu().numpy() >= relevant).astype(np.float64)
    counts = np.bincount(held_out.rows.cpu().numpy(), weights=ones, minlength=held_out.shape[0])
    return _gains(ranked, held_out, ones, k), counts.astype(np.float64)


def _gains(ranked: Values, held_out: Observations, gains: Floats, k: int) -> Floats:
    """Return the gain at each of the first k places, shape (m, k)."""
    lists, n = _lists(ranked, held_out, k), held_out.shape[1]
    keys = held_out.rows.cpu().numpy() * n + held_out.cols.cpu().numpy()
    order = np.argsort(keys)
    asked = np.arange(len(lists))[:, None] * n + lists
    place = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    there = (keys[order][place] == asked) & (lists >= 0)
    found = np.zeros((len(lists), k))
    found[:, : lists.shape[1]] = np.where(there, gains[order][place], 0.0)
    return found


def _lists(ranked: Values, held_out: Observations, k: int) -> npt.NDArray[np.int64]:
    lists = np.asarray(ranked.cpu() if isinstance(ranked, Tensor) else ranked)
    if int(k) != k or k < 1:
        raise OptionError(f"k must be a positive integer; got k={k!r}")
    if lists.ndim != 2 or len(lists) != held_out.shape[0] or lists.dtype.kind not in "iu":
        raise ShapeError(
            f"ranked must be integers of shape ({held_out.shape[0]}, K), a list for each row; got "
            f"{lists.dtype} of shape {lists.shape}"
        )
    lists = lists[:, :k].astype(np.int64)
    ordered = np.sort(lists, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ObservationError("a column must come once in each list; got one that comes twice")
    return lists


def _top(held_out: Observations, gains: Floats, k: int) -> Floats:
    """Return the k largest gains of each row, decreasing and filled up with zeros."""
    rows = held_out.rows.cpu().numpy()
    order = np.lexsort((-gains, rows))
    first = np.searchsorted(rows[order], rows[order])
    place = np.arange(len(rows)) - first
    top = np.zeros((held_out.shape[0], k))
    kept = place < k
    top[rows[order][kept], place[kept]] = gains[order][kept]
    return top


def _mean_over(counted: npt.NDArray[np.bool_], reached: Floats, best: Floats) -> float:
    if not counted.any():
        raise ObservationError("a row at least must have a relevant entry; got none")
    return float(np.mean(reached[counted] / best[counted]))


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
