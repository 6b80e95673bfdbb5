"""Adapter folders: tensors in safetensors, their description in JSON, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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

# What tells of a description whether it is as it was written; folders of before have none.
SEAL = "seal"
# The dtype of each tensor; folders of before have none.
KINDS = "dtypes"
_OF_THE_LAYOUT = ("format", "version", "sha256", SEAL)


def write(path: str | PathLike[str], description: JsonObject, tensors: dict[str, Tensor]) -> None:
    """Write a folder of two files; an older adapter is replaced whole, or stays.

    Raises
    ------
    DataError
        If the folder cannot be made or written.
    """
    whole = description | {KINDS: _kinds(tensors)}
    sealed = whole | {SEAL: seal_of(whole)}
    files.write(LAYOUT, path, cast("files.JsonObject", sealed), tensors)


def seal_of(description: JsonObject) -> str:
    """Return the digest of a description."""
    own = {key: x for key, x in description.items() if key not in _OF_THE_LAYOUT}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def is_sealed(description: JsonObject, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a folder is as it was written, as far as it can tell."""
    kinds = _kinds(tensors)
    sealed = description.get(SEAL) in (None, seal_of(description))
    return sealed and description.get(KINDS, kinds) == kinds


def _kinds(tensors: Mapping[str, Tensor]) -> JsonObject:
    return {key: str(x.dtype) for key, x in tensors.items()}


def read(path: str | PathLike[str]) -> tuple[JsonObject, dict[str, Tensor]]:
    """Return description and tensors of an adapter folder.

    Raises
    ------
    DataError
        If a file is missing, foreign, of a later version, truncated or changed.
    """
    description, tensors = files.read(LAYOUT, path)
    return cast("JsonObject", description), tensors
