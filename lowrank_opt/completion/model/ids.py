"""Names of rows and columns: where they are, and how they are kept in tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.id_text import check_lasting, id_from_json, id_to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind: TypeAlias = Literal["int", "text", "json"]
Ids: TypeAlias = Sequence[str] | Sequence[int] | Sequence[Hashable]


def check_ids(ids: Ids, size: int, name: str) -> None:
    """Raise unless there are `size` distinct ids.

    Raises
    ------
    ShapeError
        If their number is another one.
    ObservationError
        If one is missing, not hashable, comes twice, or would not come back from a file.
    """
    if len(ids) != size:
        raise ShapeError(f"{name} must name each of {size}; got {len(ids)} names")
    try:
        distinct = set(ids)
    except TypeError as error:
        raise ObservationError(f"{name} must be hashable; got one that is not: {error}") from error
    if len(distinct) != size:
        raise ObservationError(f"{name} must be distinct; got {size - len(distinct)} repetitions")
    # A missing id is none: NaN is not even equal to itself.
    if any(x is None or x != x for x in distinct):
        raise ObservationError(f"{name} must not be missing; got a missing one: name each row")
    check_lasting(distinct, name)


class Lookup:
    """Positions of names, by a dictionary built once.

    Parameters
    ----------
    ids : sequence

    Examples
    --------
    >>> Lookup(["ann", "bob"]).positions(["bob", "eve"]).tolist()
    [1, -1]
    """

    def __init__(self, ids: Ids) -> None:
        self.position: dict[Hashable, int] = {x: k for k, x in enumerate(ids)}

    def positions(self, names: Iterable[Hashable]) -> NDArray[np.int64]:
        """Return the position of each name, -1 for an unknown one."""
        get = self.position.get
        return np.fromiter((get(x, -1) for x in names), dtype=np.int64)


def kind_of(ids: Ids) -> Kind:
    """Return in which form ids are kept: the first of "int", "text" and "json" that has them all.

    Examples
    --------
    >>> kind_of([1, 2]), kind_of(["a", "b"]), kind_of([1, "a"])
    ('int', 'text', 'json')
    """
    kinds = set(map(type, ids))
    if kinds <= {int} and all(-(2**63) <= x < 2**63 for x in ids):  # pyright: ignore[reportOperatorIssue]
        return "int"
    return "text" if kinds == {str} else "json"


def to_tensors(ids: Ids, name: str, kind: Kind | None = None) -> dict[str, Tensor]:
    """Return integers as int64; others as bytes, and where each one ends.

    Text is kept as UTF-8, anything else as JSON that says of which type it is.

    Parameters
    ----------
    ids : sequence
    name : str
    kind : {"int", "text", "json"}, optional
        That of these ids by default.

    Raises
    ------
    DataError
        If an id is of a type that has no such form.
    """
    kind = kind_of(ids) if kind is None else kind
    if kind == "int":
        return {name: torch.tensor(list(ids), dtype=torch.int64)}
    if kind == "text":
        # An id with half of a surrogate pair, from a file name say, is no valid UTF-8 but comes
        # back.
        encoded = [str(x).encode("utf-8", "surrogatepass") for x in ids]
        return _packed(encoded, name, "ends")
    return _packed([id_to_json(x, name).encode() for x in ids], name, "json_ends")


def from_tensors(tensors: dict[str, Tensor], name: str) -> tuple[Hashable, ...] | None:
    """Take the ids of that name out of the tensors; None if there are none.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    if name not in tensors:
        return None
    data = tensors.pop(name)
    typed = tensors.pop(f"{name}_json_ends", None)
    ends = tensors.pop(f"{name}_ends", None) if typed is None else typed
    if ends is None:
        return tuple(data.tolist())
    text, bounds = data.numpy().tobytes(), [0, *ends.tolist()]
    if sorted(bounds) != bounds or bounds[-1] != len(text):
        raise ValueError(f"{name} are damaged")
    parts = (text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(bounds))
    return tuple(parts) if typed is None else tuple(map(id_from_json, parts))


def _packed(encoded: list[bytes], name: str, kind: str) -> dict[str, Tensor]:
    ends = torch.tensor([len(x) for x in encoded], dtype=torch.int64).cumsum(0)
    data = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {name: torch.from_numpy(data), f"{name}_{kind}": ends}
