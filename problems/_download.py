"""Download a file: streamed, checked, and in the cache whole or not at all.

Not by pooch: it does not bring the file to the disk before it is there under its name, and raises
the same error for a damaged file as for others, where an unreachable server alone has a fallback.
"""

import hashlib
import http.client
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from lowrank_opt.errors import DataError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
# A running download touches its file far more often; an older one belongs to a killed process.
ABANDONED_SECONDS = 600.0


class UnreachableError(DataError):
    """The server gave no answer, an error, or only a part of the file."""


def cache_folder() -> Path:
    """Name the user's cache folder of this package; it need not exist.

    Returns
    -------
    Path
        ``lowrank_opt`` inside ``XDG_CACHE_HOME`` or ``~/.cache``, on macOS inside
        ``~/Library/Caches``, on Windows inside ``%LOCALAPPDATA%``.
    """
    return _user_cache(sys.platform) / "lowrank_opt"


def _user_cache(platform: str) -> Path:
    if platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    # The XDG specification says to ignore a relative path.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


@contextmanager
def replacing(target: Path) -> Generator[IO[bytes]]:
    """Open a temporary file that becomes `target` only if the block succeeds.

    Parameters
    ----------
    target : Path
        Its folder is created if need be. Until the block ends, and if it fails in any way,
        `target` is left as it was and the temporary file is removed.

    Yields
    ------
    binary file

    Raises
    ------
    DataError
        If the folder or the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f"{target.name}.", suffix=".part"
        )
    except OSError as error:
        raise _unwritable(target, error) from error
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(target)
    except DataError:
        raise
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    for partial in target.parent.glob(f"{target.name}.*.part"):
        if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
            partial.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(
        f"the folder {target.parent} must be writable with room for {target.name}; "
        f"got {type(error).__name__}: {error.strerror or error}; free space or permissions, or set "
        "XDG_CACHE_HOME to another folder, or LOWRANK_OPT_DATA to one that holds the data"
    )


def fetch(url: str, target: Path, *, md5: str, timeout: float = TIMEOUT_SECONDS) -> None:
    """Download a file and keep it only if its checksum is right.

    Parameters
    ----------
    url : str
        Address.
    target : Path
        Where the file goes, replaced in one step once it is complete and checked.
    md5 : str
        Expected checksum, 32 hexadecimal digits.
    timeout : float
        Seconds without an answer before giving up.

    Raises
    ------
    UnreachableError
        If the server gives no answer, an error, or only a part.
    DataError
        If the checksum differs, or the file cannot be written.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with replacing(target) as handle:
        for chunk in _chunks(url, timeout=timeout):
            handle.write(chunk)
            digest.update(chunk)
        if digest.hexdigest() != md5:
            raise DataError(
                f"{url} must have the MD5 checksum {md5}; got {digest.hexdigest()}, so the "
                "download was thrown away; try again, and if it persists download the file by "
                "hand, compare it with the published checksum, and pass its path"
            )


def fetch_md5(url: str, *, timeout: float = TIMEOUT_SECONDS) -> str:
    """Fetch the checksum that GroupLens publishes beside an archive.

    Parameters
    ----------
    url : str
        Address of the archive; ``.md5`` is appended.
    timeout : float
        Seconds without an answer before giving up.

    Returns
    -------
    str
        32 lower-case hexadecimal digits.

    Raises
    ------
    UnreachableError
        If the server gives no answer, an error, or only a part.
    DataError
        If the answer holds no checksum.
    """
    answer = b"".join(_chunks(f"{url}.md5", timeout=timeout)).decode("ascii", errors="replace")
    found = re.search(r"\b[0-9a-fA-F]{32}\b", answer)
    if found is None:
        raise DataError(
            f"{url}.md5 must hold an MD5 checksum; got {answer[:60]!r}; try again later, or "
            "download the archive by hand and pass its path"
        )
    return found.group().lower()


def _chunks(url: str, *, timeout: float) -> Iterator[bytes]:
    """Yield the body of `url` with a progress bar; raise UnreachableError unless it is whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "lowrank-opt"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            yield from _read(response, url.rsplit("/", 1)[-1], expected)
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"{url} must be reachable; got {type(error).__name__}: {error}; check the connection "
            "and proxy, or download it by hand and pass its path or set LOWRANK_OPT_DATA"
        ) from error


def _read(response: IO[bytes], name: str, expected: int | None) -> Iterator[bytes]:
    received = 0
    with tqdm(total=expected, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        while chunk := response.read(CHUNK_BYTES):
            received += len(chunk)
            bar.update(len(chunk))
            yield chunk
    if expected is not None and received != expected:
        raise http.client.IncompleteRead(b"", expected - received)
