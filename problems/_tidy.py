"""From a place that holds a data set to checked, tidy ratings."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowrank_opt.errors import DataError, ObservationError
from problems._parse import read_ratings
from problems._source import Needs, Source
from problems._variants import FOLD_SIZE, U_DATA, RatingsFile, Variant
from problems.ratings import Ratings


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one file and the place they come from.

    Attributes
    ----------
    rows : structured array, shape (n,)
        As `read_ratings` gives them.
    where : str
        Name of the file for messages.
    first_line : int
        Number of the line of the first row.
    """

    rows: npt.NDArray[np.void]
    where: str
    first_line: int


def ratings_needs(variant: Variant) -> Needs:
    """Give the files that hold all ratings of a data set, for `find_source`."""
    return tuple((file.name,) for file in variant.files)


def read_all(source: Source, variant: Variant, *, allow_partial: bool) -> Ratings:
    """Read all ratings of a data set from a source that has them.

    Parameters
    ----------
    source : Source
        Has one of the files of `ratings_needs`.
    variant : Variant
        The data set.
    allow_partial : bool
        Accept another number of ratings than published.

    Returns
    -------
    Ratings
        In the order of the file.

    Raises
    ------
    DataError
        If the file is damaged or, unless `allow_partial`, not complete.
    ObservationError
        If a value is invalid or an entry is rated twice.
    """
    file = next(file for file in variant.files if source.has((file.name,)))
    table = _read(source, file, variant)
    if not allow_partial:
        _check_count([table], variant)
    return _join([table])


def read_split(source: Source, variant: Variant, name: str) -> tuple[Ratings, Ratings]:
    """Read an official split from its two files.

    Parameters
    ----------
    source : Source
        Has the files of `split_files`.
    variant : Variant
        ML-100K.
    name : str
        ``"u1"`` .. ``"u5"``, ``"ua"``, ``"ub"``.

    Returns
    -------
    train, test : Ratings
        In the order of the files, numbered together.

    Raises
    ------
    DataError
        If a file is damaged, or the two do not hold all ratings.
    ObservationError
        If a value is invalid or an entry is rated twice, in one file or in both.
    """
    files = [RatingsFile(file, U_DATA.separator) for file in split_files(name)]
    tables = [_read(source, file, variant) for file in files]
    _check_count(tables, variant)
    both = _join(tables)
    position, border = np.arange(len(both)), len(tables[0].rows)
    return both.take(position[:border]), both.take(position[border:])


def split_files(name: str) -> tuple[str, str]:
    """Name the training and the test file of an official split."""
    return f"{name}.base", f"{name}.test"


def rebuild_fold(ratings: Ratings, number: int) -> tuple[Ratings, Ratings]:
    """Cut official fold 1 .. 5 of ML-100K out of all ratings.

    Fold k tests on lines 20000 (k - 1) + 1 .. 20000 k of ``u.data``; both parts are sorted by
    user, then by item, as in the official files.

    Parameters
    ----------
    ratings : Ratings
        All of ML-100K, in the order of ``u.data``.
    number : int
        From 1 to 5.

    Returns
    -------
    train, test : Ratings
        With the numbering of `ratings`.
    """
    tested = np.arange(len(ratings)) // FOLD_SIZE == number - 1
    order = np.lexsort((ratings.item, ratings.user))
    return ratings.take(order[~tested[order]]), ratings.take(order[tested[order]])


def _read(source: Source, file: RatingsFile, variant: Variant) -> Table:
    where = source.describe(file.name)
    with source.open(file.name) as stream:
        rows = read_ratings(stream, file, scale=variant.scale, where=where)
    return Table(rows, where, file.first_line)


def _check_count(tables: list[Table], variant: Variant) -> None:
    count = sum(len(table.rows) for table in tables)
    if variant.count not in (None, count):
        where = " with ".join(table.where for table in tables)
        raise DataError(
            f"{where} must hold the {variant.count} ratings of {variant.name}; got {count}; fetch "
            "it again or, to read a part on purpose, call load with allow_partial=True"
        )


def _join(tables: list[Table]) -> Ratings:
    rows = np.concatenate([table.rows for table in tables])
    ratings = Ratings.from_ids(rows["user"], rows["item"], rows["rating"], rows["timestamp"])
    repeated = ratings.first_duplicate()
    if repeated is None:
        return ratings
    first, second = (_place(position, tables) for position in repeated)
    user, item = rows["user"][repeated[0]], rows["item"][repeated[0]]
    raise ObservationError(
        f"{second}: each user rates an item once; got user {user}, item {item} again after "
        f"{first}; remove one of the two lines"
    )


def _place(position: int, tables: list[Table]) -> str:
    starts = list(itertools.accumulate((len(table.rows) for table in tables[:-1]), initial=0))
    start, table = max(
        (pair for pair in zip(starts, tables, strict=True) if pair[0] <= position),
        key=lambda pair: pair[0],
    )
    return f"{table.where}, line {table.first_line + position - start}"
