"""Optional packages: what is missing is named together with the extra that brings it."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.preloaded import ROOT, run_script

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"scikit-learn": "sklearn"}
PACKAGE = ROOT / "lowrank_opt"


def modules(requirements: list[str]) -> set[str]:
    """Return the modules that requirements bring, those of extras of our own included."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == "lowrank_opt":
            found |= set().union(*(EXTRAS[extra] for extra in extras.split(",")))
        else:
            found.add(MODULES.get(name, name.replace("-", "_")))
    return found


CORE = modules(PROJECT["dependencies"])
EXTRAS: dict[str, set[str]] = {}
for _name, _requirements in PROJECT["optional-dependencies"].items():
    EXTRAS[_name] = modules(_requirements)
# What developers use, and peers, no module imports: a test of the imports below says so.
OPTIONAL = set().union(*EXTRAS.values()) - CORE


def imports(tree: ast.AST, extra: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield what is imported when the code runs, with the extra that it is imported under."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.With(
                items=[
                    ast.withitem(
                        context_expr=ast.Call(
                            func=ast.Name(id="extra"), args=[ast.Constant(value=str(name))]
                        )
                    )
                ]
            ):
                yield from imports(node, name)
            case ast.Import(names=names):
                yield from ((alias.name.partition(".")[0], extra) for alias in names)
            case ast.ImportFrom(module=str(source)):
                yield source.partition(".")[0], extra
            case _:
                yield from imports(node, extra)


def faults(package: Path) -> list[str]:
    """Return one sentence for each optional import that no extra is named for.

    It is enough that the file, or an `__init__` above it, imports the module under the extra once:
    nothing behind that door is reached without it.
    """
    found = []
    for path in sorted(package.rglob("*.py")):
        above = [folder for folder in path.parents if package in folder.parents]
        named = {
            module: extra
            for door in (path, *(folder / "__init__.py" for folder in above))
            for module, extra in imports(ast.parse(door.read_text(encoding="utf-8")))
            if extra is not None
        }
        for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module in OPTIONAL and module not in EXTRAS.get(named.get(module, ""), ()):
                found.append(f"{path.relative_to(package)} imports {module}: name its extra")
    return found


def test_every_optional_import_names_an_extra_that_brings_it() -> None:
    assert [] == faults(PACKAGE)


@pytest.mark.parametrize(
    "planted",
    [
        "import sklearn",
        "def f():\n    from matplotlib import colormaps",
        "with extra('testing'):\n    import pandas",
        "with extra('no such extra'):\n    import pandas",
    ],
)
def test_checker_catches_an_import_without_its_extra(tmp_path: Path, planted: str) -> None:
    (tmp_path / "planted.py").write_text(planted, encoding="utf-8")
    assert 1 == len(faults(tmp_path))


@pytest.mark.parametrize(
    "sound",
    [
        "import torch\nimport numpy",
        "with extra('plots'):\n    import matplotlib.pyplot as plt\nimport matplotlib",
        "if TYPE_CHECKING:\n    import pandas",
    ],
)
def test_checker_passes_a_sound_file(tmp_path: Path, sound: str) -> None:
    (tmp_path / "sound.py").write_text(sound, encoding="utf-8")
    assert [] == faults(tmp_path)


# As a user meets it: the packages are there and cannot be imported.

HIDDEN = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in [m for m in sys.modules if m.partition(".")[0] in {hidden!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Hidden())
import lowrank_opt as lo
from lowrank_opt.errors import LowRankError
try:
    {code}
except ImportError as error:
    assert isinstance(error, LowRankError)
    print(error)
"""


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("estimators", "import lowrank_opt.estimators"),
        ("testing", "import lowrank_opt.testing"),
        ("plots", "from lowrank_opt.plots.canvas import axes_or_new; axes_or_new(None)"),
        ("geoopt", "lo.SVDFrames((4, 3), 2, frame='manifold')"),
    ],
)
def test_missing_package_is_named_with_its_extra(extra: str, code: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HIDDEN.format(hidden=OPTIONAL, code=code), encoding="utf-8")
    run = run_script(script, folder=tmp_path)
    assert 0 == run.returncode, run.stderr
    assert f'pip install ".[{extra}]"' in run.stdout


def test_core_alone_is_enough_for_the_rest(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    code = (
        "import lowrank_opt.nn, lowrank_opt.training, lowrank_opt.merging, lowrank_opt.plots, "
        "lowrank_opt.cli, lowrank_opt.kernels; print('fine')"
    )
    script.write_text(HIDDEN.format(hidden=OPTIONAL, code=code), encoding="utf-8")
    run = run_script(script, folder=tmp_path)
    assert "fine\n" == run.stdout, run.stderr
