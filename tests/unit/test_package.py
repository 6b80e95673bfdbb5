"""What the package says of itself: its names, its version, its command."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import lowrank_opt as lo
from lowrank_opt.cli import main
from tests.preloaded import ROOT, run_script

NAMES = Path(lo.__file__).with_name("_names.py")


def imported(source: str) -> set[str]:
    """Return the names that a module imports."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def test_all_public_names_are_listed() -> None:
    assert sorted({*imported(NAMES.read_text("utf-8")), "__version__"}) == sorted(lo.__all__)


def test_listed_names_are_there_once() -> None:
    assert len(set(lo.__all__)) == len(lo.__all__)
    assert all(hasattr(lo, name) for name in lo.__all__)


def test_version_is_that_of_the_citation() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert lo.__version__ == re.search(r"^version: (\S+)$", citation, re.MULTILINE).group(1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "lowrank_opt.__version__" == project["tool"]["setuptools"]["dynamic"]["version"]["attr"]


def test_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert 0 == stopped.value.code
    assert f"lowrank-opt {lo.__version__}\n" == capsys.readouterr().out


def test_python_m_is_the_command(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import runpy, sys\n"
        "sys.argv = ['lowrank_opt', '--version']\n"
        "runpy.run_module('lowrank_opt', run_name='__main__', alter_sys=True)\n",
        encoding="utf-8",
    )
    run = run_script(script, folder=tmp_path)
    assert (0, f"lowrank-opt {lo.__version__}\n") == (run.returncode, run.stdout), run.stderr
