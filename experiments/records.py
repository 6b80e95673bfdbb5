"""What makes a result repeatable: environment, revision and settings, as one JSON file."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lowrank_opt.errors import DataError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_PACKAGES = ("torch", "numpy", "scipy", "numba", "lowrank_opt")


def environment() -> dict[str, Json]:
    """Return versions, processor, threads and the revision of the source.

    Examples
    --------
    >>> environment()["threads"] >= 1
    True
    """
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "revision": revision(),
    }


def prepare_folder(folder: Path) -> Path:
    """Create `folder` and prove that it can be written, before any work starts.

    Raises
    ------
    DataError
        If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(
            f"results need a writable folder; got {folder} ({error.strerror}): "
            "choose another one with --out"
        ) from error


def write_record(path: Path, **record: Json) -> None:
    """Write `record` and its `environment` as JSON in one step: nobody reads half a file.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    text = json.dumps({"environment": environment(), **record}, indent=1) + "\n"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # As other files are: what is made for a moment is for its owner alone.
        os.umask(mask := os.umask(0o077))
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except OSError as error:
        raise DataError(f"the record must be written; got {error.strerror} for {path}") from error


def _version(package: str) -> str:
    if package == "torch":
        # Its metadata leave out which build it is, as +cpu or +cu130.
        return torch.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def revision() -> str:
    """Return the commit of the source, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
