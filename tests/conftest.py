"""Shared by all tests: hypothesis profiles and the places of real data."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from problems._download import cache_folder
from tests import grouplens

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def places() -> list[Path]:
    """Where data may lie: where the library looks, and a folder beside this repository."""
    named = os.environ.get("LOWRANK_OPT_DATA")
    folders = [Path(named).expanduser(), Path(named).expanduser().parent] if named else []
    return [*folders, ROOT.parent / "shared" / "data", cache_folder()]


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """Path of all ratings of ML-100K, as `problems.movielens.load` takes it."""
    for place in places():
        folder, archive = place / "ml-100k", place / "ml-100k.zip"
        if any((folder / name).is_file() for name in ("u.data", "ml-100k.inter")):
            return folder
        if archive.is_file():
            return archive
    pytest.skip("no ML-100K: run make movielens, or set LOWRANK_OPT_DATA to a folder with ml-100k/")


@pytest.fixture(scope="session")
def grouplens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that contains GroupLens' ``ml-100k/`` with all its files."""
    for place in places():
        if (place / "ml-100k" / "u1.base").is_file():
            return place
        if (place / "ml-100k.zip").is_file():
            folder = tmp_path_factory.mktemp("movielens")
            shutil.unpack_archive(place / "ml-100k.zip", folder)
            return folder
    pytest.skip("no archive of ML-100K: set LOWRANK_OPT_DATA to a folder that contains ml-100k/")


@pytest.fixture(scope="session")
def ml_100k_lines(ml_100k: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Lines of u.data, of any of the places that it comes in."""
    folder = ml_100k
    if ml_100k.suffix == ".zip":
        folder = tmp_path_factory.mktemp("archive")
        shutil.unpack_archive(ml_100k, folder)
        folder = folder / "ml-100k"
    plain, wheel = folder / "u.data", folder / "ml-100k.inter"
    if plain.is_file():
        return plain.read_text().splitlines(keepends=True)
    return wheel.read_text().splitlines(keepends=True)[1:]


@pytest.fixture(scope="session")
def movielens_data(ml_100k_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that contains ``ml-100k/``: GroupLens' own, or one with the splits cut as it does."""
    for place in places():
        if (place / "ml-100k" / "u1.base").is_file():
            return place
    folder = tmp_path_factory.mktemp("movielens")
    grouplens.write_splits(ml_100k_lines, folder / "ml-100k")
    return folder


@pytest.fixture(scope="session")
def ml_1m() -> Path:
    """Path of ML-1M, as `problems.movielens.load` takes it."""
    for place in places():
        for path in (place / "ml-1m", place / "ml-1m.zip"):
            if path.exists():
                return path
    pytest.skip("no ML-1M: set LOWRANK_OPT_DATA to a folder that contains ml-1m/")


@pytest.fixture(scope="session")
def goodbooks_file() -> Path:
    """Path of the ratings of Goodbooks."""
    for place in places():
        if (place / "goodbooks" / "ratings.csv").is_file():
            return place / "goodbooks" / "ratings.csv"
    pytest.skip("no Goodbooks: set LOWRANK_OPT_DATA to a folder with goodbooks/ratings.csv")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many of the planted defects that were tried have been caught."""
    outcomes = {
        outcome: sum("catches_defect" in r.nodeid for r in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed")
    }
    tried = sum(outcomes.values())
    if tried:
        terminalreporter.write_line(f"planted defects caught: {outcomes['passed']} of {tried}")
