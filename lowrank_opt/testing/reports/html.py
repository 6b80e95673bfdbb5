"""The verdicts of a run as one HTML file that needs nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

from lowrank_opt.testing.reports.session import Session, environment
from lowrank_opt.testing.reports.style import PAGE, SCRIPT, STYLE
from lowrank_opt.testing.reports.text import fit_text
from lowrank_opt.testing.search.verdict import Status

_WORDS: dict[Status, str] = {
    "passed": "holds",
    "failed": "broken",
    "skipped": "not claimed",
    "expected_failure": "known not to hold",
}


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
    import jinja2

    started = datetime.fromtimestamp(session.started, UTC).isoformat(timespec="seconds")
    names = [v.target.name for v in session.verdicts]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(PAGE).render(
        session=session,
        name=names[0] if len(names) == 1 else f"{len(names)} parameterizations",
        outcome=_outcome(session),
        mark=_mark(session),
        words=_WORDS,
        dtype=str(session.settings.dtype).removeprefix("torch."),
        environment={"started": started, **environment(session.settings)},
        style=STYLE,
        script=SCRIPT,
    )
    return fit_text(text)


def _outcome(session: Session) -> str:
    broken = session.count("failed")
    if broken:
        return f"{broken} {'law is' if broken == 1 else 'laws are'} broken"
    return "interrupted" if session.interrupted else "every law holds that is claimed"


def _mark(session: Session) -> Status:
    if session.count("failed"):
        return "failed"
    return "skipped" if session.interrupted else "passed"
