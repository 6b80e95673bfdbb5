"""Checkpoints of several processes: each writes its share, any number of them reads it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
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

from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.errors import DataError

if TYPE_CHECKING:
    from lowrank_opt.files import JsonObject

_DESCRIPTION = "description"


class SharedStore:
    """A `Store` for a `Checkpoint` of several processes, by `torch.distributed.checkpoint`.

    A state is whole in every process; each writes a share of its tensors. A state counts once all
    have written: the one before it stays until then.

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
                {**tensors, _DESCRIPTION: letters},
                checkpoint_id=target,
                process_group=self.processes.group,
            )
        except OSError as error:
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
            tensors = {
                name: torch.empty(x.size, dtype=x.properties.dtype)
                for name, x in found.items()
                if isinstance(x, TensorStorageMetadata)
            }
            load(tensors, checkpoint_id=source, process_group=self.processes.group)
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
