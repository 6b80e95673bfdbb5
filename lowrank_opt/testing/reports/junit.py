"""The verdicts of a run as JUnit XML, as continuous integration reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from lowrank_opt.testing.reports.session import Session, Verdicts, environment
from lowrank_opt.testing.reports.text import fit_text
from lowrank_opt.testing.search.verdict import CheckResult


def junit_report(session: Session) -> str:
    """Return the verdicts as XML: a suite for each target, a case for each law.

    Broken laws are failures with the counter-example as text; laws that are not claimed or known
    not to hold are skipped, with the reason. Properties of a suite name the seed, the profile, the
    dtype and the versions.

    Parameters
    ----------
    session : Session

    Returns
    -------
    str
        XML with a declaration, UTF-8.
    """
    root = Element("testsuites", name="lowrank-opt verify")
    _count(root, session.verdicts, session.seconds)
    for verdicts in session.verdicts:
        root.append(_suite(session, verdicts))
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{body}\n"


def _suite(session: Session, verdicts: Verdicts) -> Element:
    stamp = datetime.fromtimestamp(session.started, UTC).replace(tzinfo=None)
    suite = Element(
        "testsuite",
        name=fit_text(verdicts.target.name),
        timestamp=stamp.isoformat(timespec="seconds"),
    )
    _count(suite, [verdicts], verdicts.seconds)
    properties = SubElement(suite, "properties")
    for name, value in _properties(session).items():
        SubElement(properties, "property", name=name, value=fit_text(value))
    for result in verdicts.results:
        suite.append(_case(verdicts.target.name, result))
    return suite


def _count(element: Element, verdicts: list[Verdicts], seconds: float) -> None:
    skipped = sum(v.count("skipped") + v.count("expected_failure") for v in verdicts)
    element.set("tests", str(sum(len(v.results) for v in verdicts)))
    element.set("failures", str(sum(len(v.broken) for v in verdicts)))
    element.set("errors", "0")
    element.set("skipped", str(skipped))
    element.set("time", f"{seconds:.3f}")


def _properties(session: Session) -> dict[str, str]:
    settings = session.settings
    own = {
        "seed": str(settings.seed),
        "profile": settings.profile,
        "dtype": str(settings.dtype),
        "interrupted": str(session.interrupted).lower(),
    }
    return own | environment(settings)


def _case(target: str, result: CheckResult) -> Element:
    case = Element(
        "testcase",
        classname=fit_text(target),
        name=result.check,
        time=f"{result.seconds:.3f}",
    )
    match result.status:
        case "failed":
            failure = SubElement(
                case, "failure", message=fit_text(result.message), type="BrokenLawError"
            )
            failure.text = fit_text(f"{result.statement}\n\n{result.code}\n")
        case "skipped":
            SubElement(case, "skipped", message=fit_text(result.message))
        case "expected_failure":
            SubElement(case, "skipped", message=fit_text(f"known not to hold: {result.message}"))
        case _:
            pass
    return case
