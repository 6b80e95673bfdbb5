"""Tensors and a JSON header in one file: a versioned NumPy archive, never pickled."""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import DataError

Header: TypeAlias = dict[str, str | float]

_FORMAT = "lowrank_opt.CompletionResult"
_VERSION = 1
_DAMAGE = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def check_writable(path: str | PathLike[str]) -> Path:
    """Return the path if a file can be written there; call it before a long computation.

    Raises
    ------
    DataError
        If the folder does not exist or takes no files, or the path is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise DataError(f"a results file needs a file name; got the folder {str(target)!r}")
    if not target.parent.is_dir():
        raise DataError(
            f"a results file needs an existing folder; got {str(target)!r}: "
            f"create {str(target.parent)!r} first"
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            return target
    except OSError as error:
        raise _unwritable(target, error) from error


def write(path: str | PathLike[str], header: Header, arrays: dict[str, Tensor]) -> None:
    """Write a file atomically: another one of that name is replaced at the end, or stays."""
    target = check_writable(path)
    dtypes = {name: str(x.dtype).removeprefix("torch.") for name, x in arrays.items()}
    full = {"format": _FORMAT, "version": _VERSION, **header, "dtypes": dtypes}
    data = {name: _to_numpy(x) for name, x in arrays.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(full)), **data)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: str | PathLike[str]) -> Generator[tuple[Header, dict[str, Tensor]]]:
    """Yield header and tensors of a file; what goes wrong in the body is damage of the file.

    Raises
    ------
    DataError
        If the file is missing, damaged, foreign, or of a later version.
    """
    try:
        yield _read(path)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"a results file must be readable; got {str(path)!r}: {error}") from error
    except _DAMAGE as error:
        raise DataError(
            f"a results file must be written by CompletionResult.save; {str(path)!r} is foreign "
            f"or damaged ({error}): save it again"
        ) from error


def check(condition: bool, fault: str) -> None:
    """Raise ValueError, which `reading` reports as damage, unless the condition holds."""
    if not condition:
        raise ValueError(fault)


def _read(path: str | PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        check(isinstance(archive, np.lib.npyio.NpzFile), "not an archive")
        header = json.loads(str(archive["header"][()]))
        check(isinstance(header, dict) and header.get("format") == _FORMAT, "another format")
        if header["version"] > _VERSION:
            raise DataError(
                f"this version reads results files up to version {_VERSION}; {str(path)!r} has "
                f"version {header['version']}: install a newer lowrank_opt"
            )
        dtypes = header.pop("dtypes")
        arrays = {name: _to_torch(archive[name], dtype) for name, dtype in dtypes.items()}
    return header, arrays


def _to_numpy(x: Tensor) -> np.ndarray:
    # NumPy has no bfloat16; float32 holds each of its numbers.
    plain = x.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _to_torch(array: np.ndarray, dtype: str) -> Tensor:
    chosen = getattr(torch, dtype, None)
    check(isinstance(chosen, torch.dtype) and array.dtype.kind == "f", f"dtype {dtype!r}")
    return torch.from_numpy(array).to(chosen)


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(
        f"a results file must be writable; got {str(target)!r}: {error.strerror or error}: "
        "choose another folder"
    )
