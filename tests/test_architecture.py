"""Who may import whom: the modules' imports, parsed, against a table of layers.

`from lowrank_opt.operator import LowRankOperator` is an edge from the importing module's component
to the component `operator`. Imports inside functions and under `TYPE_CHECKING` count too: a
dependency that is only read by a type checker still has to point downwards.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import ROOMS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lowrank_opt", "problems", "experiments")
MAX_LINES = 400

BASEMENT = {"errors", "checks", "extras", "files", "locks", "sparse"}
FOUNDATION = BASEMENT | {
    "linalg",
    "operator",
    "sets",
    "tables",
    "observations",
    "proofs",
    "metrics",
}
CORE = FOUNDATION | {"combination", "parameterizations", "kernels", "completion", "solvers", "nn"}
CONSUMERS = {"estimators", "training", "merging", "distributed", "plots"}

# The key may import the values; "" is lowrank_opt/__init__.py. A component that is not in the
# table is a violation: a new one is placed here first.
ALLOWED: dict[str, set[str]] = {
    **{key: set() for key in ("errors", "check_certificate", "sparse")},
    **{key: {"errors"} for key in ("checks", "extras", "linalg", "locks")},
    "files": {"errors", "locks"},
    "tables": {"errors", "extras", "sparse"},
    "observations": {"errors", "checks", "tables"},
    "metrics": {"errors", "observations"},
    "operator": {"errors", "checks", "linalg"},
    **{key: {"errors", "checks", "linalg", "operator"} for key in ("sets", "combination")},
    "proofs": {"errors", "check_certificate", "linalg", "operator", "sets"},
    "parameterizations": BASEMENT | {"linalg", "operator", "sets", "proofs"},
    "kernels": {"errors", "checks", "extras", "linalg", "operator", "observations"},
    "completion": FOUNDATION | {"check_certificate", "parameterizations", "kernels"},
    "solvers": {"completion"},
    "nn": BASEMENT | {"linalg", "operator", "combination", "sets", "parameterizations"},
    **{consumer: CORE for consumer in CONSUMERS},
    "_names": CORE,
    "": CORE | {"_names"},
    "testing": CORE | CONSUMERS | {""},
    # `lowrank-opt verify` is a face of the verification suite, loaded when it is called.
    "cli": CORE | CONSUMERS | {"", "testing"},
    "__main__": {"cli"},
    "problems": CORE | CONSUMERS | {""},
    "experiments": CORE | CONSUMERS | {"", "testing", "problems"},
}

MOST_FILES = 15

# fmt: off
HEAVY = (
    "geoopt", "hypothesis", "jinja2", "matplotlib", "msgspec", "narwhals", "numba", "pandas",
    "pooch", "pyarrow", "pytest", "scipy", "sklearn", "triton",
)
# fmt: on


def modules_under(root: Path) -> dict[str, Path]:
    """Map dotted module names to files."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {_dotted(path.relative_to(root)): path for path in files}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def component(module: str) -> str:
    """Return the row of the table that a dotted module name belongs to."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "lowrank_opt" else package


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, in functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = _absolute(source, package, level)
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(
                func
            ) in {"importlib.import_module", "import_module", "__import__"}:
                yield name


def _absolute(source: str | None, package: str, level: int) -> str:
    parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
    return ".".join([*parents, *([source] if source else [])])


def imported_modules(path: Path, module: str, known: dict[str, Path]) -> set[str]:
    """Return which of the known modules a file imports: the longest known prefix of each name."""
    prefixes = (_longest_known(name, known) for name in imported_names(path, module))
    return {name for name in prefixes if name is not None and name != module}


def _longest_known(name: str, known: dict[str, Path]) -> str | None:
    parts = name.split(".")
    candidates = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in known), None)


def defines_parameterization(path: Path) -> bool:
    """Whether a file has a class that derives from `Parameterization`."""
    classes = (
        n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ClassDef)
    )
    return any(ast.unparse(base).endswith("Parameterization") for c in classes for base in c.bases)


def violations(root: Path) -> list[str]:
    """Return one sentence for each import that points the wrong way."""
    known = modules_under(root)
    edges = [
        (source, target)
        for source, path in known.items()
        for target in sorted(imported_modules(path, source, known))
    ]
    found = [_edge_violation(source, target, known) for source, target in edges]
    return [sentence for sentence in found if sentence is not None]


def _edge_violation(source: str, target: str, known: dict[str, Path]) -> str | None:
    above, below = component(source), component(target)
    if above not in ALLOWED:
        return f"{source}: the component {above!r} is not in the table of layers"
    if above != below and below not in ALLOWED[above]:
        return f"{source} imports {target}: {above!r} may not import {below!r}"
    contracts = (".base", ".between", ".config")
    if (above, below) == ("completion", "parameterizations") and not target.endswith(contracts):
        return f"{source} imports {target}: completion may import parameterizations.base only"
    if above == below == "parameterizations" and _joins_siblings(source, target, known):
        return f"{source} imports {target}: a parameterization never imports another one"
    return None


def _joins_siblings(source: str, target: str, known: dict[str, Path]) -> bool:
    package = "lowrank_opt.parameterizations"
    if source == package or target == f"{package}.base":
        return False
    return defines_parameterization(known[source]) and (
        target == package or defines_parameterization(known[target])
    )


def room_violations(root: Path) -> list[str]:
    """Return one sentence for each import from a room into one that stands above it."""
    known = modules_under(root)
    found = []
    for package, rooms in ROOMS.items():
        inside = {name: path for name, path in known.items() if name.startswith(f"{package}.")}
        for source, path in inside.items():
            for target in sorted(imported_modules(path, source, known)):
                above, below = (_room(name, package, rooms) for name in (source, target))
                if below is None or above is None or above == below or below in rooms[above]:
                    continue
                found.append(f"{source} imports {target}: {above!r} may not import {below!r}")
    return found


def _room(module: str, package: str, rooms: dict[str, set[str]]) -> str | None:
    """Return the room of a module; None outside the package."""
    if module != package and not module.startswith(f"{package}."):
        return None
    first = module.removeprefix(package).removeprefix(".").partition(".")[0]
    return first if first in rooms else ""


def circles(root: Path) -> list[str]:
    """Return the circles of files, each as the names of the modules in it.

    A package's `__init__` re-exports its files: what a file inside imports from its own package is
    an import of that file, and counts as a circle, as it should.
    """
    known = modules_under(root)
    edges = {name: imported_modules(path, name, known) for name, path in known.items()}
    # What imports nothing that is left cannot be in a circle; nor what nothing imports.
    left = set(edges)
    while removable := {
        name for name in left if not edges[name] & left or not any(name in edges[k] for k in left)
    }:
        left -= removable
    return sorted(f"{name} imports {', '.join(sorted(edges[name] & left))}" for name in left)


def crowded(root: Path) -> list[str]:
    """Return the folders of packages with rooms that hold too many files on one level."""
    folders = {
        path.parent
        for name, path in modules_under(root).items()
        if any(name == package or name.startswith(f"{package}.") for package in ROOMS)
    }
    counts = {folder: len([*folder.glob("[!_]*.py")]) for folder in sorted(folders)}
    return [
        f"{folder.relative_to(root)}: {count} files, at most {MOST_FILES}"
        for folder, count in counts.items()
        if count > MOST_FILES
    ]


def too_long(root: Path) -> list[str]:
    """Return the files of the packages and of the tests that have more than 400 lines."""
    files = [*modules_under(root).values(), *sorted((root / "tests").rglob("*.py"))]
    return [
        f"{path.relative_to(root)}: {n} lines, at most {MAX_LINES}"
        for path in files
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]


def test_imports_point_down_the_layers() -> None:
    assert [] == violations(ROOT)


def test_rooms_import_from_the_floors_below() -> None:
    assert [] == room_violations(ROOT)


def test_table_of_rooms_has_no_circle() -> None:
    for rooms in ROOMS.values():
        order = list(rooms)
        assert all(
            order.index(below) < order.index(room) for room in rooms for below in rooms[room]
        )


def test_no_circle_of_files() -> None:
    assert [] == circles(ROOT)


def test_no_folder_is_crowded() -> None:
    assert [] == crowded(ROOT)


def test_no_file_is_too_long() -> None:
    assert [] == too_long(ROOT)


def test_import_loads_torch_only() -> None:
    script = f"import sys, lowrank_opt; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "[]" == run.stdout.strip()


# The checker itself, on a small tree of sources: clean as it stands, and caught when it is not.

SOUND = {
    "lowrank_opt/__init__.py": "from lowrank_opt.completion import complete as complete",
    "lowrank_opt/errors.py": "",
    "lowrank_opt/linalg/__init__.py": "from lowrank_opt.linalg.svd import f as f",
    "lowrank_opt/linalg/svd.py": "import torch\nfrom lowrank_opt.errors import ShapeError",
    "lowrank_opt/operator.py": "from lowrank_opt.linalg import f",
    "lowrank_opt/sets.py": "from lowrank_opt.operator import LowRankOperator",
    "lowrank_opt/observations.py": "from lowrank_opt.errors import ObservationError",
    "lowrank_opt/kernels.py": "from lowrank_opt.observations import Observations",
    "lowrank_opt/nn.py": "from lowrank_opt.parameterizations import B",
    "lowrank_opt/testing.py": "from lowrank_opt import estimators",
    "lowrank_opt/estimators.py": "from lowrank_opt.completion import complete",
    "lowrank_opt/completion.py": "from lowrank_opt.parameterizations.base import Parameterization",
    "lowrank_opt/parameterizations/__init__.py": "from lowrank_opt.parameterizations.b import B",
    "lowrank_opt/parameterizations/base.py": "class Parameterization(Module): ...",
    "lowrank_opt/parameterizations/a.py": (
        "from lowrank_opt.parameterizations.base import Parameterization\n"
        "class A(Parameterization): ..."
    ),
    "lowrank_opt/parameterizations/b.py": (
        "from lowrank_opt.parameterizations import base\nclass B(base.Parameterization): ..."
    ),
    "lowrank_opt/parameterizations/presets.py": "from lowrank_opt.parameterizations.a import A",
    "problems/movielens.py": "import lowrank_opt as lo\nfrom problems import splits",
    "problems/splits.py": "",
    "experiments/movielens.py": "from problems.movielens import load\nimport lowrank_opt.testing",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write the sources below a folder and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def test_checker_passes_a_sound_tree(tmp_path: Path) -> None:
    assert [] == violations(write_tree(tmp_path, SOUND))


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("lowrank_opt/errors.py", "import lowrank_opt.linalg"),
        ("lowrank_opt/linalg/svd.py", "from lowrank_opt.operator import LowRankOperator"),
        ("lowrank_opt/linalg/svd.py", "from ..operator import LowRankOperator"),
        ("lowrank_opt/linalg/__init__.py", "from .. import operator"),
        ("lowrank_opt/linalg/svd.py", "def f():\n    from lowrank_opt import sets"),
        ("lowrank_opt/operator.py", "import lowrank_opt"),
        ("lowrank_opt/operator.py", "from lowrank_opt import complete"),
        ("lowrank_opt/observations.py", "from lowrank_opt.operator import LowRankOperator"),
        ("lowrank_opt/kernels.py", "from lowrank_opt.completion import complete"),
        ("lowrank_opt/completion.py", "from lowrank_opt import nn"),
        ("lowrank_opt/completion.py", "from lowrank_opt.parameterizations import B"),
        ("lowrank_opt/nn.py", "from lowrank_opt.completion import complete"),
        (
            "lowrank_opt/nn.py",
            "import importlib\nimportlib.import_module('lowrank_opt.completion')",
        ),
        ("lowrank_opt/parameterizations/a.py", "from lowrank_opt.parameterizations.b import B"),
        ("lowrank_opt/parameterizations/a.py", "from lowrank_opt.parameterizations import B"),
        ("lowrank_opt/parameterizations/b.py", "from . import a"),
        ("lowrank_opt/estimators.py", "from lowrank_opt.testing import check"),
        ("lowrank_opt/estimators.py", "if TYPE_CHECKING:\n    import problems.movielens"),
        ("lowrank_opt/__init__.py", "import lowrank_opt.testing"),
        ("lowrank_opt/novelty.py", "import lowrank_opt.errors"),
        ("problems/splits.py", "from experiments.movielens import main"),
        ("problems/splits.py", "import lowrank_opt.testing"),
    ],
)
def test_checker_catches_a_planted_import(tmp_path: Path, file: str, planted: str) -> None:
    tree = {**SOUND, file: f"{SOUND.get(file, '')}\n{planted}"}
    found = violations(write_tree(tmp_path, tree))
    assert 1 == len(found), found
    assert found[0].startswith(file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))


def test_checker_catches_a_long_file(tmp_path: Path) -> None:
    tree = {"lowrank_opt/linalg.py": "\n" * MAX_LINES, "tests/test_a.py": "\n" * (MAX_LINES - 1)}
    assert ["lowrank_opt/linalg.py: 401 lines, at most 400"] == too_long(write_tree(tmp_path, tree))


HOUSE = {
    "lowrank_opt/__init__.py": "from lowrank_opt.completion import complete as complete",
    "lowrank_opt/completion/__init__.py": "from lowrank_opt.completion.complete import complete",
    "lowrank_opt/completion/complete.py": "from lowrank_opt.completion.solvers.als import ALS",
    "lowrank_opt/completion/solvers/als.py": "from lowrank_opt.completion.model.bias import f",
    "lowrank_opt/completion/model/bias.py": "import torch",
}


def test_checker_of_rooms_passes_a_sound_house(tmp_path: Path) -> None:
    house = write_tree(tmp_path, HOUSE)
    assert [] == room_violations(house) + circles(house) + crowded(house)


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("model/bias.py", "from lowrank_opt.completion.solvers import als"),
        ("model/bias.py", "def f():\n    from lowrank_opt.completion import complete"),
        ("solvers/als.py", "import lowrank_opt.completion.bayes.gibbs"),
    ],
)
def test_checker_catches_an_import_upstairs(tmp_path: Path, file: str, planted: str) -> None:
    path = f"lowrank_opt/completion/{file}"
    other = {"lowrank_opt/completion/bayes/gibbs.py": ""}
    house = write_tree(tmp_path, HOUSE | other | {path: f"{HOUSE[path]}\n{planted}"})
    assert 1 == len(room_violations(house))


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("model/bias.py", "from lowrank_opt.completion.complete import complete"),
        ("model/bias.py", "if TYPE_CHECKING:\n    from lowrank_opt.completion import complete"),
    ],
)
def test_checker_catches_a_circle(tmp_path: Path, file: str, planted: str) -> None:
    path = f"lowrank_opt/completion/{file}"
    house = write_tree(tmp_path, HOUSE | {path: f"{HOUSE[path]}\n{planted}"})
    assert any("completion.model.bias imports" in sentence for sentence in circles(house))


def test_checker_catches_a_crowd(tmp_path: Path) -> None:
    files = {f"lowrank_opt/completion/model/{chr(97 + k)}.py": "" for k in range(MOST_FILES)}
    crowd = crowded(write_tree(tmp_path, HOUSE | files))
    assert ["lowrank_opt/completion/model: 16 files, at most 15"] == crowd
