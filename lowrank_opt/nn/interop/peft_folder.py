"""The two files of a PEFT checkpoint: read without pickle, written so that no mixture is left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lowrank_opt.errors import DataError
from lowrank_opt.files import bytes_of, no_place
from lowrank_opt.parameterizations.config import JsonObject

CONFIG, TENSORS, PICKLED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def read(path: str | PathLike[str]) -> tuple[JsonObject, dict[str, Tensor]]:
    """Return configuration and tensors of a PEFT checkpoint.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the tensors are pickled.
    """
    folder = Path(path)
    if (folder / PICKLED).exists() and not (folder / TENSORS).exists():
        raise DataError(
            f"tensors are read from {TENSORS}, never unpickled; {str(folder)!r} has {PICKLED}: "
            "load it with PEFT where you trust it, and save_pretrained(..., "
            "safe_serialization=True)"
        )
    try:
        config = json.loads(bytes_of(folder / CONFIG))
        tensors = safetensors.torch.load(bytes_of(folder / TENSORS))
    except OSError as error:
        raise DataError(
            f"a PEFT checkpoint has {CONFIG} and {TENSORS}; got {str(folder)!r}: "
            f"{error.strerror or error}: check the path"
        ) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise damaged(folder, str(error)) from error
    if not isinstance(config, dict):
        raise damaged(folder, f"{CONFIG} is no JSON object")
    return config, tensors


def damaged(path: str | PathLike[str], fault: str) -> DataError:
    """Return the error for a checkpoint that PEFT cannot have written."""
    return DataError(
        f"a PEFT checkpoint must be whole; {str(path)!r} is damaged: {fault}: fetch it again"
    )


def write(path: str | PathLike[str], config: JsonObject, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint, the folder made if need be.

    Both files are complete on the disk before either takes its name. An older checkpoint loses its
    configuration first and gets the new one last: a process killed in between leaves a folder that
    PEFT refuses, and never a mixture of the two.

    Raises
    ------
    DataError
        If the folder cannot be made or written.
    """
    folder = Path(path)
    whole = {key: x.detach().cpu().clone().contiguous() for key, x in tensors.items()}
    texts = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    contents = {TENSORS: safetensors.torch.save(whole, {"format": "pt"}), CONFIG: texts}
    parts = {folder / f".{name}.{os.getpid()}.part": name for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, name in parts.items():
            _write_through(part, contents[name])
        _put_in_place(folder, parts)
    except (OSError, ValueError) as error:
        for part in parts:
            with suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
        raise no_place("a PEFT checkpoint", folder, error) from error


def _put_in_place(folder: Path, parts: Mapping[Path, str]) -> None:
    """Rename the new files, the configuration last; the old one is back if the first fails."""
    aside = folder / f".{CONFIG}.{os.getpid()}.old"
    with suppress(FileNotFoundError):
        (folder / CONFIG).replace(aside)
    try:
        for part, name in parts.items():
            part.replace(folder / name)
            aside.unlink(missing_ok=True)
    except OSError:
        with suppress(FileNotFoundError):
            aside.replace(folder / CONFIG)
        raise


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
