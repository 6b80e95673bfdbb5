"""Every page of the built documentation, in a browser without a network.

``python tests/docs_browser.py docs/_build/html`` opens each page in headless Chromium and looks for
errors on the console, requests to a host, broken images, pages that scroll sideways (at 360 and
1280 pixels and on paper), a dark mode that is not dark, headings out of order, and images without
a description; follows every link within the pages; and asks the search for words that people will
type. Ends with status 1, and a line for each fault, if there is one.
"""

import argparse
import posixpath
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.browser import BrowserError, Tab, browser, installed

NARROW, WIDE, PAPER = 360, 1280, 718  # paper: A4 between margins of 10 mm, in CSS pixels
# What people type, and a page that must be among the first three.
WORDS = {
    "install": "install.html",
    "gpu": "how-to/many-machines.html",
    "cpu": "install.html",
    "complete": "reference/generated/lowrank_opt.complete.html",
    "rating": "tutorials/t2_your_ratings.html",
    "ratings": "tutorials/t2_your_ratings.html",
    "lora": "how-to/adapt-a-model.html",
    "adapter": "how-to/adapt-a-model.html",
    "save": "how-to/save-and-load.html",
    "load": "how-to/save-and-load.html",
    "rank": "how-to/train-ranks.html",
    "merge": "how-to/merge-federated.html",
    "peft": "tutorials/t5_from_peft.html",
    "surprise": "tutorials/t6_from_surprise_cmfrec_implicit.html",
    "geotorch": "tutorials/t7_from_geotorch_and_parametrize.html",
    "recommend": "how-to/recommend.html",
    "solver": "how-to/choose-a-solver.html",
    "loss": "how-to/choose-a-loss.html",
    "certificate": "how-to/certify-a-completion.html",
    "interval": "how-to/prediction-intervals.html",
    "changelog": "changelog.html",
    "faq": "faq.html",
}

# Everything about a page that does not depend on its width.
CONTENT = """(async () => {
  const faults = [];
  for (const image of document.images) {
    image.loading = "eager";
    try { await image.decode(); } catch { faults.push("broken image " + image.src); }
    if (!image.hasAttribute("alt")) faults.push("image without alt " + image.src);
  }
  if (!document.documentElement.lang) faults.push("no language");
  const levels = [...document.querySelectorAll("article h1, article h2, article h3, article h4")]
    .map(h => Number(h.tagName[1]));
  const titles = levels.filter(x => x == 1).length;
  // The theme titles the page of results by a script of its own.
  const results = document.getElementById("search-results");
  if (titles != 1 && !results) faults.push(`${titles} titles`);
  const skips = levels.some((x, i) => i && x > levels[i - 1] + 1);
  if (skips) faults.push("headings skip a level: " + levels);
  return faults;
})()"""
SCROLLS = """(() => {
  const width = document.documentElement.clientWidth, page = document.scrollingElement.scrollWidth;
  if (page <= width) return "";
  const wide = [...document.querySelectorAll("article *")]
    .find(e => e.getBoundingClientRect().right > width + 1);
  return `scrolls sideways: ${page} > ${width}, ` + (wide ? wide.outerHTML.slice(0, 120) : "");
})()"""
# On paper nothing scrolls: what does not fit into a box is lost.
CUT = """(() => {
  const cut = [...document.querySelectorAll("article pre, article .table-wrapper, article .math")]
    .find(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != "visible");
  if (!cut) return "";
  return `cut on paper: ${cut.scrollWidth} > ${cut.clientWidth}, ` + cut.outerHTML.slice(0, 120);
})()"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
FOUND = """new Promise(resolve => {
  const look = () => {
    const links = [...document.querySelectorAll("#search-results li a")].map(a => a.href);
    const said = document.querySelector("#search-results p")?.innerText ?? "";
    if (/found|did not match/.test(said)) resolve(links); else setTimeout(look, 20);
  };
  look();
})"""


# A page with one fault of each kind, and a word of the line that has to be printed for it.
PLANTED = """<html><body><article><h1>One</h1><h3>Three</h3><img src="none.png">
<script>console.error("planted")</script><script src="http://host.invalid/a.js"></script>
<div style="width: 2000px">wide</div><pre style="overflow: auto">{long}</pre>
<a href="none.html">none</a></article></body></html>"""
NOTICED = (
    "broken image", "without alt", "no language", "skip a level", "console", "asks a host",
    "at 1280", "at 360", "not dark", "cut on paper",
)  # fmt: skip


class Page(HTMLParser):
    """The links and the names of places of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what is linked and what can be linked to."""
        # From listings of sources back: made of one name for a file, they end at the top of a page.
        back = any(name == "class" and "viewcode-back" in (value or "") for name, value in attrs)
        for name, value in attrs:
            if value and name in ("href", "src") and not back:
                self.links.append(value)
            if value and name in ("id", "name"):
                self.places.add(value)


def broken_links(root: Path) -> Iterator[str]:
    """Yield a sentence for each link to a file or place of the pages that is not there."""
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    pages = {name: Page(root / name) for name in sorted(files) if name.endswith(".html")}
    for name, page in pages.items():
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path, place = unquote(parts.path), unquote(parts.fragment)
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target if path else name
            if target not in files:
                yield f"{name}: broken link {link}"
            elif place and target in pages and place not in pages[target].places:
                yield f"{name}: link to no place {link}"


def spoken(events: Sequence[dict]) -> Iterator[str]:
    """Yield errors on the console and requests that leave the disk."""
    for event in events:
        match event:
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                yield f"exception {str(details)[:300]}"
            case {
                "method": "Runtime.consoleAPICalled",
                "params": {"type": "error" | "warning", "args": args},
            }:
                yield f"console {args}"
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error"} as entry}}:
                yield f"console {entry.get('text')} {entry.get('url', '')}"
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                if urlsplit(url).scheme not in ("file", "data", "blob", "about"):
                    yield f"asks a host: {url}"
            case _:
                pass


def faults_of(tab: Tab, path: Path) -> Iterator[str]:
    """Open one page and yield what is wrong with it."""
    tab.look(width=WIDE)
    events = tab.open(path.as_uri())
    yield from tab.evaluate(CONTENT)
    light = tab.evaluate(BACKGROUND)
    yield from (f"at {WIDE}: {fault}" for fault in [tab.evaluate(SCROLLS)] if fault)
    tab.look(width=NARROW, dark=True)
    yield from (f"at {NARROW}: {fault}" for fault in [tab.evaluate(SCROLLS)] if fault)
    if tab.evaluate(BACKGROUND) == light:
        yield f"dark mode is not dark: {light}"
    tab.look(width=PAPER, print_=True)
    yield from (fault for script in (SCROLLS, CUT) if (fault := tab.evaluate(script)))
    yield from spoken(events)


def unnoticed(tab: Tab) -> Iterator[str]:
    """Yield what this check itself does not see on a page where it is planted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.html"
        path.write_text(PLANTED.format(long="x" * 500), encoding="utf-8")
        found = "\n".join([*faults_of(tab, path), *broken_links(Path(folder))])
    yield from (f"the check is blind for {kind!r}" for kind in NOTICED if kind not in found)
    if "broken link none.html" not in found:
        yield "the check is blind for links"


def badly_found(tab: Tab, root: Path) -> Iterator[str]:
    """Yield the words for which the search does not find the page that is meant."""
    for word, page in WORDS.items():
        tab.look(width=WIDE)
        events = tab.open(f"{(root / 'search.html').resolve().as_uri()}?q={word}")
        found = [Path(unquote(urlsplit(link).path)) for link in tab.evaluate(FOUND)[:3]]
        names = [path.relative_to(root.resolve()).as_posix() for path in found]
        if page not in names:
            yield f"searching {word!r}: {page} is not among {names}"
        yield from spoken(events)


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at all pages, print faults, and return 1 if there are some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the built pages")
    parser.add_argument("--browser", default=installed(), help="path of a Chromium")
    parser.add_argument("--only", default="", help="pages whose path contains this text")
    options = parser.parse_args(arguments)
    if options.browser is None:
        print("no Chromium was found; on Debian and Ubuntu: apt install chromium", file=sys.stderr)
        return 2
    root, start = options.root.resolve(), time.monotonic()
    # Sources with colours are a listing, one like the other: their links are followed.
    pages = [p for p in sorted(root.rglob("*.html")) if "_modules" not in p.parts]
    pages = [p for p in pages if options.only in p.as_posix()]
    if not pages:
        print(f"no pages in {root}; make docs builds them", file=sys.stderr)
        return 2
    count = 0
    for fault in all_faults(options.browser, root, pages):
        print(fault, flush=True)
        count += 1
    print(f"{len(pages)} pages, {count} faults, {time.monotonic() - start:.0f} s")
    return min(count, 1)


def all_faults(program: str, root: Path, pages: Sequence[Path]) -> Iterator[str]:
    """Yield everything that is wrong, as it is found."""
    with browser(program) as tab:
        yield from unnoticed(tab)
        yield from badly_found(tab, root)
        for path in pages:
            try:
                found = list(faults_of(tab, path))
            except BrowserError as error:
                found = [str(error)]
            yield from (f"{path.relative_to(root)}: {fault}" for fault in found)
    yield from broken_links(root)


if __name__ == "__main__":
    sys.exit(main())
