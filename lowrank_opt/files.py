"""A folder of two files, tensors in safetensors and their description in JSON, written atomically.

The description holds the digest of the tensors, and replacing it is the moment at which the folder
changes: before, its old content is read; after, its new content. New tensors stand beside the old
ones under a name that carries their digest until then, and take over the usual name afterwards. A
process killed at any point leaves the one or the other, and never a mixture.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lowrank_opt.errors import DataError
from lowrank_opt.locks import locked

# Pipes are opened at once, not when somebody writes to them; on Windows, files not as text.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

# Seconds.
_ABANDONED = 86_400.0

_DIGEST = re.compile("[0-9a-f]{64}")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]
Saver: TypeAlias = Callable[[Path], None]


@dataclass(frozen=True)
class Layout:
    """What a kind of folder holds, and how errors speak of it.

    Parameters
    ----------
    noun : str
        Such as "an adapter".
    writer : str
        The function that writes such folders.
    format, version : str, int
        Written to the description; a reader takes its own format up to its own version.
    tensors, description : str
        Names of the two files.
    """

    noun: str
    writer: str
    format: str
    version: int
    tensors: str
    description: str


def write(
    layout: Layout,
    path: str | PathLike[str],
    description: JsonObject,
    tensors: dict[str, Tensor],
) -> None:
    """Write a folder, made if need be; what it held is replaced whole, or stays.

    Raises
    ------
    DataError
        If the folder cannot be made or written, or holds a description of another format.
    """
    own = _separate(tensors)
    write_with(layout, path, description, lambda part: safetensors.torch.save_file(own, part))


def write_with(
    layout: Layout, path: str | PathLike[str], description: JsonObject, save: Saver
) -> None:
    """Write a folder, as `write`, whose tensors a function writes to a file in safetensors."""
    folder = check_target(layout, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as alone:
            _remove_leftovers(layout, folder, alone=alone)
            _write(layout, folder, description, save)
    except DataError:
        raise
    except (OSError, SafetensorError) as error:
        raise no_place(layout.noun, folder, error) from error


def _write(layout: Layout, folder: Path, description: JsonObject, save: Saver) -> None:
    part = _part(folder / layout.tensors)
    with _removed_at_the_end(part):
        part.touch()
        mode = part.stat().st_mode
        save(part)
        part.chmod(mode)
        digest = _digest_and_sync(part)
        pending = part.replace(_pending(layout, folder, digest))
    full = {"format": layout.format, "version": layout.version, "sha256": digest}
    _replace(folder / layout.description, _dump(full | description))
    pending.replace(folder / layout.tensors)
    _sync_folder(folder)


def check_target(layout: Layout, path: str | PathLike[str]) -> Path:
    """Return the folder if one of this layout may be written there; nothing is made.

    Raises
    ------
    DataError
        If the path is a file, no folder can be made there, or it holds another format.
    """
    folder = Path(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(folder)
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        raise no_place(layout.noun, folder, error) from error
    if not place.is_dir():
        fault = "is a file"
    elif not os.access(place, os.W_OK | os.X_OK):
        fault = "takes no files"
    elif exists(layout, folder) and not _is_ours(layout, folder):
        fault = f"holds a foreign {layout.description}"
    else:
        return folder
    raise DataError(
        f"{layout.noun} is written to a folder; got {str(folder)!r}, and {str(place)!r} {fault}: "
        "choose another one"
    )


def no_place(noun: str, folder: Path, error: Exception) -> DataError:
    """Return the error for a folder that cannot be made or written."""
    reason = getattr(error, "strerror", None) or error
    return DataError(
        f"{noun} is written to a folder; got {str(folder)!r}: {reason}: choose another one"
    )


def exists(layout: Layout, path: str | PathLike[str]) -> bool:
    """Whether a folder holds a description of this layout, intact or not."""
    return (Path(path) / layout.description).is_file()


def read(layout: Layout, path: str | PathLike[str]) -> tuple[JsonObject, dict[str, Tensor]]:
    """Return description and tensors of a folder, onto the CPU.

    Files that a writer left unfinished, killed, are removed, where that is allowed.

    Raises
    ------
    DataError
        If a file is missing, foreign, of a later version, truncated or changed.
    """
    folder = Path(path)
    description = _read_description(layout, folder)
    while True:
        try:
            data = _read_tensors(layout, folder, str(description.get("sha256")))
            break
        except DataError:
            last, description = description, _read_description(layout, folder)
            # Unless another process has written the folder anew since, it is damaged.
            if description.get("sha256") == last.get("sha256"):
                raise
    _tidy(layout, folder)
    try:
        return description, safetensors.torch.load(data)
    except SafetensorError as error:
        raise damaged(layout, folder, str(error)) from error


def damaged(layout: Layout, path: str | PathLike[str], fault: str) -> DataError:
    """Return the error for a folder that its writer cannot have written."""
    return DataError(
        f"{layout.noun} must be as {layout.writer} wrote it; in {str(path)!r}, {fault}: "
        "save it again"
    )


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory, copying those alone that do."""
    own, seen = dict[str, Tensor](), set[int]()
    for key, x in tensors.items():
        y = x.detach().cpu().contiguous()
        storage = y.untyped_storage()
        if storage.nbytes() != y.nbytes or storage.data_ptr() in seen:
            y = y.clone()
        own[key] = y
        seen.add(y.untyped_storage().data_ptr())
    return own


def _read_description(layout: Layout, folder: Path) -> JsonObject:
    try:
        description = _decoded(bytes_of(folder / layout.description))
    except OSError as error:
        raise _unreadable(layout, folder, error) from error
    except (ValueError, RecursionError) as error:
        raise damaged(layout, folder, f"{layout.description} is no JSON") from error
    if description.get("format") != layout.format:
        raise damaged(layout, folder, f"{layout.description} is of another format")
    if _DIGEST.fullmatch(str(description.get("sha256"))) is None:
        raise damaged(layout, folder, f"{layout.description} has no digest of its tensors")
    version = description.get("version")
    if type(version) is not int or not 1 <= version <= layout.version:
        raise DataError(
            f"this version reads {layout.noun} of version {layout.version} or below; "
            f"{str(folder)!r} has version {version!r}: use the release that wrote it"
        )
    return description


def _read_tensors(layout: Layout, folder: Path, digest: str) -> bytes:
    """Return the bytes that the description tells of, which a writer may be renaming just now."""
    final, pending = folder / layout.tensors, _pending(layout, folder, digest)
    missing = None
    for candidate in (final, pending, final):
        try:
            data = bytes_of(candidate)
        except OSError as error:
            missing = missing if candidate is pending else error
            continue
        missing = None
        if hashlib.sha256(data).hexdigest() == digest:
            return data
    if missing is not None:
        raise _unreadable(layout, folder, missing) from missing
    raise damaged(layout, folder, f"{layout.tensors} is truncated, changed, or of another save")


def bytes_of(path: Path) -> bytes:
    """Return the bytes of a regular file: pipes would block, and devices have no end.

    Raises
    ------
    OSError
        If it cannot be read, or is something else.
    """
    with open(os.open(path, os.O_RDONLY | _AT_ONCE), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _unreadable(layout: Layout, folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{layout.noun} is a folder with {layout.description} and {layout.tensors}; "
        f"got {str(folder)!r}: {error.strerror or error}: check the path"
    )


def _is_ours(layout: Layout, folder: Path) -> bool:
    try:
        return _decoded(bytes_of(folder / layout.description)).get("format") == layout.format
    except (OSError, ValueError, RecursionError):
        return False


def _decoded(data: bytes) -> JsonObject:
    """Return a JSON object.

    Raises
    ------
    ValueError
        If it is none, or nested beyond sense.
    """
    import msgspec

    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _remove_leftovers(layout: Layout, folder: Path, *, alone: bool) -> None:
    """Finish the last write, if it was cut off after its decisive moment; clean up after it."""
    if exists(layout, folder):
        digest = _decoded(bytes_of(folder / layout.description)).get("sha256")
        pending = _pending(layout, folder, str(digest))
        if pending.is_file() and not pending.is_symlink():
            pending.replace(folder / layout.tensors)
    for leftover in _leftovers(layout, folder):
        # Without locks another process may be writing just now, and is done within a day.
        if alone or time.time() - leftover.stat().st_mtime > _ABANDONED:
            leftover.unlink(missing_ok=True)


def _leftovers(layout: Layout, folder: Path) -> list[Path]:
    """Return the files that writers have begun and not finished, or not yet."""
    names = (layout.tensors, layout.description)
    return [x for name in names for x in folder.glob(f".{name}.*") if not x.is_dir()]


def _tidy(layout: Layout, folder: Path) -> None:
    """Remove what writers left that were killed; not if one is at work, or nothing may be changed.

    Who holds the lock of a folder knows that nobody writes to it.
    """
    with suppress(OSError, ValueError, RecursionError):
        if _leftovers(layout, folder):
            with locked(folder, wait=False) as alone:
                _remove_leftovers(layout, folder, alone=alone)


def _pending(layout: Layout, folder: Path, digest: str) -> Path:
    # What a file says is no part of a path unless it is a digest.
    plain = _DIGEST.fullmatch(digest) is not None
    return folder / f".{layout.tensors}.{digest[:16] if plain else 'none'}"


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _dump(description: JsonObject) -> bytes:
    return (json.dumps(description, indent=1, allow_nan=False) + "\n").encode()


def _digest_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _replace(target: Path, data: bytes) -> None:
    part = _part(target)
    with _removed_at_the_end(part):
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _removed_at_the_end(path: Path) -> Generator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
