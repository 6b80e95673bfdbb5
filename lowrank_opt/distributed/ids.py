"""Positions of ids over several processes: each keeps the ids whose hash falls into its range.

Ids are ordered by their hash, so that positions do not depend on the number of processes, and rows
next to each other have nothing else in common: equal ranges of rows are equal work.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.errors import DataError

_BITS = 62
# A code is the keeper times this, plus the number that the keeper gave.
_KEEPER = 1 << 40


class Dictionary:
    """Ids in the order of their hashes; no process has more of them than its range and a chunk.

    Every method is called in all processes.

    Parameters
    ----------
    processes : Processes
    name : str
        For messages.

    Attributes
    ----------
    size : int
        Ids of all processes; after `finish`.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> known = Dictionary(Processes(), "users")
    >>> codes = torch.cat([known.codes(["ann", "bob"]), known.codes(["bob"])])
    >>> known.finish()
    >>> known.positions(codes).tolist(), known.own()
    ([1, 0, 0], ['bob', 'ann'])
    >>> dist.destroy_process_group()
    """

    def __init__(self, processes: Processes, name: str) -> None:
        self.processes: Processes
        self.name: str
        self.processes, self.name, self.size = processes, name, 0
        self._known: dict[bytes, int] = {}
        self._final = torch.empty(0, dtype=torch.int64)
        self._ordered: list[bytes] = []

    def codes(self, ids: Sequence[Hashable]) -> Tensor:
        """Return a number for each of a chunk of ids, which may be empty; `finish` makes it final.

        Raises
        ------
        DataError
            If an id is neither text nor an integer.
        """
        places: dict[Hashable, int] = {}
        index = [places.setdefault(x, len(places)) for x in ids]
        texts = [_text(x, self.name) for x in places]
        keepers = np.array([self._keeper(x) for x in texts], dtype=np.int64)
        order = np.argsort(keepers, kind="stable")
        asked, senders = _sent(self.processes, [texts[k] for k in order], keepers[order])
        found = [self._known.setdefault(x, len(self._known)) for x in asked]
        mine = torch.tensor(found, dtype=torch.int64) + self.processes.rank * _KEEPER
        answers = self.processes.exchange(mine, senders)[0]
        codes = torch.empty(len(texts), dtype=torch.int64)
        codes[torch.from_numpy(order)] = answers
        return codes[torch.tensor(index, dtype=torch.int64)]

    def finish(self) -> None:
        """Sort the ids; there are no others from here on."""
        self._ordered = sorted(self._known, key=lambda x: (_hash(x), x))
        counts = self.processes.counts(len(self._ordered), torch.empty(0))
        first = sum(counts[: self.processes.rank])
        self._final = torch.empty(len(self._known), dtype=torch.int64)
        places = torch.tensor([self._known[x] for x in self._ordered], dtype=torch.int64)
        self._final[places] = first + torch.arange(len(places))
        self.size: int
        self.size, self._known = sum(counts), {}

    def positions(self, codes: Tensor) -> Tensor:
        """Return the positions that codes stand for."""
        unique, inverse = codes.unique(return_inverse=True)
        sizes = torch.bincount(unique // _KEEPER, minlength=self.processes.size).tolist()
        asked, senders = self.processes.exchange(unique % _KEEPER, sizes)
        return self.processes.exchange(self._final[asked], senders)[0][inverse]

    def own(self) -> list[Hashable]:
        """Return the ids that this process keeps, in the order of their positions."""
        return [_id(x) for x in self._ordered]

    def _keeper(self, text: bytes) -> int:
        return (_hash(text) * self.processes.size) >> _BITS


def _sent(
    processes: Processes, texts: list[bytes], keepers: np.ndarray
) -> tuple[list[bytes], list[int]]:
    """Send each text to its keeper, by which they are sorted; return those that came."""
    lengths = torch.tensor([len(x) for x in texts], dtype=torch.int64)
    sizes = np.bincount(keepers, minlength=processes.size).tolist()
    come, senders = processes.exchange(lengths, sizes)
    ends = [0, *accumulate(sizes)]
    letters = [int(lengths[a:b].sum()) for a, b in pairwise(ends)]
    data = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8)
    joined = processes.exchange(data[: sum(letters)], letters)[0].numpy().tobytes()
    bounds = [0, *accumulate(come.tolist())]
    return [joined[a:b] for a, b in pairwise(bounds)], senders


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> (64 - _BITS)


def _text(x: Hashable, name: str) -> bytes:
    if isinstance(x, str):
        return b"s" + x.encode("utf-8", "surrogatepass")
    if isinstance(x, int) and not isinstance(x, bool):
        return b"i%d" % x
    raise DataError(
        f"{name} over several processes must be text or integers; got {type(x).__name__}: convert "
        "the column"
    )


def _id(text: bytes) -> Hashable:
    return text[1:].decode("utf-8", "surrogatepass") if text[:1] == b"s" else int(text[1:])
