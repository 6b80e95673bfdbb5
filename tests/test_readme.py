"""The Python snippets of README.md and of the documentation run, in order, as one program a page.

The program keeps the page's line numbers, so that a traceback points into the page.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.preloaded import COMMON, ROOT, run_script

README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language with the line each one starts at."""
    return [
        (text.count("\n", 0, found.start(2)), found.group(2))
        for found in FENCE.finditer(text)
        if found.group(1) == language
    ]


def program(text: str) -> str:
    """Return the Python blocks of a page, each at its own lines, with nothing between them."""
    lines = [""] * (text.count("\n") + 1)
    for start, code in blocks(text, "python"):
        lines[start : start + code.count("\n")] = code.splitlines()
    return "\n".join(lines) + "\n"


def run_page(text: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's program in an empty folder, in a process of its own."""
    script = folder / f"{Path(name).stem}.py"
    script.write_text(program(text), encoding="utf-8")
    return run_script(script, folder=folder, env={"MPLBACKEND": "agg"}, ready=COMMON)


def pages_with_snippets() -> list[str]:
    """Return README.md, there or not, and the pages of the documentation that have snippets."""
    pages = sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
    with_code = [p for p in pages if blocks(p.read_text(encoding="utf-8"), "python")]
    return ["README.md", *(p.relative_to(ROOT).as_posix() for p in with_code)]


@pytest.mark.parametrize("page", pages_with_snippets())
def test_snippets_run(page: str, tmp_path: Path) -> None:
    assert (ROOT / page).is_file(), f"{page} must exist: its snippets are the first thing users run"
    run = run_page((ROOT / page).read_text(encoding="utf-8"), page, tmp_path)
    assert run.returncode == 0, run.stderr


def test_readme_has_snippets() -> None:
    assert README.is_file(), "README.md must exist"
    assert blocks(README.read_text(encoding="utf-8"), "python")


def test_readme_shows_both_commands_first() -> None:
    assert README.is_file(), "README.md must exist"
    _, first = blocks(README.read_text(encoding="utf-8"), "sh")[0]
    assert {"make movielens", "make test"} <= {
        line.partition("#")[0].strip() for line in first.splitlines()
    }


SOUND = """# Page
```python
x = 1
```
```sh
not python
```
```python
assert x == 1
```
"""


def test_runner_passes_a_sound_page(tmp_path: Path) -> None:
    assert 0 == run_page(SOUND, "page.md", tmp_path).returncode


def test_runner_catches_a_broken_page_at_its_line(tmp_path: Path) -> None:
    run = run_page(SOUND.replace("x == 1", "x == 2"), "page.md", tmp_path)
    assert run.returncode == 1
    assert "line 9" in run.stderr
