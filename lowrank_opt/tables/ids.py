"""Ids of any kind, and the positions they stand for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.arrays import as_array, mask_of, whole_numbers
from lowrank_opt.tables.id_text import check_lasting
from lowrank_opt.tables.same import DATES, keys_of, refuse_dates, refuse_equal

Ids: TypeAlias = NDArray[np.generic]
Positions: TypeAlias = NDArray[np.int64]

UNKNOWN = -1

_KINDS: dict[type, str] = {str: "text", int: "integers", bytes: "bytes", bool: "truth values"}


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """The ids of rows or of columns; the k-th stands for position k.

    Parameters
    ----------
    ids : array, shape (n,)
        Each once; integers, dates of NumPy, or objects: text, numbers, dates and times, UUIDs,
        paths, addresses, intervals, tuples of them.

    Raises
    ------
    ObservationError
        If an id is missing, repeated, or of another type.

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
        return self._find(as_ids(ids, name))

    def find(self, ids: Sequence[object] | Ids | Tensor, name: str = "ids") -> Positions:
        """Return positions, as `positions`, of ids that could be among these labels.

        Raises
        ------
        ObservationError
            If all ids are of a kind that no label is of, such as text where labels are integers:
            the same data were read in two ways.
        """
        asked = as_ids(ids, name)
        found = self._find(asked)
        if len(found) > 0 and len(self) > 0 and bool((found == UNKNOWN).all()):
            self._require_kind(asked, name)
        return found

    def extended(self, ids: Sequence[object] | Ids | Tensor, name: str = "ids") -> Labels:
        """Return labels with the unknown ones among `ids` behind the old ones."""
        new = as_ids(ids, name)
        new = _factorize(new[self.positions(new, name) == UNKNOWN])[0]
        if len(new) == 0:
            return self
        if self.ids.dtype == new.dtype and new.dtype.kind in "imM":
            return Labels._trusted(np.concatenate((self.ids, new)))
        return Labels._trusted(_object_array([*_items(self.ids), *_items(new)]))

    def to_ids(self) -> list[Hashable]:
        """Return the ids one by one; dates of NumPy stay what they are."""
        return _items(self.ids)

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

    def _find(self, asked: Ids) -> Positions:
        if self._order is None or asked.dtype.kind != "i":
            return _look_up(self._table, asked)
        order, ordered = self._order
        if len(ordered) == 0:
            return np.full(len(asked), UNKNOWN)
        k = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
        return np.where(ordered[k] == asked, order[k], UNKNOWN)

    def _require_kind(self, asked: Ids, name: str) -> None:
        ours, theirs = self._kinds, _kinds(asked)
        if ours & theirs:
            return
        raise ObservationError(
            f"{name} must be {_spoken(ours)}, as they were fitted; got {_spoken(theirs)}, such as "
            f"{_items(asked[:1])[0]!r}: convert them, or fit again with ids of that kind"
        )

    @cached_property
    def _order(self) -> tuple[Positions, Ids] | None:
        if self.ids.dtype.kind != "i":
            return None
        order = np.argsort(self.ids, kind="stable")
        return order, self.ids[order]

    @cached_property
    def _table(self) -> dict[object, int]:
        return {x: k for k, x in enumerate(keys_of(_items(self.ids)))}

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return _kinds(self.ids)


def as_ids(ids: Sequence[object] | Ids | Tensor, name: str) -> Ids:
    """Return ids as a vector of int64, of dates of NumPy, or of objects.

    Ids keep type and value, in files too: 7, "7" and "007" are three. Whole floats are integers,
    which is what they were before a frame or an array with gaps had made them floats.

    Raises
    ------
    ObservationError
        If an id is missing, a number that is not whole, one that its dtype has merged with
        others, or of a type that files do not give back.
    ShapeError
        If there is more than one axis.
    """
    x = _plain(ids)
    if x.ndim != 1:
        raise ShapeError(f"{name} must be a vector; got shape {x.shape}")
    mask = mask_of(x)
    if mask is not None:
        raise _missing(mask, name)
    x = np.asarray(x)
    match x.dtype.kind:
        case "i" | "u":
            return _as_integers(x)
        case "f":
            return whole_numbers(x, name)
        case "m" | "M":
            _refuse_missing(np.isnat(x), name)
            if np.datetime_data(x.dtype)[0] == "generic":
                raise ObservationError(
                    f"{name} must say what they count; got {x.dtype} without a unit: give it one, "
                    "as with x.astype('m8[s]'), or pass integers"
                )
            return x
        case "c" | "V":
            raise ObservationError(
                f"{name} must be integers, strings or other labels; got {x.dtype}"
            )
        case "U" | "S":
            return x.astype(object)
        case _:
            return _from_objects(x.tolist(), name)


def single_id(ids: object) -> bool:
    """Whether something is one id rather than a sequence of them: text, a number, a date."""
    if isinstance(ids, str | bytes) or np.isscalar(ids):
        return True
    # Arrays of the array API have axes, but no length.
    return not (hasattr(ids, "__len__") or getattr(ids, "ndim", 0) > 0)


def _from_objects(items: list[Any], name: str) -> Ids:
    distinct = _distinct(items, name)
    # Each distinct id is looked at once.
    if any(map(_is_missing, distinct)):
        _refuse_missing(np.array([_is_missing(v) for v in items]), name)
    kinds = set(map(type, items))
    if any(issubclass(kind, np.generic) for kind in kinds):
        items = [v.item() if _is_plain_scalar(v) else v for v in items]
        kinds = set(map(type, items))
    if float in kinds:
        items = [_whole(v, k, name) if type(v) is float else v for k, v in enumerate(items)]
        kinds = set(map(type, items))
    if not kinds <= _KINDS.keys():
        check_lasting(_distinct(items, name), name)
    refuse_equal(items, kinds, name)
    return _integers(items) if kinds == {int} else _object_array(items)


def _whole(value: float, position: int, name: str) -> int:
    try:
        return int(whole_numbers(np.array([value]), name)[0])
    except ObservationError as error:
        raise ObservationError(str(error).replace("position 0", f"position {position}")) from None


def _is_plain_scalar(value: object) -> bool:
    return isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64)


def _missing(mask: NDArray[np.bool_], name: str) -> ObservationError:
    return ObservationError(
        f"{name} must not be missing; got {int(mask.sum())} of {mask.size} missing, the first at "
        f"position {int(mask.argmax())}: drop those lines"
    )


def _refuse_missing(mask: NDArray[np.bool_], name: str) -> None:
    if mask.any():
        raise _missing(mask, name)


def _distinct(items: list[Any], name: str = "ids") -> dict[Any, None]:
    try:
        return dict.fromkeys(items)
    except (TypeError, ValueError, OverflowError) as error:
        raise ObservationError(f"{name} must be hashable; got one that is not: {error}") from error


def _plain(ids: Sequence[object] | Ids | Tensor) -> NDArray[Any]:
    if isinstance(ids, Tensor | np.ndarray) or hasattr(ids, "to_numpy"):
        return as_array(ids)
    if hasattr(ids, "__array__") or hasattr(ids, "__dlpack__"):
        return as_array(ids)
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ObservationError(f"ids must be a sequence of them; got {ids!r}: pass [{ids!r}]")
    items = list(ids)
    if any(isinstance(x, list | np.ndarray) for x in items):
        # A matrix, whose shape the caller names; lists are no ids in any case.
        try:
            return np.asarray(items)
        except ValueError:
            return _object_array(items)
    # An array of NumPy would cut trailing zeros off text, and make one kind out of 5 and "5".
    return _object_array(items)


def _integers(items: list[Any]) -> Ids:
    try:
        return np.array(items, dtype=np.int64)
    except OverflowError:
        return _object_array(items)


def _object_array(items: list[Any]) -> Ids:
    array = np.empty(len(items), dtype=object)
    for k, item in enumerate(items):
        array[k] = item
    return array


def _as_integers(x: NDArray[np.integer]) -> Ids:
    too_large = x.dtype.kind == "u" and len(x) > 0 and int(x.max()) > np.iinfo(np.int64).max
    return x.astype(object) if too_large else x.astype(np.int64, copy=False)


def _is_missing(value: object) -> bool:
    # pandas.NA is not even comparable with itself.
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def _items(ids: Ids) -> list[Any]:
    """Return ids one by one; dates stay those of NumPy, which `tolist` makes integers of."""
    return list(ids) if ids.dtype.kind in "mM" else ids.tolist()


def _kinds(ids: Ids) -> frozenset[str]:
    if ids.dtype.kind == "i":
        return frozenset({"integers"})
    if ids.dtype.kind in "mM":
        return frozenset({"dates"})
    types = {type(x) for x in ids.tolist()}
    return frozenset(
        "dates" if issubclass(t, DATES) else _KINDS.get(t, f"objects of {t.__name__}")
        for t in types
    )


def _spoken(kinds: frozenset[str]) -> str:
    return " and ".join(sorted(kinds))


def _factorize(ids: Ids) -> tuple[Ids, Positions]:
    if ids.dtype.kind == "i":
        return _factorize_integers(ids.astype(np.int64, copy=False))
    if ids.dtype.kind in "mM":
        unique, positions = np.unique(ids, return_inverse=True)
        return unique, positions.reshape(-1).astype(np.int64)
    items = ids.tolist()
    keys = keys_of(items)
    table = {key: k for k, key in enumerate(_distinct(keys))}
    positions = np.fromiter(map(table.__getitem__, keys), np.int64, len(items))
    if keys is items:
        return _object_array(list(table)), positions
    first = dict(zip(reversed(keys), reversed(items), strict=True))
    refuse_dates(first, items, keys)
    return _object_array([first[key] for key in table]), positions


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
    items = _items(ids)
    _distinct(items)
    return np.fromiter(map(table.get, keys_of(items), repeat(UNKNOWN)), np.int64, len(items))
