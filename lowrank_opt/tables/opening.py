"""Files and streams as the bytes that they hold, whatever they are compressed by.

That is told by their first bytes, not by their name: gzip, bzip2, xz, zstd (with pyarrow), and zip
archives of one file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile, ZipFile

from lowrank_opt.errors import DataError
from lowrank_opt.extras import extra

_SHOWN = 8
# What the Finder and others add to an archive.
_ADDED = ("__MACOSX/", ".DS_Store")


def stream_name(path: str | PathLike[str] | BinaryIO) -> str:
    """Return what messages call a file or a stream."""
    if isinstance(path, str | PathLike):
        return fspath(path)
    return str(getattr(path, "name", "standard input"))


def opened(path: str | PathLike[str] | BinaryIO) -> io.BufferedReader:
    """Return the bytes of a file or a stream, decompressed if they begin so.

    Raises
    ------
    DataError
        If it is a zip archive of several files, or of none.
    OSError
        If it cannot be read.
    """
    given = open(path, "rb") if isinstance(path, str | PathLike) else path  # noqa: SIM115
    raw = _buffered(given)
    begin = raw.peek(6)
    if begin.startswith(b"\x1f\x8b"):
        return _buffered(gzip.GzipFile(fileobj=raw, mode="rb"))
    if begin.startswith(b"BZh"):
        return _buffered(bz2.BZ2File(raw))
    if begin.startswith(b"\x28\xb5\x2f\xfd"):
        with extra("parquet"):
            import pyarrow as pa
        return _buffered(pa.CompressedInputStream(raw, "zstd"))
    if begin.startswith(b"\xfd7zXZ"):
        return _buffered(lzma.LZMAFile(raw))
    if not _is_zip(raw):
        return raw
    # What was compressed before it was packed is decompressed too.
    return opened(_member(raw, stream_name(path)))


def text_of(data: io.BufferedReader) -> io.TextIOWrapper:
    """Return bytes as text; those that are no UTF-8 become halves of surrogate pairs."""
    return io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape")


@contextmanager
def reading(path: str) -> Generator[None]:
    """Turn what goes wrong while a file is read into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError, BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"a file must be readable; got {path!r}: {reason}") from error


def _buffered(data: object) -> io.BufferedReader:
    return data if isinstance(data, io.BufferedReader) else io.BufferedReader(cast("Any", data))


def _is_zip(raw: io.BufferedReader) -> bool:
    # The second is an archive of nothing.
    return raw.peek(4).startswith((b"PK\3\4", b"PK\5\6"))


def _member(raw: io.BufferedReader, name: str) -> io.BufferedReader:
    """Return the one file of a zip archive."""
    # Where the files are is said at the end, which a pipe cannot look at.
    archive = ZipFile(raw if raw.seekable() else io.BytesIO(raw.read()))
    members = [x for x in archive.infolist() if not x.is_dir() and not _is_added(x.filename)]
    if len(members) != 1:
        shown = ", ".join(repr(x.filename) for x in members[:_SHOWN])
        more = ", ..." if len(members) > _SHOWN else ""
        raise DataError(
            f"a zip archive must hold one file; {name!r} holds {len(members)} [{shown}{more}]: "
            "unpack it, and pass the file that is meant"
        )
    try:
        return _buffered(archive.open(members[0]))
    except (RuntimeError, NotImplementedError) as error:
        # It needs a password, or a method of compression that Python does not know.
        raise DataError(
            f"a zip archive must be readable; got {name!r}: {error}: unpack it first"
        ) from error


def _is_added(member: str) -> bool:
    return member.startswith(_ADDED[0]) or member.endswith(_ADDED[1])
