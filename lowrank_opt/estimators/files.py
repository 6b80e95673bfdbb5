"""Files of interactions: tables of three columns, and Matrix Market."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_opt.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import spmatrix

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def read_file(path: str | PathLike[str]) -> pd.DataFrame | spmatrix:
    """Read a table, or a sparse matrix.

    Parameters
    ----------
    path : path
        Ends in .csv or .tsv, with one line of names and perhaps compressed; in .parquet, which
        needs pyarrow or polars; or in .mtx, a Matrix Market file, perhaps compressed.

    Raises
    ------
    DataError
        If the ending is another one, or the file cannot be read.
    """
    file = Path(path)
    kind = _ending(file)
    if kind not in (*_SEPARATORS, ".parquet", ".mtx"):
        raise DataError(
            f"a file of interactions must end in .csv, .tsv, .parquet or .mtx; got {file.name!r}: "
            "read it yourself, and pass a frame"
        )
    try:
        return _read(file, kind)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"interactions must be readable; got {file.name!r}: {error}") from error


def _read(file: Path, kind: str) -> pd.DataFrame | spmatrix:
    if kind == ".mtx":
        from scipy.io import mmread

        return mmread(file)
    import pandas as pd

    if kind == ".parquet":
        return _read_parquet(file)
    return pd.read_csv(file, sep=_SEPARATORS[kind])


def _read_parquet(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(file)
    except ImportError:
        import polars

        try:
            frame = polars.read_parquet(file)
        except polars.exceptions.PolarsError as error:
            raise ValueError(str(error)) from error
        return pd.DataFrame({name: frame[name].to_numpy() for name in frame.columns})


def _ending(file: Path) -> str:
    suffixes = [x.lower() for x in file.suffixes]
    return next((x for x in reversed(suffixes) if x not in _COMPRESSED), "")
