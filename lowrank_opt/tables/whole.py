"""Files that are read at once, with the face of those that are read in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath

from lowrank_opt.errors import DataError
from lowrank_opt.tables.delimited import BadLines, Chunk
from lowrank_opt.tables.triplets import Triplets

_ROLES = ("rows", "columns", "values")
_CHUNK = 1 << 16


class WholeFile:
    """Ids and values that a function read, all of them.

    Parameters
    ----------
    read : callable
        From a path to `Triplets`.
    path : str or path
    texts, number, values, weight
        As in `DelimitedFile`. Columns have the names of the triplets, if there are any, and the
        positions 1, 2 and 3; there is no other column to ask for.

    Attributes
    ----------
    found : Triplets
    names, texts, number, weight, reading, bad, unterminated, header, shape
        As in `DelimitedFile`.

    Raises
    ------
    DataError
        If a column does not exist, or values are needed and there are none.
    """

    header: bool = False
    unterminated: bool = False
    weight: int | None = None

    def __init__(
        self,
        read: Callable[[str | PathLike[str]], Triplets],
        path: str | PathLike[str],
        texts: Sequence[str | int | None] = (None, None),
        number: str | int | None = None,
        *,
        values: bool | None = False,
        weight: str | int | None = None,
    ) -> None:
        self.path: str
        self.bad: BadLines
        self.found: Triplets
        self.path, self.bad, self.found = fspath(path), BadLines(), read(path)
        self.shape: tuple[int, int] | None = self.found.shape
        pair, has_values = self.found.names, self.found.values is not None
        self.names: list[str] | None = None if pair is None else [*pair]
        self._check_asked((*texts[:2], number))
        if weight is not None:
            raise DataError(f"a file of a matrix has no weights; got {weight!r} for {self.path!r}")
        if not has_values and (values or number is not None):
            raise DataError(f"a column of values is needed; {self.path!r} has none")
        taken = has_values and not (values is False and number is None)
        self.texts: list[int]
        self.texts, self.number = [0, 1], 2 if taken else None
        what = "triplets" if self.found.shape is None else "entries of a matrix, by position from 0"
        self.reading: str = what if pair is None else f"rows {pair[0]}, columns {pair[1]}"

    def chunks(self) -> Iterator[Chunk]:
        """Yield ids and values, in order.

        Raises
        ------
        DataError
            If there are weights besides the values, for which a chunk has no place.
        """
        found = self.found
        if self.number is not None and found.weights is not None:
            raise DataError(
                f"a file must have no weights here; {self.path!r} has some: read it with "
                "lowrank_opt.tables.read_triplets, and fit in Python"
            )
        for k in range(0, len(found), _CHUNK):
            part = slice(k, k + _CHUNK)
            numbers = None
            if self.number is not None and found.values is not None:
                numbers = found.values[part].astype(float)
            yield Chunk((found.rows[part].tolist(), found.cols[part].tolist()), numbers)

    def _check_asked(self, asked: Sequence[str | int | None]) -> None:
        for k, column in enumerate(asked):
            known = {str(k + 1)} | ({self.names[k]} if self.names and k < 2 else set())
            if column is not None and str(column) not in known:
                raise DataError(
                    f"a file that is read at once has rows, columns and values, in this order; got "
                    f"{column!r} for the {_ROLES[k]} of {self.path!r}: leave it out"
                )
