"""Names of rows and columns: where they are, and how they are kept in tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ids: TypeAlias = Sequence[str] | Sequence[int]


def check_ids(ids: Ids, size: int, name: str) -> None:
    """Raise unless there are `size` distinct ids, all strings or all integers.

    Raises
    ------
    ShapeError
        If their number is another one.
    ObservationError
        If they are of another type, or one comes twice.
    """
    if len(ids) != size:
        raise ShapeError(f"{name} must name each of {size}; got {len(ids)} names")
    kinds = {type(x) for x in ids}
    if not (kinds <= {str} or kinds <= {int}):
        raise ObservationError(
            f"{name} must be all strings or all Python integers; got "
            f"{sorted(k.__name__ for k in kinds)}: convert with .tolist()"
        )
    if len(set(ids)) != size:
        raise ObservationError(f"{name} must be distinct; got {size - len(set(ids))} repetitions")


class Lookup:
    """Positions of names, by a dictionary built once.

    Parameters
    ----------
    ids : sequence of str or int

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


def to_tensors(ids: Ids, name: str) -> dict[str, Tensor]:
    """Return integers as int64; strings as their UTF-8 bytes, and where each one ends."""
    if not ids or isinstance(ids[0], int):
        return {name: torch.tensor(list(ids), dtype=torch.int64)}
    # An id with half of a surrogate pair, from a file name say, is no valid UTF-8 but comes back.
    encoded = [str(x).encode("utf-8", "surrogatepass") for x in ids]
    ends = torch.tensor([len(x) for x in encoded], dtype=torch.int64).cumsum(0)
    data = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {name: torch.from_numpy(data), f"{name}_ends": ends}


def from_tensors(tensors: dict[str, Tensor], name: str) -> tuple[str, ...] | tuple[int, ...] | None:
    """Take the ids of that name out of the tensors; None if there are none.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    if name not in tensors:
        return None
    data, ends = tensors.pop(name), tensors.pop(f"{name}_ends", None)
    if ends is None:
        return tuple(data.tolist())
    text, bounds = data.numpy().tobytes(), [0, *ends.tolist()]
    if sorted(bounds) != bounds or bounds[-1] != len(text):
        raise ValueError(f"{name} are damaged")
    return tuple(text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(bounds))
