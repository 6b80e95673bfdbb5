"""Folders of results."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank_opt import files
from lowrank_opt.completion.loop.history import History
from lowrank_opt.errors import DataError
from lowrank_opt.files import JsonObject as JsonObject

Kind: TypeAlias = Literal["CompletionResult", "BayesianResult"]

LAYOUT = files.Layout(
    noun="a result",
    writer="save",
    format="lowrank_opt.result",
    version=2,
    tensors="result.safetensors",
    description="result.json",
)
_DAMAGE = (ValueError, KeyError, TypeError, RuntimeError)


def check_writable(path: str | PathLike[str]) -> Path:
    """Return the path if a result can be written there; call it before a long computation.

    Raises
    ------
    DataError
        If the path is a file, no folder can be made there, or it holds something else.
    """
    return files.check_target(LAYOUT, path)


def write(
    path: str | PathLike[str],
    kind: Kind,
    header: JsonObject,
    tensors: dict[str, Tensor],
    history: History,
) -> None:
    """Write a folder: header and tensors, with the history among them."""
    files.write(LAYOUT, path, {"kind": kind, **header}, tensors | history_columns(history))


def history_columns(history: History) -> dict[str, Tensor]:
    """Return what files hold of a history."""
    return {
        f"history.{k}": torch.tensor(v, dtype=torch.float64) for k, v in history.columns().items()
    }


@contextmanager
def reading(
    path: str | PathLike[str], kind: Kind
) -> Generator[tuple[JsonObject, dict[str, Tensor], History]]:
    """Yield header, tensors and history; what goes wrong in the body is damage of the file.

    Raises
    ------
    DataError
        If a file is missing, damaged, foreign, of a later version, or of the other kind.
    """
    try:
        header, tensors = _read_folder(path, kind)
        prefix = "history."
        names = [name for name in tensors if name.startswith(prefix)]
        columns = {name.removeprefix(prefix): tensors.pop(name).tolist() for name in names}
        yield header, tensors, History(**columns)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"a result must be readable; got {str(path)!r}: {error}") from error
    except _DAMAGE as error:
        raise files.damaged(LAYOUT, path, f"the content is foreign or damaged ({error})") from error


def check(condition: bool, fault: str) -> None:
    """Raise ValueError, which `reading` reports as damage, unless the condition holds."""
    if not condition:
        raise ValueError(fault)


def _read_folder(path: str | PathLike[str], kind: Kind) -> tuple[JsonObject, dict[str, Tensor]]:
    header, tensors = files.read(LAYOUT, path)
    if header.get("kind") != kind:
        raise DataError(
            f"this is for a {kind}; {str(path)!r} holds a {header.get('kind')}: "
            f"use {header.get('kind')}.load"
        )
    return header, tensors
