"""Adapter folders: tensors in safetensors, their description in JSON, written atomically."""

from __future__ import annotations

from os import PathLike
from typing import cast

from torch import Tensor

from lowrank_opt import files
from lowrank_opt.parameterizations.config import JsonObject

LAYOUT = files.Layout(
    noun="an adapter",
    writer="save_adapter",
    format="lowrank_opt.adapter",
    version=2,
    tensors="adapter.safetensors",
    description="adapter.json",
)
DESCRIPTION = LAYOUT.description


def write(path: str | PathLike[str], description: JsonObject, tensors: dict[str, Tensor]) -> None:
    """Write a folder of two files; an older adapter is replaced whole, or stays.

    Raises
    ------
    DataError
        If the folder cannot be made or written.
    """
    files.write(LAYOUT, path, cast("files.JsonObject", description), tensors)


def read(path: str | PathLike[str]) -> tuple[JsonObject, dict[str, Tensor]]:
    """Return description and tensors of an adapter folder.

    Raises
    ------
    DataError
        If a file is missing, foreign, of a later version, truncated or changed.
    """
    description, tensors = files.read(LAYOUT, path)
    return cast("JsonObject", description), tensors
