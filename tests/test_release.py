"""What a release consists of is the same whenever it is made, and names what it needs."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.release import bill_of_materials, build, normalise, wheel_metadata


def archive(path: Path, members: list[tuple[str, int, int]]) -> Path:
    """Write an archive of empty files, each with a name, a time and a mode."""
    with tarfile.open(path, "w:gz") as out:
        for name, time, mode in members:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode, entry.uid, entry.uname = time, mode, time, str(time)
            out.addfile(entry)
    return path


def test_archives_differ_by_what_is_in_them_only(tmp_path: Path) -> None:
    one = archive(tmp_path / "one.tar.gz", [("a/x", 5, 0o600), ("a/b", 7, 0o644)])
    other = archive(tmp_path / "other.tar.gz", [("a/b", 1, 0o640), ("a/x", 2, 0o666)])
    assert one.read_bytes() != other.read_bytes()
    for path in (one, other):
        normalise(path, 1_000_000_000)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_bill_names_what_the_wheel_needs(tmp_path: Path) -> None:
    wheel, sdist = build(tmp_path)
    bill = bill_of_materials(wheel)
    about = wheel_metadata(wheel)
    names = {component["name"] for component in bill["components"]}
    assert {"torch", "numpy", "numba", "llvmlite", "markupsafe"} <= names
    assert not {"pytest", "matplotlib", "pandas"} & names
    assert about["Version"] == bill["metadata"]["component"]["version"]
    known = {c["bom-ref"] for c in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    for line in bill["dependencies"]:
        assert {line["ref"], *line["dependsOn"]} <= known
    assert bill == json.loads(json.dumps(bill))
    assert sdist.name.endswith(".tar.gz")
