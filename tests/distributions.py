"""Wheel and sdist, each in an empty environment, with tests that run against what is installed.

``python tests/distributions.py`` builds both twice, compares the bytes, installs each with the
extra ``all`` and the pinned versions, and runs there: README's Python blocks, the examples in the
installed docstrings, some quick tests, and the pytest options that the installation registers. The
tests are copied, so that nothing can be imported from this folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.release import build_twice

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "tests",
    "problems",
    "conftest.py",
    "pyproject.toml",
    "README.md",
    "CITATION.cff",
    "constraints.txt",
)
QUICK = ("test_operator", "test_sets", "test_cayley", "test_als", "test_factored", "test_package")
FILES = sorted(path for name in QUICK for path in (ROOT / "tests" / "unit").rglob(f"{name}.py"))
RUNS = (
    ("tests/test_readme.py", "-k", "README"),
    tuple(str(path.relative_to(ROOT)) for path in FILES),
    ("--pyargs", "lowrank_opt"),
    (
        "--lowrank-verify",
        "lowrank_opt:Factored",
        "--lowrank-profile",
        "quick",
        "tests/unit/linalg/test_lanes.py",
    ),
)
WHERE = "import lowrank_opt; print(lowrank_opt.__file__)"


def try_out(distribution: Path, folder: Path) -> None:
    """Install one distribution into an empty environment and run the tests there."""
    print(f"{distribution.name}: installing into an empty environment", flush=True)
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        print("$", *("python" if part == python else part for part in command), flush=True)
        here = folder / "copy"
        done = subprocess.run(command, cwd=here, env=clean, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{done.stdout}\nfailed with status {done.returncode}")
        return done.stdout

    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source, target = ROOT / name, folder / "copy" / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copy if source.is_file() else shutil.copytree
        copy(source, target, **({} if source.is_file() else {"ignore": ignore}))
    run(*pip, "-c", "constraints.txt", f"{distribution}[all]")
    where = run(python, "-c", WHERE).strip()
    assert Path(where).is_relative_to(folder / "env"), where
    print(run(python, "-m", "lowrank_opt", "--version"), end="")
    for arguments in RUNS:
        print(run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments), end="")


def main() -> None:
    """Try both out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for distribution in build_twice(folder / "dist"):
            try_out(distribution, folder / distribution.suffix.strip("."))


if __name__ == "__main__":
    main()
