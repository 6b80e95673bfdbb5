"""The verdicts of a run as one HTML file that needs nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from lowrank_opt.testing.reports.session import Session, Verdicts, environment
from lowrank_opt.testing.reports.style import SCRIPT, STYLE
from lowrank_opt.testing.reports.text import fit_text
from lowrank_opt.testing.search.verdict import CheckResult, Status

_WORDS: dict[Status, str] = {
    "passed": "holds",
    "failed": "broken",
    "skipped": "not claimed",
    "expected_failure": "known not to hold",
}
_PLURALS: dict[Status, str] = {"passed": "hold"}


def html_report(session: Session) -> str:
    """Return the verdicts as a page: the sums, the laws, each counter-example as a program.

    Style and script are inside, light or dark as the reader's system; text of the class under
    test (names, messages, code) is escaped.

    Parameters
    ----------
    session : Session

    Returns
    -------
    str
        An HTML document, UTF-8.
    """
    title = _title(session)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        _summary(session),
        *(_section(index, verdicts) for index, verdicts in enumerate(session.verdicts)),
        _environment(session),
        "</main>",
        f"<script>{SCRIPT}</script>",
        "</body>",
        "</html>",
    ]
    return fit_text("\n".join(parts) + "\n")


def _title(session: Session) -> str:
    return f"{_name(session)}: {_outcome(session)}"


def _name(session: Session) -> str:
    names = [v.target.name for v in session.verdicts]
    return names[0] if len(names) == 1 else f"{len(names)} parameterizations"


def _outcome(session: Session) -> str:
    broken = session.count("failed")
    if broken:
        return f"{broken} {'law is' if broken == 1 else 'laws are'} broken"
    return "interrupted" if session.interrupted else "every law holds that is claimed"


def _summary(session: Session) -> str:
    mark = "failed" if session.count("failed") else "skipped" if session.interrupted else "passed"
    counts = [
        f'<li class="{status}"><strong>{session.count(status)}</strong> {word}</li>'
        for status, word in (_WORDS | _PLURALS).items()
    ]
    settings = session.settings
    dtype = str(settings.dtype).removeprefix("torch.")
    rows = [
        f"<h1>{escape(_name(session))}</h1>",
        f'<p class="outcome {mark}">{_outcome(session)}</p>',
        f'<ul class="counts">{"".join(counts)}</ul>',
        f"<p>Profile {settings.profile}, {dtype} on {escape(settings.device)}, "
        f"seed <code>{settings.seed}</code>, {session.seconds:.1f} s. "
        "The same seed repeats the same examples.</p>",
    ]
    if session.interrupted:
        tried = sum(len(v.results) for v in session.verdicts)
        rows.append(f"<p>Interrupted after {tried} laws; the others were not tried.</p>")
    return "\n".join(["<header>", *rows, _contents(session), "</header>"])


def _contents(session: Session) -> str:
    """Return links to the targets, for a report on many."""
    if len(session.verdicts) < 2:
        return ""
    lines = [
        f'<tr><td><a href="#target-{index}">{escape(v.target.name)}</a></td>'
        f"<td>{v.count('passed')}</td><td>{_broken_links(index, v)}</td></tr>"
        for index, v in enumerate(session.verdicts)
    ]
    head = "<thead><tr><th>target</th><th>hold</th><th>broken</th></tr></thead>"
    return _table(head, lines)


def _broken_links(index: int, verdicts: Verdicts) -> str:
    links = (
        f'<a class="failed" href="#law-{index}-{escape(r.check)}">{escape(r.check)}</a>'
        for r in verdicts.broken
    )
    return ", ".join(links) or "none"


def _section(index: int, verdicts: Verdicts) -> str:
    head = "<thead><tr><th>law</th><th>verdict</th><th>examples</th><th>time</th></tr></thead>"
    lines = [_line(index, result) for result in verdicts.results]
    failures = [_failure(index, result) for result in verdicts.broken]
    name = escape(verdicts.target.name)
    title = f'<h2 id="target-{index}"><code>{name}</code></h2>'
    return "\n".join(["<section>", title, _table(head, lines), *failures, "</section>"])


def _table(head: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _line(index: int, result: CheckResult) -> str:
    name = escape(result.check)
    if result.status == "failed":
        name = f'<a href="#law-{index}-{name}">{name}</a>'
    note = f'<div class="note">{escape(result.message)}</div>' if result.message else ""
    return (
        f"<tr><td><strong>{name}</strong>"
        f'<div class="note">{escape(result.statement)}</div></td>'
        f'<td><span class="badge {result.status}">{_WORDS[result.status]}</span>{note}</td>'
        f'<td class="number">{result.examples}</td>'
        f'<td class="number">{result.seconds:.2f} s</td></tr>'
    )


def _failure(index: int, result: CheckResult) -> str:
    """Return the counter-example of a broken law, with a button that copies it."""
    place = f"law-{index}-{escape(result.check)}"
    return "\n".join(
        [
            f'<article class="failure" id="{place}">',
            f'<h3><span class="badge failed">broken</span> {escape(result.check)}</h3>',
            f"<p>{escape(result.statement)}</p>",
            f'<p class="found">{escape(result.message)}</p>',
            f'<div class="bar"><span>smallest counter-example, seed {result.seed}</span>'
            f'<button type="button" data-copy="{place}-code">copy</button></div>',
            f'<pre id="{place}-code"><code>{escape(result.code)}</code></pre>',
            "</article>",
        ]
    )


def _environment(session: Session) -> str:
    stamp = datetime.fromtimestamp(session.started, UTC).isoformat(timespec="seconds")
    rows = {"started": stamp, **environment(session.settings)}
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items()
    )
    return f"<footer><h2>Environment</h2><dl>{items}</dl></footer>"
