"""Tables of the pages are those of the records, number by number."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Pages that show a part of their record, columns of several tables side by side.
PARTLY = {
    "adapter-compiled.json",
    "adapter-cost.json",
    "adapter-network.json",
    "adapter-token.json",
}
PAGES = {
    "coverage.json": ["docs/results/coverage-by-group.md"],
    "federated.json": ["docs/results/federated.md"],
    "images.json": ["docs/results/images.md"],
    "optimum-sweep.json": ["docs/results/optimum-sweep.md"],
    "language-transfer-trec.json": ["docs/results/language-transfer.md"],
    "movielens.json": ["docs/results/movielens-100k.md", "README.md"],
    "peft-comparison.json": ["docs/results/peft-comparison.md"],
    "phase-transition.json": ["docs/results/phase-transition.md"],
    "ratings-bayes.json": ["docs/results/ordered-ratings.md"],
    "private-averages.json": ["docs/results/private-averages.md"],
    "spectral-rates.json": ["docs/results/spectral-rates.md"],
    "step-cost.json": ["docs/results/step-cost.md"],
    "tasks-in-sequence.json": ["docs/results/tasks-in-sequence.md"],
    "training-methods.json": ["docs/results/training-methods.md"],
    "vision-transfer.json": ["docs/results/vision-transfer.md"],
}


def tables(record: dict[str, Any]) -> Iterator[str]:
    for held in (record.get("table"), record.get("tables")):
        held = held.values() if isinstance(held, dict) else [held]
        yield from (text for text in held if isinstance(text, str))


def lines(text: str) -> set[tuple[str, ...]]:
    """Rows of Markdown tables without emphasis, headers left out: pages may word them."""
    bodies = re.findall(
        r"^\|(?: :?-+:? \|)+\n((?:\|.*(?:\n|$))+)", re.sub("[*`]", "", text), re.MULTILINE
    )
    rows = "".join(body if body.endswith("\n") else f"{body}\n" for body in bodies).splitlines()
    return {tuple(cell.strip() for cell in row.strip("| ").split("|")) for row in rows}


@pytest.mark.parametrize(
    ("record", "page"), [(record, page) for record, pages in PAGES.items() for page in pages]
)
def test_pages_show_their_record(record: str, page: str) -> None:
    held = json.loads((ROOT / "docs/_static" / record).read_text("utf-8"))
    asked = set().union(*(lines(text) for text in tables(held)))
    assert asked
    missing = asked - lines((ROOT / page).read_text("utf-8"))
    assert not missing, f"rows of {record} that {page} does not show"


def test_every_record_with_a_table_has_a_page() -> None:
    folder = ROOT / "docs/_static"
    records = {p.name: json.loads(p.read_text("utf-8")) for p in folder.glob("*.json")}
    assert {name for name, held in records.items() if any(tables(held))} - PARTLY == set(PAGES)
