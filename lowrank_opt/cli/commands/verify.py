"""``lowrank-opt verify``: the laws of parameterizations, tried on classes given by name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_opt.cli.output import replacing
from lowrank_opt.cli.streams import output
from lowrank_opt.errors import OptionError
from lowrank_opt.extras import extra

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from contextlib import AbstractContextManager

    from lowrank_opt.cli.parsers import Commands
    from lowrank_opt.testing.reports.pytest_plugin import Settings
    from lowrank_opt.testing.subjects.targets import Target

_DTYPES = ("float64", "float32", "float16", "bfloat16")
_KINDS = ("parameterization", "set", "operator", "adapter", "solver", "module")
_INTERRUPTED = 130
_DESCRIPTION = """\
Try every law and look for counter-examples. TARGET is a parameterization, a feasible set, a class
of operators, a solver, or a function make(shape, rank): package.module:Class, file.py:Class, or
with arguments by name, as in "package.module:Class(radius=3.0)". With --as adapter it is put into
small models; with --weight NAME it is any module. Without a target, every parameterization of this
package."""
_STATUS = (
    "Exit status: 0 if all laws hold, 1 if one is broken, 2 for a wrong call, 130 after Ctrl-C."
)


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "verify",
        help="try the laws on a parameterization, or on all of this package",
        description=_DESCRIPTION,
        epilog=_STATUS,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to verify")
    _add_options(parser)
    parser.set_defaults(run=_run)


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--as",
        dest="kind",
        choices=_KINDS,
        help="what the targets are (default: what they look like)",
    )
    add("--weight", metavar="NAME", help="of a module: the weight that is in the set")
    add("--feasible-set", metavar="TARGET",
        help="the set of a module's weight, or of a solver's results")  # fmt: skip
    add("--profile", choices=("quick", "standard", "thorough"), default="standard",
        help="how hard to try (default: %(default)s)")  # fmt: skip
    add("--dtype", choices=_DTYPES, default="float64", help="default: %(default)s")
    add("--device", default="cpu", help="cpu, cuda or cuda:1 (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the examples (default: 0)")
    add("--expected-failures", nargs="+", action="extend", default=[], metavar="LAW=REASON",
        help="laws that are known not to hold, or TOML files of them")  # fmt: skip
    add("--report", type=Path, metavar="FILE.html", help="write a report for people")
    add("--junit", type=Path, metavar="FILE.xml", help="write a report for machines")
    add("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")


def _run(options: Namespace) -> int:
    with extra("testing"):
        import hypothesis  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import xdist  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingTypeStubs]
    from lowrank_opt.cli.verify_console import Console
    from lowrank_opt.testing.reports.html import html_report
    from lowrank_opt.testing.reports.session import run

    out = output()
    if isinstance(out, TextIOWrapper):
        # Messages are other people's: what the terminal cannot show must not end the run.
        out.reconfigure(errors="backslashreplace")
    settings, targets = _settings(options), _targets(options)
    _check_folders(options)
    console, words = Console(out, targets, settings), _words(options)
    with _quietly(), _replacing(options.junit) as junit, console:
        session = run(targets, settings, console, words=words, junit=junit)
    console.summary(session)
    with _replacing(options.report) as report:
        if report is not None:
            report.write_text(html_report(session), encoding="utf-8")
    console.written([path for path in (options.report, options.junit) if path is not None])
    return _INTERRUPTED if session.interrupted else int(not session.holds)


def _replacing(path: Path | None) -> AbstractContextManager[Path | None]:
    return nullcontext() if path is None else replacing(str(path), "a report")


@contextmanager
def _quietly() -> Generator[None]:
    """Run on one thread, and without warnings unless -W asks for them."""
    import torch

    threads = torch.get_num_threads()
    # Matrices are small: more threads cost time, and sums in another order change digits.
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _settings(options: Namespace) -> Settings:
    import torch

    from lowrank_opt.testing.reports.pytest_plugin import Settings

    if options.jobs < 1:
        raise OptionError(f"--jobs must be at least 1; got {options.jobs}")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"--device must be a device of this machine; got {options.device!r}: {reason}"
        ) from None
    dtype = getattr(torch, options.dtype)
    return Settings(options.profile, dtype, options.device, options.seed, options.jobs)


def _targets(options: Namespace) -> list[Target]:
    from lowrank_opt.testing.subjects.expectations import with_expectations
    from lowrank_opt.testing.subjects.library import library
    from lowrank_opt.testing.subjects.targets import load_target

    asked = {
        "kind": options.kind,
        "weight": options.weight,
        "feasible_set": options.feasible_set,
    }
    targets = [load_target(text, **asked) for text in options.targets] or library()
    return with_expectations(targets, options.expected_failures)


def _check_folders(options: Namespace) -> None:
    """Refuse a report that cannot be written before the laws take their time."""
    for path in (options.report, options.junit):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise OptionError(f"a report must be a file in an existing folder; got {str(path)!r}")


def _words(options: Namespace) -> list[str]:
    """Return the options of the pytest plug-in that mean the same, for other processes."""
    pairs = {
        "kind": options.kind,
        "weight": options.weight,
        "feasible-set": options.feasible_set,
        "profile": options.profile,
        "dtype": options.dtype,
        "device": options.device,
        "seed": options.seed,
    }
    words = [f"--lowrank-{name}={value}" for name, value in pairs.items() if value is not None]
    words += [f"--lowrank-verify={text}" for text in options.targets]
    words += [] if options.targets else ["--lowrank-library"]
    return words + [f"--lowrank-expected-failures={word}" for word in options.expected_failures]
