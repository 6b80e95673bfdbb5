"""The benchmarks by revision: what they time, the record they keep, the page they write."""

import json

import pytest

from experiments import benchmarks
from experiments.benchmark_cases import CASES, measured


@pytest.mark.parametrize("name", CASES)
def test_case_runs(name) -> None:
    low, middle, high = measured(CASES[name], turns=2, seconds=0.0)
    assert 0 < low <= middle <= high


@pytest.fixture
def instant(monkeypatch):
    found = {name: [1.0, 2.0, 3.5] for name in CASES} | {"completion, 20 iterations": None}
    monkeypatch.setattr(benchmarks, "timed", lambda *_: found)


def run(folder, *words):
    assert 0 == benchmarks.main([*words, "--out", str(folder)])
    record = json.loads((folder / "benchmarks.json").read_text("utf-8"))
    return record["runs"], (folder / "benchmarks.md").read_text("utf-8")


@pytest.fixture
def two_revisions(monkeypatch):
    facts = {
        "old": ("aaa", "2026-01-02"),
        "new": ("bbb", "2026-02-03"),
        "HEAD": ("bbb", "2026-02-03"),
    }
    parts = {"rev-parse": 0, "show": 1}
    monkeypatch.setattr(benchmarks, "git", lambda *words: facts[words[-1]][parts[words[0]]])
    monkeypatch.setattr(benchmarks, "checked_out", lambda revision: _Folder())


class _Folder:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.usefixtures("instant", "two_revisions")
def test_a_revision_is_kept_once_and_in_order(tmp_path) -> None:
    runs, _ = run(tmp_path, "new")
    runs, page = run(tmp_path, "old", "new")
    assert ["aaa", "bbb"] == [x["revision"] for x in runs]
    assert page.index("`aaa`<br>2026-01-02") < page.index("`bbb`<br>2026-02-03")
    assert "| completion, 20 iterations | - | - |" in page
    assert "2<br>1 .. 3.5" in page


@pytest.mark.usefixtures("instant", "two_revisions")
def test_files_at_hand_are_said_to_be_changed(tmp_path) -> None:
    runs, _ = run(tmp_path, "--profile", "smoke")
    assert ["bbb + changes"] == [x["revision"] for x in runs]
    assert runs[0]["turns"] == benchmarks.PROFILES["smoke"][0]


def test_what_git_does_not_know_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"error: git rev-parse .* failed"):
        benchmarks.git("rev-parse", "--verify", "no-such-revision")
