"""Adapter folders: tensors in safetensors, their description in JSON, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from os import PathLike
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lowrank_opt.errors import DataError
from lowrank_opt.nn.recipes import JsonObject

FORMAT = "lowrank_opt.adapter"
VERSION = 1
TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"


def write(path: str | PathLike[str], description: JsonObject, tensors: dict[str, Tensor]) -> None:
    """Write a folder of two files; each replaces an older one whole.

    Raises
    ------
    DataError
        If the folder cannot be made or written.
    """
    folder = Path(path)
    own = {key: x.detach().cpu().contiguous().clone() for key, x in tensors.items()}
    data = safetensors.torch.save(own)
    digest = hashlib.sha256(data).hexdigest()
    full = {"format": FORMAT, "version": VERSION, "sha256": digest, **description}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSORS, data)
        _replace(folder / DESCRIPTION, json.dumps(full, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise DataError(
            f"an adapter is written to a folder; got {str(folder)!r}: {error.strerror or error}: "
            "choose another one"
        ) from error


def read(path: str | PathLike[str]) -> tuple[JsonObject, dict[str, Tensor]]:
    """Return description and tensors of an adapter folder.

    Raises
    ------
    DataError
        If a file is missing, foreign, of a later version, truncated or changed.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise DataError(
            f"an adapter is a folder with {DESCRIPTION} and {TENSORS}; got {str(folder)!r}: "
            f"{error.strerror or error}: check the path"
        ) from error
    except ValueError as error:
        raise _damaged(folder, f"{DESCRIPTION} is no JSON") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise _damaged(folder, f"{DESCRIPTION} is of another format")
    if description.get("version") != VERSION:
        raise DataError(
            f"this version reads adapters of version {VERSION}; {str(folder)!r} has version "
            f"{description.get('version')!r}: use the release that wrote it"
        )
    if hashlib.sha256(data).hexdigest() != description.get("sha256"):
        raise _damaged(folder, f"{TENSORS} is truncated, changed, or of another adapter")
    try:
        return description, safetensors.torch.load(data)
    except SafetensorError as error:
        raise _damaged(folder, str(error)) from error


def _damaged(folder: Path, fault: str) -> DataError:
    return DataError(
        f"an adapter must be as save_adapter wrote it; in {str(folder)!r}, {fault}: save it again"
    )


def _replace(target: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
