"""The test suite as other machines run it: Pythons, an old torch, other processors."""

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# The oldest versions that pyproject.toml admits and that the suite has run with.
FLOOR = ["torch==2.5.1"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run pytest with the pinned versions; arguments after `--` are passed on."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS)
def quick(session: nox.Session) -> None:
    """Run the quick tests: all but those marked slow."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("python", "-m", "pytest", "-m", "not slow", *session.posargs)


@nox.session(python="3.11")
def floor(session: nox.Session) -> None:
    """Run the numerical tests with the oldest torch; its wheels for Linux bring 3 GB of CUDA."""
    session.install(*FLOOR, "-e", ".[dev]")
    session.run("python", "tests/portability.py", "this machine")


@nox.session(python="3.11")
def portability(session: nox.Session) -> None:
    """Print the table of docs/results/portability.md; arguments name variants."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("python", "tests/portability.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; warnings are errors."""
    session.install("-c", "constraints.txt", "-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "-q", "-b", "html", "docs", "docs/_build/html")
