"""Checkpoints of several processes: each writes its share, any number of them reads it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lowrank_opt.completion.loop.checkpoint import LINES
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import cuts
from lowrank_opt.errors import DataError

if TYPE_CHECKING:
    from lowrank_opt.files import JsonObject

_DESCRIPTION = "description"


class SharedStore:
    """A `Store` for a `Checkpoint` of several processes, by `torch.distributed.checkpoint`.

    A state is whole in every process, which writes a share of its tensors; or it has the lines of
    the process's own rows, which any other number of processes finds cut in its own way. A state
    counts once all have written: the one before it stays until then.

    Parameters
    ----------
    processes : Processes, optional
        All of them by default.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self.processes: Processes = Processes() if processes is None else processes

    def write(self, path: Path, description: JsonObject, tensors: Mapping[str, Tensor]) -> None:
        """Write a state into a folder of its own, and drop those before it.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        steps = _finished(path)
        target = path / f"state-{1 + max((_number(x) for x in steps), default=0):08d}"
        if self.processes.rank == 0:
            # What a killed run had begun.
            shutil.rmtree(target, ignore_errors=True)
            path.mkdir(parents=True, exist_ok=True)
        self._wait()
        text = json.dumps(description).encode()
        letters = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        try:
            save(
                {**self._spread(tensors), _DESCRIPTION: letters},
                checkpoint_id=target,
                process_group=self.processes.group,
            )
        except (OSError, CheckpointException) as error:
            raise DataError(f"a checkpoint must be writable; got {str(path)!r}: {error}") from error
        self._wait()
        if self.processes.rank == 0:
            for old in steps:
                shutil.rmtree(old, ignore_errors=True)

    def exists(self, path: Path) -> bool:
        """Whether there is a state."""
        return bool(self._latest(path))

    def read(self, path: Path) -> tuple[JsonObject, dict[str, Tensor]]:
        """Return the last whole state, in every process.

        Raises
        ------
        DataError
            If there is none, or it is damaged.
        """
        source = path / f"state-{self._latest(path):08d}"
        try:
            found = FileSystemReader(source).read_metadata().state_dict_metadata
            known = {k: x for k, x in found.items() if isinstance(x, TensorStorageMetadata)}
            state = {
                name: self._empty(x.size, x.properties.dtype, spread=name.startswith(LINES))
                for name, x in known.items()
            }
            load(state, checkpoint_id=source, process_group=self.processes.group)
            tensors = {name: self._own(x) for name, x in state.items()}
            text = bytes(tensors.pop(_DESCRIPTION).tolist())
            return json.loads(text), tensors
        except (OSError, KeyError, ValueError, RuntimeError, CheckpointException) as error:
            raise DataError(
                f"a checkpoint must be readable; got {str(source)!r}: {error}: delete it to start "
                "anew"
            ) from error

    def remove(self, path: Path) -> None:
        """Delete all states."""
        self._wait()
        if self.processes.rank == 0:
            shutil.rmtree(path, ignore_errors=True)

    def _spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of which this process has some lines as parts of whole ones."""
        found, size = dict(tensors), self.processes.size
        for name in [name for name in tensors if name.startswith(LINES)]:
            x = tensors[name]
            counts = self.processes.counts(len(x), x)
            here, there = [0, *accumulate(counts)], _chunks(sum(counts), size)
            found[name] = self._whole(_moved(x, here, there, self.processes), sum(counts))
        return found

    def _own(self, x: Tensor) -> Tensor:
        """Return a tensor, or of a spread one the lines that this process solves for."""
        if not isinstance(x, DTensor):
            return x
        here, there = (ends(len(x), self.processes.size) for ends in (_chunks, cuts))
        return _moved(x.to_local(), here, there, self.processes)

    def _empty(self, size: torch.Size, dtype: torch.dtype, *, spread: bool) -> Tensor:
        if not spread:
            return torch.empty(size, dtype=dtype)
        ends, rank = _chunks(size[0], self.processes.size), self.processes.rank
        return self._whole(
            torch.empty(ends[rank + 1] - ends[rank], *size[1:], dtype=dtype), size[0]
        )

    def _whole(self, x: Tensor, lines: int) -> DTensor:
        group = self.processes.group or dist.group.WORLD
        assert group is not None, "there is one"
        mesh, shape = DeviceMesh.from_group(group, "cpu"), torch.Size((lines, *x.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        own = x.detach().cpu().contiguous()
        return DTensor.from_local(
            own, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )

    def _latest(self, path: Path) -> int:
        """Return the number of the last state that the first process sees, zero without one."""
        number = max((_number(x) for x in _finished(path)), default=0)
        return int(self.processes.from_first(torch.tensor([number])))

    def _wait(self) -> None:
        dist.barrier(self.processes.group)


def _finished(path: Path) -> list[Path]:
    # The metadata is written last, after the data of all processes.
    return [x for x in path.glob("state-*") if (x / ".metadata").exists()]


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _chunks(lines: int, parts: int) -> list[int]:
    """Return where the lines of a DTensor are cut: into pieces as torch.chunk makes them."""
    step = -(-lines // parts)
    return [min(k * step, lines) for k in range(parts + 1)]


def _moved(x: Tensor, here: list[int], there: list[int], processes: Processes) -> Tensor:
    """Return the lines of another cut of all of them into consecutive ranges."""
    first, last = here[processes.rank : processes.rank + 2]
    sizes = [max(min(last, b) - max(first, a), 0) for a, b in pairwise(there)]
    return processes.exchange(x, sizes)[0]
