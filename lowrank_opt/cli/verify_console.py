"""What `lowrank-opt verify` prints: a line for each law when it is done, then the broken ones."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from lowrank_opt.cli.streams import silence

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_opt.testing.reports.pytest_plugin import Settings
    from lowrank_opt.testing.reports.session import Session, Verdicts
    from lowrank_opt.testing.search.verdict import CheckResult
    from lowrank_opt.testing.subjects.targets import Target

_WORDS = {
    "passed": "holds",
    "failed": "BROKEN",
    "skipped": "not claimed",
    "expected_failure": "known",
}
_COLOURS = {"passed": "32", "failed": "1;31", "skipped": "2", "expected_failure": "33"}


class Console:
    """The lines of a run, in colours on a terminal.

    One target gets a line for each law; several get a line each, and one for each broken law.

    Parameters
    ----------
    stream : text stream
    targets : sequence of Target
    settings : Settings
    """

    def __init__(self, stream: TextIO, targets: Sequence[Target], settings: Settings) -> None:
        self._stream, self._settings, self._targets = stream, settings, targets
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = terminal and "NO_COLOR" not in os.environ
        self._width = max((len(t.name) for t in targets), default=0)
        self._tallies: dict[int, list[CheckResult]] = {id(t): [] for t in targets}
        self._fault: OSError | None = None

    def __enter__(self) -> Self:
        dtype = str(self._settings.dtype).removeprefix("torch.")
        count = self._targets[0].name if self._single else f"{len(self._targets)} targets"
        s = self._settings
        self._line(f"{count}: profile {s.profile}, {dtype} on {s.device}, seed {s.seed}")
        self._line(self._row("law", "examples", "time", "result") if self._single else "")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.flush()

    def finished(self, target: Target, result: CheckResult) -> None:
        """Print the verdict of a law, or of a target after its last law."""
        tally = self._tallies[id(target)]
        tally.append(result)
        if self._single:
            self._line(self._of_law(result))
        elif len(tally) == len(target.laws):
            self._line(self._of_target(target, tally))

    def summary(self, session: Session) -> None:
        """Print the broken laws with their counter-examples, and the sums."""
        for verdicts in session.verdicts:
            for result in verdicts.broken:
                self._line(self._details(verdicts, result))
        parts = [f"{session.count('passed')} hold", f"{session.count('failed')} broken"]
        parts += [f"{session.count('skipped')} not claimed"]
        known = session.count("expected_failure")
        parts += [f"{known} known not to hold"] if known else []
        text = f"{', '.join(parts)} in {session.seconds:.1f} s"
        self._line("\n" + self._paint(text, "passed" if session.holds else "failed"))
        if session.interrupted:
            tried = sum(len(v.results) for v in session.verdicts)
            self._line(f"interrupted after {tried} laws: the others have not been tried")

    def written(self, reports: Sequence[Path]) -> None:
        """Print where reports are; raise what has kept lines from a reader who is still there."""
        for path in reports:
            self._line(f"report: {path}")
        if self._fault is not None and not isinstance(self._fault, BrokenPipeError):
            raise self._fault

    @property
    def _single(self) -> bool:
        return len(self._targets) == 1

    def _of_law(self, result: CheckResult) -> str:
        # A law that says nothing while another is broken says so itself.
        silent = result.message.startswith("not judged")
        word = "" if silent else self._paint(_WORDS[result.status], result.status)
        note = textwrap.shorten(result.message, 100, placeholder=" ...")
        said = f"{word}: {note}" if note and word else word or note
        return self._row(result.check, str(result.examples), f"{result.seconds:.2f} s", said)

    def _row(self, law: str, examples: str, seconds: str, result: str) -> str:
        return f"  {law:<16}{examples:>9}{seconds:>10}  {result}"

    def _of_target(self, target: Target, tally: list[CheckResult]) -> str:
        broken = [r.check for r in tally if r.status == "failed"]
        known = [r.check for r in tally if r.status == "expected_failure"]
        hold = sum(r.status == "passed" for r in tally)
        said = self._paint(f"{hold} hold", "passed")
        if broken:
            said = self._paint(f"{hold} hold, BROKEN: {', '.join(broken)}", "failed")
        said += f", known: {', '.join(known)}" if known else ""
        seconds = sum(r.seconds for r in tally)
        return f"  {target.name:<{self._width}}{seconds:>8.1f} s  {said}"

    def _details(self, verdicts: Verdicts, result: CheckResult) -> str:
        title = f"{verdicts.target.name} breaks the law {result.check!r}"
        lines = [
            "",
            self._paint(title, "failed"),
            f"  law:   {result.statement}",
            f"  found: {result.message}",
            f"  again: {self._command(verdicts.target)}",
            "  smallest counter-example:",
            "",
            textwrap.indent(result.code, "    "),
        ]
        return "\n".join(lines)

    def _command(self, target: Target) -> str:
        s, dtype = self._settings, str(self._settings.dtype).removeprefix("torch.")
        name = [] if target.listed else [target.name]
        device = ["--device", s.device] if s.device != "cpu" else []
        words = [*name, "--profile", s.profile, "--dtype", dtype, *device, "--seed", str(s.seed)]
        return "lowrank-opt verify " + shlex.join(words)

    def _paint(self, text: str, status: str) -> str:
        return f"\x1b[{_COLOURS[status]}m{text}\x1b[0m" if self._colours else text

    def _line(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError as error:
            # The verdict does not depend on who reads it.
            self._fault = self._fault or error
            silence(self._stream)
