"""Verdicts follow from records, and pages say what records say."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats

from experiments.claims import __main__ as command
from experiments.claims.figure import figure, in_words
from experiments.claims.finding import Effect, Finding, Verdict, gain, mean_interval
from experiments.claims.page import GROUPS, cpu_seconds, html, markdown, rows_of
from experiments.claims.ratings import coverage, rank_is_no_matter

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "docs" / "_static"
CLAIMS = [claim for claims in GROUPS.values() for claim in claims]


def verdict_of(*parts: bool | None) -> Verdict:
    beside = Effect("beside", 1.0, holds=True, beside=True)
    effects = (*(Effect("part", 1.0, holds=x) for x in parts), beside)
    return Finding(effects, "points", "").verdict


def test_verdicts_are_those_of_the_parts() -> None:
    assert Verdict.REPRODUCED == verdict_of(True, True)
    assert Verdict.REFINED == verdict_of(True, False) == verdict_of(True, None)
    assert Verdict.NOT_REPRODUCED == verdict_of(False, None) == verdict_of(False)
    assert Verdict.NOT_TESTABLE == verdict_of(None) == verdict_of()


def test_intervals_are_students() -> None:
    values = [0.3, -0.1, 0.7, 0.2]
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, low, high = mean_interval(values)
    assert (oracle.low, oracle.high) == pytest.approx((low, high))
    assert mean == pytest.approx(0.275)
    assert math.isnan(mean_interval([1.0])[1])


@pytest.mark.parametrize(
    ("shift", "holds"), [(2.0, True), (-2.0, False), (0.0, None), (-1.3, False)]
)
def test_a_gain_is_shown_refuted_or_undecided(shift: float, holds: bool | None) -> None:
    assert holds is gain("x", [shift + x for x in (-1.0, 0.0, 1.0, 0.5, -0.5)], telling=0.5).holds


@pytest.mark.parametrize("by", [1.0, -1.0])
def test_verdicts_follow_the_record(by: float) -> None:
    """Give one method another accuracy for every seed: its row moves by that, and no other."""
    claims = {c.name: c for c in CLAIMS if c.record == "training-methods.json"}
    record = json.loads((RECORDS / "training-methods.json").read_text("utf-8"))
    moved = copy.deepcopy(record)
    for run in moved["final"]:
        run["test_accuracy"] += by * (run["method"] == "LoRARite")
    before, after = ({n: c.measure(r) for n, c in claims.items()} for r in (record, moved))
    assert [n for n in claims if before[n] != after[n]] == ["lora-rite"]
    old, new = (x["lora-rite"] for x in (before, after))
    assert new.effects[0].value == pytest.approx(old.effects[0].value + 100 * by)
    assert (Verdict.REPRODUCED if by > 0 else Verdict.NOT_REPRODUCED) == new.verdict


@pytest.fixture(scope="module")
def pages() -> tuple[str, str]:
    return html(RECORDS), markdown(RECORDS, "alone.html")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_row_says_what_its_record_says(claim, pages) -> None:
    (row,) = rows_of(RECORDS, [claim])
    alone, page = pages
    section = re.search(rf'<section class="claim" id="{claim.name}">.*?</section>', alone, re.S)
    assert section is not None
    assert section[0] in page
    assert f">{row.finding.verdict}</span>" in section[0]
    for effect in row.finding.effects:
        if not effect.beside:
            assert f": {in_words(effect)}" in section[0]
    # Numbers without an interval say why.
    assert row.finding.interval in section[0].replace("&#x27;", "'")
    drawn = sum(math.isfinite(effect.value) for effect in row.finding.effects)
    assert drawn == figure(row.finding).count('class="label"')


def test_what_is_not_recorded_is_not_testable(tmp_path) -> None:
    assert {Verdict.NOT_TESTABLE} == {r.finding.verdict for r in rows_of(tmp_path, CLAIMS)}
    assert f"0 {Verdict.REPRODUCED}" in html(tmp_path)


def test_the_file_needs_nothing_else(tmp_path, capsys) -> None:
    class Asked(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "img", "iframe", "object")
            assert all(name != "src" for name, _ in attrs)

    assert 0 == command.main(["--out", str(tmp_path)])
    text = (tmp_path / "claims.html").read_text("utf-8")
    Asked().feed(text)
    assert "url(" not in text
    assert len(CLAIMS) + 2 == len(capsys.readouterr().out.splitlines())


def test_seconds_are_those_of_the_runs() -> None:
    assert 3.0 == cpu_seconds({"fits": [{"cpu_seconds": 1.0}, {"cpu_seconds": 2.0}]})
    assert 0.5 == cpu_seconds({"final": [{"cpu_ms": 50.0}], "settings": {"steps": 10}})
    assert cpu_seconds({"runs": [{"loss": 1.0}]}) is None


def cells(text: str) -> list[list[str]]:
    """Return the rows of the Markdown tables in a text, without marks."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bare = [re.sub(r"[*`]", "", line.strip("|")) for line in rows]
    return [[cell.strip() for cell in line.split("|")] for line in bare]


PAGES = {
    "training-methods": "training-methods",
    "federated": "federated",
    "intruders": "intruder-dimensions",
    "images": "images",
    "phase-transition": "phase-transition",
    "private-averages": "private-averages",
    "spectral-rates": "spectral-rates",
    "step-cost": "step-cost",
    "tasks-in-sequence": "tasks-in-sequence",
    "peft-comparison": "peft-comparison",
    "vision-transfer": "vision-transfer",
}


@pytest.mark.parametrize("name", PAGES)
def test_tables_of_pages_are_those_of_records(name: str) -> None:
    record = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
    page = cells((ROOT / "docs" / "results" / f"{PAGES[name]}.md").read_text("utf-8"))
    parts = record.get("tables", {k: record.get(k, "") for k in ("table", "sweep", "changes")})
    rows = [row for text in parts.values() for row in cells(text)[2:]]
    assert rows
    assert [] == [row for row in rows if row not in page]


def test_coverage_is_counted_by_group() -> None:
    runs = [
        {"data": "a", "solver": "s", "seed": k, "group": g, "inside": n, "of": 100}
        for g, counts in (("few", (90, 91)), ("new users", (80, 82)))
        for k, n in enumerate(counts)
    ]
    found = coverage({"settings": {"coverage": 0.9, "seeds": 2}, "runs": runs})
    assert [("a, s, few", 90.5, True), ("a, s, new users", 81.0, False)] == [
        (e.label, e.value, e.holds) for e in found.effects
    ]
    assert Verdict.REFINED == found.verdict


@pytest.mark.parametrize(("gap", "verdict"), [(1e-5, "reproduced"), (1e-2, "not testable here")])
def test_only_proved_optima_are_compared(gap: float, verdict: str) -> None:
    points = [(5, 100.0, 0.95, gap), (20, 100.0, 0.9505, 1e-5), (5, 200.0, 0.7, 0.5)]
    curve = [dict(zip(("rank", "radius", "rmse", "gap"), x, strict=True)) for x in points]
    assert verdict == rank_is_no_matter({"asked_gap": 1e-4, "curve": curve}).verdict
