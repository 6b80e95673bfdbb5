"""Goodbooks: ratings of books from 1 to 5, read from a file that the user has.

The file is ``goodbooks/ratings.csv`` in the folder named by ``LOWRANK_OPT_DATA``. Its header names
the columns ``user_id``, ``book_id`` and ``rating``, in any order. Nothing is fetched.
"""

import os
from itertools import accumulate
from pathlib import Path

import numpy as np

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.tables.files import open_table
from problems._parse import whole_numbers
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
    With the data at hand::

        load().shape  # (53424, 10000)
    """
    file = _file(path)
    try:
        user, book, rating = _read(file)
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
    return Ratings.from_ids(user, book, rating, np.zeros(len(rating), dtype=np.int64))


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, books and ratings, the last of each pair, in the order of the file."""
    chunks = list(open_table(file, _COLUMNS[:2], _COLUMNS[2], header=True).chunks())
    firsts = list(accumulate(map(len, chunks), initial=2))
    user, book = (
        np.concatenate(
            [
                whole_numbers(chunk.texts[k], _COLUMNS[k], line, str(file))
                for chunk, line in zip(chunks, firsts, strict=False)
            ]
        )
        for k in (0, 1)
    )
    rating = np.concatenate([np.asarray(chunk.values) for chunk in chunks])
    pairs = np.stack((user, book), axis=1)[::-1]
    _, first = np.unique(pairs, axis=0, return_index=True)
    kept = np.sort(len(pairs) - 1 - first)
    return user[kept], book[kept], rating[kept]


def _file(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path)
    folder = os.environ.get("LOWRANK_OPT_DATA")
    if not folder:
        raise DataError("Goodbooks is not fetched; got no path: give one, or set LOWRANK_OPT_DATA")
    return Path(folder) / "goodbooks" / "ratings.csv"
