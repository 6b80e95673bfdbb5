"""Side tables of MovieLens: what is known of the items and of the users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_opt.errors import DataError
from problems._source import Source
from problems._variants import Variant

if TYPE_CHECKING:
    import pandas as pd

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
ITEM_FILES = {"ml-100k": "u.item", "ml-1m": "movies.dat"}
USER_FILES = {"ml-100k": "u.user", "ml-1m": "users.dat"}
USER_COLUMNS = {
    "ml-100k": ["user_id", "age", "gender", "occupation", "zip_code"],
    "ml-1m": ["user_id", "gender", "age", "occupation", "zip_code"],
}


def table_file(variant: Variant, files: dict[str, str]) -> str:
    """Name the file of a side table.

    Parameters
    ----------
    variant : Variant
        The data set.
    files : dict of str
        `ITEM_FILES` or `USER_FILES`.

    Returns
    -------
    str

    Raises
    ------
    DataError
        If this data set has no such table here.
    """
    if variant.name not in files:
        raise DataError(
            f"side tables are read for {' and '.join(files)}; got {variant.name!r}; "
            "read the CSV files of the archive directly"
        )
    return files[variant.name]


def read_items(source: Source, variant: Variant) -> pd.DataFrame:
    """Read titles, release dates and genres.

    Parameters
    ----------
    source : Source
        Place that has the file.
    variant : Variant
        ML-100K or ML-1M.

    Returns
    -------
    pandas.DataFrame
        Index `item_id`; columns `title`, `genres` (joined by ``|``), for ML-100K also
        `release_date` and `imdb_url`.

    Raises
    ------
    DataError
        If a line has another number of fields, or its id is no integer.
    """
    if variant.name == "ml-1m":
        return _frame(_rows(source, ITEM_FILES["ml-1m"], "::", 3), ["item_id", "title", "genres"])
    rows = [
        [number, title, date, url, _genres(flags)]
        for number, title, date, _, url, *flags in _rows(source, ITEM_FILES["ml-100k"], "|", 24)
    ]
    return _frame(rows, ["item_id", "title", "release_date", "imdb_url", "genres"])


def read_users(source: Source, variant: Variant) -> pd.DataFrame:
    """Read age, gender, occupation and zip code.

    Parameters
    ----------
    source : Source
        Place that has the file.
    variant : Variant
        ML-100K or ML-1M.

    Returns
    -------
    pandas.DataFrame
        Index `user_id`; columns `age`, `gender`, `occupation`, `zip_code`. ML-1M gives ages as
        the lower end of a bracket and occupations as the codes of its README.

    Raises
    ------
    DataError
        If a line has another number of fields, or its id or age is no integer.
    """
    separator = "|" if variant.name == "ml-100k" else "::"
    columns = USER_COLUMNS[variant.name]
    rows = _rows(source, USER_FILES[variant.name], separator, 5, columns.index("age"))
    frame = _frame(rows, columns).astype({"age": "int64"})
    return frame.reindex(columns=["age", "gender", "occupation", "zip_code"])


def _genres(flags: list[str]) -> str:
    return "|".join(genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")


def _rows(
    source: Source, name: str, separator: str, width: int, integer: int = 0
) -> list[list[str]]:
    """Split each line into fields, of which the first and `integer` must be whole numbers."""
    with source.open(name) as stream:
        # Not str.splitlines, which also splits at characters that a Latin-1 title may hold.
        lines = stream.read().decode("latin-1").replace("\r\n", "\n").removesuffix("\n").split("\n")
    rows = [line.split(separator) for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != width or not (row[0].isdecimal() and row[integer].isdecimal()):
            raise DataError(
                f"{source.describe(name)}, line {number}: must hold {width} fields separated by "
                f"{separator!r}, numbers 1 and {integer + 1} integers; got "
                f"{lines[number - 1][:80]!r}; fetch the file again"
            )
    return rows


def _frame(rows: list[list[str]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({columns[0]: "int64"}).set_index(columns[0])
