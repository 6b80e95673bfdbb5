"""What a new piece costs: the changes of the page apply, run, and stay as small as it says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.preloaded import ROOT, run_script

PAGE = (ROOT / "docs/how-to/add-to-the-package.md").read_text(encoding="utf-8")
CHANGES = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = re.findall(r"^```\{code-block\} python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# Lines, and files of the package, that a piece may cost.
MOST = {
    "parameterization": (60, 2),
    "set": (30, 2),
    "solver": (30, 1),
    "loss": (30, 1),
    "law": (12, 1),
    "layer kind": (12, 0),
    "command": (40, 1),
    "reader": (30, 1),
}
PIECES = list(zip(MOST, CHANGES, PROGRAMS, strict=True))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package that has all the changes."""
    folder = tmp_path_factory.mktemp("added")
    # Compiled modules too, which belong to files of the same age.
    shutil.copytree(ROOT / "lowrank_opt", folder / "lowrank_opt")
    for change in CHANGES:
        applied = subprocess.run(
            ["git", "apply", "--unidiff-zero", "-"],
            cwd=folder,
            input=change,
            text=True,
            capture_output=True,
            check=False,
            # Inside a checkout, git would take the paths from its top.
            env={"GIT_CEILING_DIRECTORIES": str(folder.parent), "PATH": "/usr/bin:/bin"},
        )
        assert applied.returncode == 0, applied.stderr
    return folder


@pytest.mark.parametrize(("piece", "program"), [(x, z) for x, _, z in PIECES], ids=list(MOST))
def test_the_change_runs(piece: str, program: str, package: Path) -> None:
    script = package / f"{piece.replace(' ', '_')}_program.py"
    script.write_text(program, encoding="utf-8")
    run = run_script(script, folder=package)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("piece", "change", "program"), PIECES, ids=list(MOST))
def test_the_change_is_as_small_as_promised(piece: str, change: str, program: str) -> None:
    added = [x for x in change.splitlines() if x.startswith("+") and not x.startswith("+++")]
    files = [x for x in change.splitlines() if x.startswith("+++ b/lowrank_opt/")]
    assert (len(added) <= MOST[piece][0], len(files) <= MOST[piece][1]) == (True, True)


def test_the_program_needs_the_change(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[0], encoding="utf-8")
    run = run_script(script, folder=tmp_path)
    assert "cannot import name 'MaxBall'" in run.stderr
