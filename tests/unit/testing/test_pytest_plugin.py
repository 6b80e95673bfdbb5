"""``pytest --lowrank-verify``: laws as tests, in folders without a test."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lowrank_opt.testing import LAWS
from lowrank_opt.testing.reports import pytest_plugin

# Imported here, or each run inside this process would import and forget it.
assert pytest_plugin.LawItem
pytest_plugins = ("pytester",)

SOURCE = """
import warnings
import lowrank_opt as lo

class Right(lo.HomogeneousBall):
    def __init__(self, shape, rank, *, radius=1.0, dtype=None):
        super().__init__(shape, rank, radius=radius, dtype=dtype)

class Wrong(Right):
    def factors(self):
        return 1.01 * super().factors()

class Warns(Right):
    def factors(self):
        warnings.warn("at every call")
        return super().factors()
"""
FEW = tuple(law for law in LAWS if law.name in ("contract", "membership", "zero_start"))
QUICK = ("--lowrank-profile", "quick", "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def module(pytester, monkeypatch) -> None:
    """A module beside which pytest is run, and few laws."""
    pytester.makepyfile(plugged=SOURCE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "plugged", raising=False)
    monkeypatch.setattr("lowrank_opt.testing.subjects.targets.LAWS", FEW)


def laws_of(pytester, *words: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*QUICK, *words)


def test_one_test_for_each_law(pytester) -> None:
    result = laws_of(pytester, "--lowrank-verify", "plugged:Right", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*collected 3 items", "*plugged:Right::membership PASSED*"])


def test_failure_says_what_was_found_and_shows_a_program(pytester) -> None:
    result = laws_of(pytester, "--lowrank-verify", "plugged:Wrong", "-k", "membership")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        [
            "W leaves SchattenBall(p=1.0, radius=1.0, rank=1) by *",
            "*law: W is in the declared set*",
            "*--lowrank-seed 0",
            "*from plugged import Wrong",
            "FAILED plugged:Wrong::membership - W leaves*",
        ]
    )


def test_arguments_options_and_several_targets(pytester) -> None:
    words = ("--lowrank-verify", "plugged:Right(radius=3.0)", "--lowrank-verify", "plugged:Right")
    options = ("--lowrank-dtype", "float32", "--lowrank-seed", "4", "--collect-only", "-q")
    result = laws_of(pytester, *words, *options)
    result.stdout.fnmatch_lines(["plugged:Right(radius=3.0)::contract", "plugged:Right::contract"])


def test_first_failure_stops(pytester) -> None:
    result = laws_of(pytester, "--lowrank-verify", "plugged:Wrong", "-x")
    result.assert_outcomes(passed=1, failed=1)


def test_unclaimed_and_expected_failures(pytester) -> None:
    known = "membership=too large by design"
    words = ("--lowrank-verify", "plugged:Wrong", "--lowrank-expected-failures", known, "-rx")
    result = laws_of(pytester, *words)
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *too large by design (W leaves*"])


def test_warnings_break_no_law(pytester) -> None:
    result = laws_of(pytester, "--lowrank-verify", "plugged:Warns", "-W", "error")
    result.assert_outcomes(passed=3)


def test_on_the_command_line_only_laws_run(pytester) -> None:
    pytester.makepyfile(test_other="def test_other(): assert False")
    laws_of(pytester, "--lowrank-verify", "plugged:Right").assert_outcomes(passed=3)


def test_with_files_laws_are_added(pytester) -> None:
    pytester.makepyfile(test_other="def test_other(): pass")
    result = laws_of(pytester, "--lowrank-verify", "plugged:Right", "test_other.py")
    result.assert_outcomes(passed=4)


def test_from_a_configuration_file_laws_are_added(pytester) -> None:
    pytester.makepyfile(test_other="def test_other(): pass")
    pytester.makeini("[pytest]\naddopts = --lowrank-verify plugged:Right")
    laws_of(pytester).assert_outcomes(passed=4)


def test_junit_has_the_seed(pytester) -> None:
    laws_of(pytester, "--lowrank-verify", "plugged:Wrong", "--junitxml", "r.xml")
    root = ElementTree.parse(pytester.path / "r.xml").getroot()
    case = root.find(".//testcase[@name='membership']")
    assert "plugged:Wrong" == case.get("classname")
    assert "W leaves" in case.find("failure").get("message")
    assert {"seed", "examples"} == {p.get("name") for p in case.find("properties")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plugged:Rihgt"], "*plugged has no 'Rihgt'; did you mean 'Right'?"),
        (["nowhere:A"], "*there is no module 'nowhere'*"),
        (["plugged:Right", "--lowrank-expected-failures", "rank"], "*must be law=reason*"),
    ],
)
def test_wrong_targets_are_usage_errors(pytester, words, message) -> None:
    result = laws_of(pytester, "--lowrank-verify", *words)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_without_the_option_nothing_is_collected(pytester) -> None:
    pytester.makepyfile(test_other="def test_other(): pass")
    laws_of(pytester).assert_outcomes(passed=1)


def test_options_import_neither_torch_nor_hypothesis() -> None:
    # Read from its file: the options must not need the package.
    spec = importlib.util.find_spec("_lowrank_opt_pytestplugin")
    script = (
        "import sys, _lowrank_opt_pytestplugin\n"
        "print([m for m in ('torch', 'hypothesis', 'lowrank_opt', 'pytest') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(spec.origin).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "[]" == run.stdout.strip()


@pytest.mark.slow
def test_works_under_xdist(pytester) -> None:
    # One other process; that two agree is tested with ``lowrank-opt verify --jobs``.
    words = ("--lowrank-verify", "plugged:Wrong", "-n", "1", "-k", "membership or contract")
    laws_of(pytester, *words).assert_outcomes(passed=1, failed=1)
