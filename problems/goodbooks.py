"""Goodbooks: ratings of books from 1 to 5, read from a file that the user has.

The file is ``goodbooks/ratings.csv`` in the folder named by ``LOWRANK_OPT_DATA``. Its header names
the columns ``user_id``, ``book_id`` and ``rating``, in any order. Nothing is fetched.
"""

import os
from pathlib import Path

import numpy as np

from lowrank_opt.errors import DataError, ObservationError
from problems.ratings import Ratings

_COLUMNS = ("user_id", "book_id", "rating")


def load(*, path: str | os.PathLike[str] | None = None) -> Ratings:
    """Load all ratings; of a pair given more than once, the last in the file counts.

    Parameters
    ----------
    path : path, optional
        The CSV file; that in the folder of ``LOWRANK_OPT_DATA`` if left out.

    Returns
    -------
    Ratings
        In the order of the file. There are no times, so every `timestamp` is 0.

    Raises
    ------
    DataError
        If the file cannot be found or parsed.
    ObservationError
        If a rating is not one of 1, 2, 3, 4, 5.

    Examples
    --------
    >>> load().shape  # doctest: +SKIP
    (53424, 10000)
    """
    import pandas as pd

    file = _file(path)
    try:
        table = pd.read_csv(
            file, usecols=list(_COLUMNS), dtype={"user_id": "int64", "book_id": "int64"}
        ).drop_duplicates(["user_id", "book_id"], keep="last")
        rating = table["rating"].to_numpy(dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Goodbooks needs a CSV file with columns {', '.join(_COLUMNS)}; got {file} ({error}); "
            "check it"
        ) from error
    wrong = ~np.isin(rating, [1, 2, 3, 4, 5])
    if wrong.any():
        raise ObservationError(
            f"a rating must be one of 1, 2, 3, 4, 5; got {float(rating[wrong][0])!r} in {file}"
        )
    user, book = (table[name].to_numpy(dtype=np.int64) for name in _COLUMNS[:2])
    return Ratings.from_ids(user, book, rating, np.zeros(len(rating), dtype=np.int64))


def _file(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path)
    folder = os.environ.get("LOWRANK_OPT_DATA")
    if not folder:
        raise DataError("Goodbooks is not fetched; got no path: give one, or set LOWRANK_OPT_DATA")
    return Path(folder) / "goodbooks" / "ratings.csv"
