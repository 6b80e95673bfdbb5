"""Shared by all tests: hypothesis profiles and the place of the real MovieLens data."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def movielens_data() -> Path:
    """Folder that contains ``ml-100k/``, with the official splits, and perhaps ``ml-1m/``."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    named = os.environ.get("LOWRANK_OPT_DATA")
    folders = [Path(named).expanduser(), Path(named).expanduser().parent] if named else []
    for folder in [*folders, beside]:
        if (folder / "ml-100k" / "u1.base").is_file():
            return folder
    pytest.skip("no MovieLens data: set LOWRANK_OPT_DATA to a folder that contains ml-100k/")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many of the planted defects that were tried have been caught."""
    outcomes = {
        outcome: sum("catches_defect" in r.nodeid for r in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed")
    }
    tried = sum(outcomes.values())
    if tried:
        terminalreporter.write_line(f"planted defects caught: {outcomes['passed']} of {tried}")
