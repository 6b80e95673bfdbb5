"""The page of claims, made of records: as Markdown for the documentation, and as one HTML file."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from experiments.claims.adapters import TRAINING
from experiments.claims.comparison import COMPARISON
from experiments.claims.figure import figure, in_words
from experiments.claims.finding import Claim, Finding, Record, Verdict
from experiments.claims.forgetting import FORGETTING
from experiments.claims.language import LANGUAGE
from experiments.claims.models import COMPLETION, COST, FEDERATED
from experiments.claims.privacy import PRIVACY
from experiments.claims.ratings import RATINGS
from experiments.claims.transfer import TRANSFER

GROUPS: Mapping[str, Sequence[Claim]] = {
    "Training methods": TRAINING,
    "Forgetting": FORGETTING,
    "Adapting to another task": (*TRANSFER, *LANGUAGE, *COMPARISON),
    "Federated averages": (*FEDERATED, *PRIVACY),
    "Completion": (*COMPLETION, *RATINGS),
    "Cost": COST,
}
TITLE = "Claims and what became of them"
INTRODUCTION = (
    "Each row is one claim. Verdict, effect and figure are computed from the record that the row "
    "names, when this page is built.",
    "A part of a claim holds where its 95 % interval lies on the claimed side, or where the limit "
    "that is stated is kept. It does not where the interval has no gain in it that would tell: two "
    "points of accuracy, a twentieth of a loss, or what the row says. Else it is undecided. A "
    "claim is *reproduced* if all of its parts hold, *refined* if some do, *not reproduced* if "
    "none does and one is decided, and *not testable here* if none is decided or nothing is "
    "recorded. Intervals are not widened for the number of claims: of twenty methods without an "
    "effect, one looks as if it had one.",
    "The tasks are small and say how a method does at that size. In the figures a disc is a part "
    "that holds, a square one that does not; a ring is undecided, or there for comparison.",
)
STYLE = """
.claims section.claim { border-top: 1px solid; padding: .8rem 0; break-inside: avoid;
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
  gap: .3rem 1.5rem; }
.claims section.claim > * { min-width: 0; overflow-wrap: anywhere; }
.claims section.claim h3 { margin: 0; padding: 0; font-size: 1.05em; }
.claims dl { margin: .4rem 0 0; display: grid; grid-template-columns: max-content 1fr;
  gap: .1rem .7rem; font-size: .92em; }
.claims dt { font-weight: 600; } .claims dd { margin: 0; min-width: 0; }
.claims p { margin: 0; }
.claims .verdict { display: inline-block; border: 2px solid; border-radius: .3rem;
  padding: 0 .45rem; font-weight: 600; }
.claims .reproduced { border-color: #0a8f63; } .claims .refined { border-color: #b58900; }
.claims .not-reproduced { border-color: #d0561b; }
.claims .not-testable-here { border-color: #8a8a8a; }
.claims svg.effects { width: 100%; max-width: 26rem; height: auto; overflow: visible; }
.claims svg .label { font-size: 12px; }
.claims code { overflow-wrap: anywhere; white-space: normal; }
"""
# For the file that stands alone: the browser's own colours, light or dark.
ALONE = """
:root { color-scheme: light dark; }
body { background: Canvas; color: CanvasText; margin: 0 auto; padding: 1rem; max-width: 60rem;
  font: 16px/1.5 system-ui, sans-serif; }
a { color: LinkText; }
@media print { body { font-size: 10pt; max-width: none; } }
"""


@dataclass(frozen=True)
class Row:
    """A claim, what was found, and the record that says so, if there is one."""

    claim: Claim
    finding: Finding
    record: Record | None


def rows_of(records: Path, claims: Sequence[Claim]) -> list[Row]:
    """Return what the records in a folder say of claims; a record that is missing says nothing."""
    rows: list[Row] = []
    for claim in claims:
        path = records / claim.record
        if not path.exists():
            rows.append(Row(claim, Finding((), "", "nothing is recorded"), None))
            continue
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        rows.append(Row(claim, claim.measure(record), record))
    return rows


def cpu_seconds(record: Record) -> float | None:
    """Return the CPU seconds of all runs of a record, or None if it does not tell them."""
    if "cpu_seconds" in record:
        return float(record["cpu_seconds"])
    runs = [run for part in record.values() if isinstance(part, list) for run in _mappings(part)]
    if all("cpu_seconds" in run for run in runs) and runs:
        return sum(float(run["cpu_seconds"]) for run in runs)
    timed = [float(run["cpu_ms"]) for run in runs if "cpu_ms" in run]
    if timed and "steps" in record.get("settings", {}):
        return sum(timed) * record["settings"]["steps"] / 1000
    return None


def _mappings(part: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [x for x in part if isinstance(x, Mapping)]


def cost(record: Record) -> str:
    """Return what a record cost, and on what."""
    known = record["environment"]
    seconds = cpu_seconds(record)
    spent = "CPU time not recorded" if seconds is None else f"{seconds / 60:.3g} CPU minutes"
    versions = f"Python {known['python']}, torch {known['packages']['torch']}"
    return f"{spent}; {known['processor']}, {versions}, revision {known['revision']}"


def markdown(records: Path, alone: str) -> str:
    """Return the page for the documentation.

    Parameters
    ----------
    records : Path
        Folder of the records.
    alone : str
        Link to the page that stands alone.
    """
    groups = {name: rows_of(records, claims) for name, claims in GROUPS.items()}
    parts = [f"# {TITLE}", _raw(f"<style>{STYLE}</style>"), *INTRODUCTION, _counted(groups)]
    parts.append(_raw(f'<p><a href="{alone}">The same as one file</a>, to keep or print.</p>'))
    for name, rows in groups.items():
        parts += [f"## {name}", _raw(_group(rows))]
    return "\n\n".join(parts) + "\n"


def html(records: Path) -> str:
    """Return the page that stands alone: no script, no other file, no network."""
    groups = {name: rows_of(records, claims) for name, claims in GROUPS.items()}
    told = [re.sub(r"\*([^*]+)\*", r"<em>\1</em>", escape(x)) for x in INTRODUCTION]
    body = "".join(f"<p>{x}</p>" for x in (*told, _counted(groups)))
    for name, rows in groups.items():
        body += f"<h2>{escape(name)}</h2>{_group(rows)}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{ALONE}{STYLE}</style></head>"
        f"<body><article><h1>{TITLE}</h1>{body}</article></body></html>\n"
    )


def _counted(groups: Mapping[str, Sequence[Row]]) -> str:
    found = Counter(row.finding.verdict for rows in groups.values() for row in rows)
    return f"Of {found.total()} claims: " + ", ".join(f"{found[v]} {v}" for v in Verdict) + "."


def _raw(text: str) -> str:
    return f"```{{raw}} html\n{text}\n```"


def _group(rows: Sequence[Row]) -> str:
    return '<div class="claims">' + "".join(_section(row) for row in rows) + "</div>"


def _section(row: Row) -> str:
    claim, finding = row.claim, row.finding
    verdict = finding.verdict
    badge = f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'
    terms = {"Source": linked(claim.source), "Effect": _effects(finding)}
    terms["Interval"] = escape(finding.interval)
    terms["Repeat"] = f"<code>{escape(claim.command)}</code>"
    if row.record is not None:
        terms["Cost"] = f"{escape(cost(row.record))} (<code>{escape(claim.record)}</code>)"
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in terms.items() if text)
    drawn = figure(finding)
    caption = f"<p><small>{escape(finding.unit)}</small></p>" if drawn else ""
    return (
        f'<section class="claim" id="{claim.name}"><div><h3>{_code(claim.text)}</h3>{badge}'
        f"<dl>{listed}</dl></div><div>{drawn}{caption}</div></section>"
    )


def _effects(finding: Finding) -> str:
    lines = [f"{escape(e.label)}: {in_words(e)}" for e in finding.effects if not e.beside]
    return "<br>".join([*lines, *([escape(finding.remark)] if finding.remark else [])])


def linked(source: str) -> str:
    """Return a source with its arXiv numbers as links.

    Examples
    --------
    >>> linked("2106.09685")
    '<a href="https://arxiv.org/abs/2106.09685">2106.09685</a>'
    """
    return re.sub(
        r"\d{4}\.\d{5}", r'<a href="https://arxiv.org/abs/\g<0>">\g<0></a>', escape(source)
    )


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
