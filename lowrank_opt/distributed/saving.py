"""A result of several processes in the file of one, written block by block by the first of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.model.ids import Kind, kind_of, to_tensors
from lowrank_opt.completion.results.storage import LAYOUT, history_columns
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.folder import PartialRatings
from lowrank_opt.distributed.ids import Dictionary
from lowrank_opt.files import write_with
from lowrank_opt.observations.parts import is_cut

# Numbers that a block has at most.
BLOCK = 1 << 20
_KINDS: tuple[Kind, ...] = ("int", "text", "json")
_OF_LINES = ("left", "row_bias"), ("right", "col_bias")
_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}


class Stream(NamedTuple):
    """A tensor that comes in blocks of lines."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]


def save_streams(streams: Mapping[str, Stream], path: Path) -> None:
    """Write tensors in safetensors, with one block of one of them in memory at a time."""
    header, end = dict[str, object](), 0
    for name, stream in streams.items():
        start, end = end, end + math.prod(stream.shape) * stream.dtype.itemsize
        kind, offsets = _NAMES[stream.dtype], [start, end]
        header[name] = {"dtype": kind, "shape": list(stream.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stream in streams.values():
            for block in stream.blocks:
                lines = block.detach().cpu().contiguous()
                file.write(lines.flatten().view(torch.uint8).numpy().data)


def save(result: CompletionResult, ratings: PartialRatings, path: str | PathLike[str]) -> None:
    """Write what `CompletionResult.load` reads, ids included. Called in all processes.

    No process has more than its share of rows and ids in memory, and a block.

    Parameters
    ----------
    result : CompletionResult
        Of these ratings; its rows are those of this process where they are cut, and its columns.
    ratings : PartialRatings
    path : str or path

    Raises
    ------
    DataError
        In the first process, if the folder cannot be written.
    """
    entries, processes = ratings.observations, ratings.users.processes
    header, tensors = result.contents()
    tensors |= history_columns(result.history)
    first = processes.rank == 0
    cut = {name for side in (0, 1) if is_cut(entries, side) for name in _OF_LINES[side]}
    # What all processes have comes from the first one.
    own = {
        name: x if first or name in cut else x[:0] if x.ndim else x for name, x in tensors.items()
    }
    own |= _ids(ratings.users, "row_ids") | _ids(ratings.items, "col_ids")
    streams = {name: _stream(x, processes) for name, x in own.items()}
    if not first:
        for stream in streams.values():
            for _ in stream.blocks:
                pass
        return
    header["shape"] = [ratings.users.size, ratings.items.size]
    description = {"kind": "CompletionResult", **header}
    write_with(LAYOUT, path, description, lambda file: save_streams(streams, Path(file)))


def _ids(known: Dictionary, name: str) -> dict[str, Tensor]:
    """Return this process's lines of the tensors in which ids are kept."""
    ids, processes = known.own(), known.processes
    kinds = torch.tensor(_KINDS.index(kind_of(ids)) if ids else 0)
    found = to_tensors(ids, name, _KINDS[int(processes.largest(kinds))])
    letters = processes.counts(len(found[name]), found[name])
    before = sum(letters[: processes.rank])
    return {key: x if key == name else x + before for key, x in found.items()}


def _stream(x: Tensor, processes: Processes) -> Stream:
    if x.ndim == 0:
        return Stream(x.dtype, (), [x])
    counts = processes.counts(len(x), x)
    return Stream(x.dtype, (sum(counts), *x.shape[1:]), _blocks(x, counts, processes))


def _blocks(x: Tensor, counts: Sequence[int], processes: Processes) -> Iterator[Tensor]:
    """Yield the lines of all processes, one after another, in the first of them."""
    step = max(1, BLOCK // max(1, x[:1].numel()))
    for sender, count in enumerate(counts):
        for start in range(0, count, step):
            sent = x[start : start + step] if sender == processes.rank else x[:0]
            yield processes.exchange(sent, [len(sent), *[0] * (processes.size - 1)])[0]
