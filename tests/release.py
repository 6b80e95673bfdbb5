"""What a release consists of: wheel and sdist, equal whenever they are built, and what they need.

``python tests/release.py dist`` builds both twice, the wheel out of the sdist, fails if a byte
differs, and writes them with a bill of materials in CycloneDX 1.5. Every time in them is that of
``SOURCE_DATE_EPOCH``, by default of the last commit.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# Where no commit tells: the first moment that a zip archive can name.
EARLIEST = 315532800


def epoch() -> int:
    """Return the seconds since 1970 that a build of this checkout carries."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(asked.stdout) if asked.returncode == 0 else EARLIEST


def build(out: Path, **environment: str) -> list[Path]:
    """Build the sdist, and the wheel out of it; return both, the wheel first."""
    now = epoch()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        # A build leaves lists behind, and takes files from lists that an earlier one has left.
        ignore = shutil.ignore_patterns(
            ".*", "*.egg-info", "build", "dist", "__pycache__", "_build"
        )
        shutil.copytree(ROOT, copy, ignore=ignore)
        _make("sdist", copy, out, now, environment)
    (sdist,) = out.glob("*.tar.gz")
    normalise(sdist, now)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        _make("wheel", unpacked, out, now, environment)
    (wheel,) = out.glob("*.whl")
    return [wheel, sdist]


def _make(kind: str, source: Path, out: Path, now: int, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source],
        check=True,
        stdout=subprocess.DEVNULL,
        umask=0o022,
        env={**os.environ, **environment, "SOURCE_DATE_EPOCH": str(now)},
    )


def normalise(sdist: Path, now: int) -> None:
    """Write an archive again with its members in order, of one time, one owner and two modes."""
    plain = io.BytesIO()
    with (
        tarfile.open(sdist) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.size, entry.mtime = member.type, member.size, now
            entry.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(entry, old.extractfile(member) if member.isfile() else None)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", 9, file, now) as packed:
        packed.write(plain.getvalue())


def build_twice(out: Path) -> list[Path]:
    """Build into a folder, and again elsewhere in another time zone; raise if a byte differs."""
    built = build(out)
    with tempfile.TemporaryDirectory() as folder:
        again = build(Path(folder), TZ="Pacific/Kiritimati", PYTHONHASHSEED="1")
        for one, other in zip(built, again, strict=True):
            if one.read_bytes() != other.read_bytes():
                raise SystemExit(f"{one.name}: built twice, the two differ")
    return built


def bill_of_materials(wheel: Path) -> dict[str, Any]:
    """Return the CycloneDX document of a wheel: itself, and what it needs, as installed here."""
    about, digest = wheel_metadata(wheel), hashlib.sha256(wheel.read_bytes()).hexdigest()
    needed = dict(_needed(about.get_all("Requires-Dist") or []))
    root = f"pkg:pypi/{about['Name'].replace('_', '-')}@{about['Version']}"
    names = {name: _purl(name) for name in needed}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch(), UTC).isoformat(),
            "component": {
                "type": "library",
                "bom-ref": root,
                "name": about["Name"],
                "version": about["Version"],
                "purl": root,
                "licenses": [{"expression": about["License-Expression"]}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
            },
        },
        "components": [_component(name, names[name]) for name in sorted(needed)],
        "dependencies": [
            {"ref": root, "dependsOn": sorted(names[n] for n in _direct(about))},
            *(
                {"ref": names[name], "dependsOn": sorted(names[n] for n in needs if n in names)}
                for name, needs in sorted(needed.items())
            ),
        ],
    }


def wheel_metadata(wheel: Path) -> Message:
    """Return the fields of a wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def _direct(about: Message) -> list[str]:
    return list(_names(about.get_all("Requires-Dist") or []))


def _names(requirements: list[str]) -> Iterator[str]:
    """Yield what is needed without extras, on this machine."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


def _needed(requirements: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield all packages that are needed, directly or not, each with what it needs itself."""
    left, seen = list(_names(requirements)), set[str]()
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            needs = list(_names(metadata.requires(name) or []))
            left += needs
            yield name, needs


def _purl(name: str) -> str:
    return f"pkg:pypi/{name}@{metadata.version(name)}"


def _component(name: str, purl: str) -> dict[str, Any]:
    about = metadata.metadata(name)
    component: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": name, "version": about["Version"], "purl": purl
    }  # fmt: skip
    if expression := about.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    return component


def main(out: Path) -> None:
    """Write wheel, sdist and bill of materials, and print their digests."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.whl"), *out.glob("*.tar.gz"), *out.glob("*.cdx.json")):
        old.unlink()
    built = build_twice(out)
    bill = out / "lowrank_opt.cdx.json"
    bill.write_text(json.dumps(bill_of_materials(built[0]), indent=1) + "\n", encoding="utf-8")
    for path in (*built, bill):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist"))
