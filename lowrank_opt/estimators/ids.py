"""Ids of any kind, and the positions they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError

Ids: TypeAlias = NDArray[np.generic]
Positions: TypeAlias = NDArray[np.int64]

UNKNOWN = -1


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """The ids of rows or of columns; the k-th stands for position k.

    Parameters
    ----------
    ids : array, shape (n,)
        Each once; integers, or objects of any hashable kind.

    Raises
    ------
    ObservationError
        If an id is missing, repeated, or not hashable.

    Examples
    --------
    >>> labels, positions = Labels.of(["ann", "bob", "ann"])
    >>> positions, labels.positions(["bob", "eve"])
    (array([0, 1, 0]), array([ 1, -1]))
    >>> labels[[1, 0]].tolist(), len(labels)
    (['bob', 'ann'], 2)
    """

    ids: Ids

    def __post_init__(self) -> None:
        unique, _ = _factorize(as_ids(self.ids, "ids"))
        if len(unique) != len(self.ids):
            repeated = len(self.ids) - len(unique)
            raise ObservationError(f"each id must come once; got {repeated} again: use Labels.of")

    @classmethod
    def of(
        cls, ids: Sequence[object] | Ids | Tensor, name: str = "ids"
    ) -> tuple[Labels, Positions]:
        """Return the distinct ids, integers ascending and others as they came, and positions."""
        unique, positions = _factorize(as_ids(ids, name))
        return cls._trusted(unique), positions

    @classmethod
    def range(cls, size: int) -> Labels:
        """Return labels that are the positions themselves."""
        return cls._trusted(np.arange(size))

    @classmethod
    def _trusted(cls, ids: Ids) -> Labels:
        labels = cls.__new__(cls)
        object.__setattr__(labels, "ids", ids)
        return labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, positions: Sequence[int] | Positions) -> Ids:
        return self.ids[np.asarray(positions, dtype=np.int64)]

    def __repr__(self) -> str:
        return f"Labels({len(self)} ids, {self.ids.dtype})"

    def positions(self, ids: Sequence[object] | Ids | Tensor, name: str = "ids") -> Positions:
        """Return the position of each id, -1 for those that are not among these labels."""
        asked = as_ids(ids, name)
        if self._order is None or asked.dtype.kind != "i":
            return _look_up(self._table, asked)
        order, ordered = self._order
        if len(ordered) == 0:
            return np.full(len(asked), UNKNOWN)
        k = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
        return np.where(ordered[k] == asked, order[k], UNKNOWN)

    def extended(self, ids: Sequence[object] | Ids | Tensor) -> Labels:
        """Return labels with the unknown ones among `ids` behind the old ones."""
        new = as_ids(ids, "ids")
        new = _factorize(new[self.positions(new) == UNKNOWN])[0]
        if len(new) == 0:
            return self
        if self.ids.dtype.kind == new.dtype.kind == "i":
            return Labels._trusted(np.concatenate((self.ids, new)))
        return Labels._trusted(_object_array([*self.ids.tolist(), *new.tolist()]))

    def to_list(self) -> list[int] | list[str]:
        """Return the ids for a JSON file.

        Raises
        ------
        ObservationError
            If they are neither all integers nor all strings.
        """
        ids = self.ids.tolist()
        if not any(all(type(x) is kind for x in ids) for kind in (int, str)):
            raise ObservationError(
                "ids in a file must be all integers or all strings; got others: convert them with "
                "str before fit"
            )
        return ids

    @classmethod
    def from_list(cls, ids: list[int] | list[str]) -> Labels:
        """Return what `to_list` came from."""
        return cls(as_ids(ids, "ids"))

    @cached_property
    def _order(self) -> tuple[Positions, Ids] | None:
        if self.ids.dtype.kind != "i":
            return None
        order = np.argsort(self.ids, kind="stable")
        return order, self.ids[order]

    @cached_property
    def _table(self) -> dict[object, int]:
        return {x: k for k, x in enumerate(self.ids.tolist())}


def as_ids(ids: Sequence[object] | Ids | Tensor, name: str) -> Ids:
    """Return ids as a vector of int64, or of objects.

    Raises
    ------
    ObservationError
        If an id is missing, or a number that is not whole.
    ShapeError
        If there is more than one axis.
    """
    x: NDArray[Any] = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else _plain(ids)
    if x.ndim != 1:
        raise ShapeError(f"{name} must be a vector; got shape {x.shape}")
    if x.dtype.kind in "iub":
        return _as_integers(x)
    if x.dtype.kind == "f":
        return _as_integers(_whole(x, name))
    if x.dtype.kind in "US":
        return x.astype(object)
    items = x.tolist()
    _check_present(items, name)
    whole = bool(items) and all(issubclass(t, int | np.integer) for t in set(map(type, items)))
    return _integers([int(v) for v in items]) if whole else _object_array(items)


def _check_present(items: list[Any], name: str) -> None:
    # Each distinct id is looked at once.
    if not any(map(_is_missing, _distinct(items))):
        return
    missing = [_is_missing(v) for v in items]
    raise ObservationError(
        f"{name} must not be missing; got {sum(missing)} of {len(items)} missing, the first at "
        f"position {missing.index(True)}: drop those lines"
    )


def _distinct(items: list[Any]) -> dict[Any, None]:
    try:
        return dict.fromkeys(items)
    except TypeError as error:
        raise ObservationError(f"ids must be hashable; got one that is not: {error}") from error


def _plain(ids: Sequence[object] | Ids) -> NDArray[Any]:
    if isinstance(ids, np.ndarray):
        return ids
    if hasattr(ids, "to_numpy"):  # a column of a frame, of pandas or polars
        return np.asarray(ids)
    items = list(ids)
    kinds = {type(x) for x in items}
    if kinds == {int}:
        return _integers(items)
    # A mixed list would become one of strings: 5 and "5" are two ids.
    alike = kinds <= {str} or kinds <= {int, float}
    return np.asarray(items) if alike else _object_array(items)


def _integers(items: list[object]) -> Ids:
    try:
        return np.array(items, dtype=np.int64)
    except OverflowError:
        return _object_array(items)


def _object_array(items: list[object]) -> Ids:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _as_integers(x: NDArray[np.integer]) -> Ids:
    too_large = x.dtype.kind == "u" and len(x) > 0 and int(x.max()) > np.iinfo(np.int64).max
    return x.astype(object) if too_large else x.astype(np.int64)


def _whole(x: NDArray[np.floating], name: str) -> NDArray[np.int64]:
    bad = ~(np.isfinite(x) & (x == np.round(x)) & (np.abs(x) < 2**63))
    if bad.any():
        k = int(bad.argmax())
        raise ObservationError(
            f"{name} must be integers, strings or other labels; got {int(bad.sum())} of {len(x)} "
            f"numbers that are missing or not whole, the first {float(x[k])!r} at position {k}"
        )
    return x.astype(np.int64)


def _is_missing(value: object) -> bool:
    # pandas.NA is not even comparable with itself.
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def _factorize(ids: Ids) -> tuple[Ids, Positions]:
    if ids.dtype.kind == "i":
        return _factorize_integers(ids.astype(np.int64, copy=False))
    items = ids.tolist()
    table = {x: k for k, x in enumerate(_distinct(items))}
    positions = np.fromiter(map(table.__getitem__, items), np.int64, len(items))
    return _object_array(list(table)), positions


def _factorize_integers(ids: Positions) -> tuple[Ids, Positions]:
    dense = len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) <= 4 * len(ids)
    if not dense:
        unique, positions = np.unique(ids, return_inverse=True)
        return unique, positions.reshape(-1).astype(np.int64)
    # A table of what is there is faster than sorting.
    there = np.zeros(int(ids.max()) + 1, bool)
    there[ids] = True
    return there.nonzero()[0], (np.cumsum(there) - 1)[ids]


def _look_up(table: dict[object, int], ids: Ids) -> Positions:
    items = ids.tolist()
    _distinct(items)
    return np.fromiter(map(table.get, items, repeat(UNKNOWN)), np.int64, len(items))
