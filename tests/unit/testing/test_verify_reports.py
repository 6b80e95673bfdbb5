"""Reports of a run: well-formed, escaped, complete; counter-examples that run."""

import re
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import lowrank_opt as lo
from lowrank_opt.testing import LAWS, BrokenLawError, Case, FreeParameters
from lowrank_opt.testing.reports.html import html_report
from lowrank_opt.testing.reports.pytest_plugin import Settings
from lowrank_opt.testing.reports.session import Session, Verdicts, run
from lowrank_opt.testing.search.describe import describe
from lowrank_opt.testing.search.expressions import expression
from lowrank_opt.testing.search.simpler import simpler_cases
from lowrank_opt.testing.subjects.targets import Target
from tests.property import broken, broken_state

LAW_OF = {law.name: law for law in LAWS}
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Hostile(lo.Factored):
    """Says things that markup must not believe."""

    def factors(self):
        raise ValueError("</code><script>alert('\x01')</script> & \"quoted\" ]]> \ud800")


class Silent:
    def finished(self, target, result) -> None: ...


@pytest.fixture(scope="module")
def junit(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reports") / "report.xml"


@pytest.fixture(scope="module")
def report(session, junit) -> ElementTree.Element:
    """What pytest wrote of the session."""
    return ElementTree.parse(junit).getroot()


@pytest.fixture(scope="module")
def session(junit) -> Session:
    laws = tuple(LAW_OF[name] for name in ("contract", "rank", "lmo", "zero_start"))
    targets = [
        Target("my.module:Right<1>", lo.Factored, laws=laws),
        Target("my.module:Hostile", Hostile, known={"rank": "never <was>"}, laws=laws),
    ]
    return run(targets, Settings("quick", seed=7), Silent(), junit=junit)


# HTML


class Outline(HTMLParser):
    """Checks that tags are closed in order, and remembers what is on the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if "href" in named else []
        self.loaded += [named["src"]] if "src" in named else []
        self.scripts += tag == "script"
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data) -> None:
        self.text += data


def test_page_is_well_formed_and_closed(session) -> None:
    page = Outline(html_report(session))
    assert [] == page.open
    assert len(page.ids) == len(set(page.ids))


def test_page_needs_nothing_from_elsewhere(session) -> None:
    page = html_report(session)
    outline = Outline(page)
    assert [] == outline.loaded
    assert set() == {link[0] for link in outline.links} - {"#"}
    assert not re.search(r"https?://|@import|url\(", page)


def test_links_lead_to_places_on_the_page(session) -> None:
    page = Outline(html_report(session))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.links


def test_page_escapes_what_the_class_says(session) -> None:
    page = html_report(session)
    assert 1 == Outline(page).scripts
    assert "<script>alert" not in page
    assert "</code><script>alert" in Outline(page).text


def test_page_says_seed_versions_law_and_code(session) -> None:
    text = Outline(html_report(session)).text
    for said in (
        "seed 7",
        "torch",
        "hypothesis",
        "known not to hold",
        "not claimed",
        "2 parameterizations",
    ):
        assert said in text
    assert LAW_OF["contract"].statement in text
    assert "make = Hostile" in text


def test_page_can_be_stored(session) -> None:
    html_report(session).encode("utf-8")


def test_interrupted_run_says_so() -> None:
    cut = Session(Settings(), [Verdicts(Target("a:B", lo.Factored))], interrupted=True)
    assert "Interrupted after 0 laws" in Outline(html_report(cut)).text
    assert not cut.holds


# JUnit, which pytest writes


def test_junit_has_a_case_for_each_law(report) -> None:
    suite = report.find("testsuite")
    assert "lowrank-opt verify" == suite.get("name")
    counts = tuple(suite.get(k) for k in ("tests", "failures", "errors", "skipped"))
    assert ("8", "1", "0", "4") == counts


def test_junit_failure_has_message_and_program(report) -> None:
    failure = report.find(".//testcase[@classname='my.module:Hostile'][@name='contract']/failure")
    assert "<script>alert" in failure.get("message")
    assert "make = Hostile" in failure.text


def test_junit_known_failure_is_skipped_with_its_reason(report) -> None:
    case = report.find(".//testcase[@classname='my.module:Hostile'][@name='rank']")
    assert "never <was>" in case.find("skipped").get("message")
    assert "7" == {p.get("name"): p.get("value") for p in case.find("properties")}["seed"]


# Counter-examples as programs


def one_for_each_way_of_breaking() -> list[tuple[object, str, object]]:
    """Return the planted defects that are quickly found, all laws among them."""
    slow = {"SoftmaxValues", "TextbookCayley", "OptimisticCertificate"}
    defects = [*broken.BROKEN_MAPS, *broken_state.BROKEN_STATE]
    return [d for d in defects if describe(d[0]).partition("(")[0] not in slow]


DEFECTS = one_for_each_way_of_breaking()


def test_defects_cover_the_laws_they_are_for() -> None:
    assert {law for _, law, _ in DEFECTS} >= {"contract", "escape", "in_place", "lmo", "section"}


@pytest.mark.parametrize(
    ("make", "law", "dtype"), DEFECTS, ids=[f"{describe(m)}-{law}-{d}" for m, law, d in DEFECTS]
)
def test_counter_example_runs_and_shows_the_violation(make, law, dtype, capsys) -> None:
    result = LAW_OF[law].verdict(make, dtype=dtype)
    with pytest.raises(BrokenLawError) as raised:
        exec(compile(result.code, "program", "exec"), {"__name__": "program"})
    assert re.sub(r"\d\S*", "#", result.message) == re.sub(r"\d\S*", "#", raised.value.found)
    assert capsys.readouterr().out


def test_counter_example_is_simplified_beyond_shrinking() -> None:
    make = partial(broken.OnePercentTooLarge, radius=1.0)
    case = LAW_OF["membership"].verdict(make).case
    assert Case((1, 1), 1, FreeParameters("constant")) == case


def test_simpler_cases_are_simpler_and_keep_the_kind() -> None:
    case = Case((2, 2), 1, FreeParameters("parallel", (1e4,), seed=77))
    simpler = list(simpler_cases(case))
    assert Case((1, 1), 1, FreeParameters("constant")) == simpler[0]
    assert case not in simpler
    assert {4, 3, 2} == {sum(c.shape) for c in simpler}
    assert all(c.rank == 1 for c in simpler)


def test_start_stays_a_start() -> None:
    case = Case((2, 2), 1, FreeParameters("start", seed=9))
    assert {"start"} == {c.parameters.structure for c in simpler_cases(case)}


def test_counter_example_has_a_name_only_if_it_can_be_imported() -> None:
    def local(shape, rank):
        return lo.Factored(shape, rank)

    assert expression(local) is None
    assert expression(partial(lo.NBLoRA, norm=threading.Lock())) is None
    found = expression(partial(lo.RadialBall, norm=partial(lo.KyFanBall, 2), radius=2.0))
    scope: dict[str, object] = {}
    exec("\n".join([*found.imports, f"make = {found.code}"]), scope)
    assert 2.0 == scope["make"]((3, 3), 2).feasible_set.radius


def test_verdicts_carry_seed_statement_and_time() -> None:
    result = LAW_OF["rank"].verdict(lo.Factored, profile="quick", seed=11)
    assert (11, LAW_OF["rank"].statement) == (result.seed, result.statement)
    assert result.seconds > 0
