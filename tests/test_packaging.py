"""What is in the distribution: the library and nothing else.

`LOWRANK_OPT_WHEEL` names a wheel to check; without it one is built from a copy of the sources,
beside which ratings and records are planted, as a user's folder may have them.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lowrank_opt as lo

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("lowrank_opt", "problems", "experiments", "tests", "docs")
METADATA = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
# Beside the package, so that a run of pytest imports no torch.
PLUGIN = "_lowrank_opt_pytestplugin.py"
PLANTED = ("data/ml-100k/u.data", "lowrank_opt/u1.base", "results/movielens.json", "secret.inter")


def copy_sources(target: Path) -> Path:
    """Copy what a distribution is built from, and plant what must stay out of it."""
    ignore = shutil.ignore_patterns("__pycache__", "_build")
    for name in filter(lambda name: (ROOT / name).is_dir(), SOURCES):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in (*METADATA, PLUGIN):
        shutil.copy(ROOT / name, target / name)
    for name in PLANTED:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("196\t242\t3\t881250949\n", encoding="utf-8")
    return target


def build(kind: str, source: Path, out: Path) -> Path:
    """Build one distribution with the installed setuptools, without the network."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    run = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("LOWRANK_OPT_WHEEL")
    return (
        Path(given).resolve()
        if given
        else build("wheel", sources, tmp_path_factory.mktemp("wheel"))
    )


@pytest.fixture(scope="module")
def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_wheel_holds_the_library_only(members: list[str]) -> None:
    roots = {name.split("/")[0] for name in members}
    assert {"lowrank_opt", PLUGIN} == {root for root in roots if not root.endswith(".dist-info")}


def test_wheel_holds_every_module(members: list[str]) -> None:
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lowrank_opt").rglob("*.py")}
    assert expected | {PLUGIN} == {name for name in members if name.endswith(".py")}


def test_wheel_registers_command_and_pytest_plugin(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        entries = archive.read(name).decode()
    assert "lowrank-opt = lowrank_opt.cli:main" in entries
    assert f"[pytest11]\nlowrank_opt = {PLUGIN.removesuffix('.py')}" in entries


def test_wheel_holds_no_data(members: list[str]) -> None:
    library = [name for name in members if name.startswith("lowrank_opt/")]
    assert [] == [n for n in library if not n.endswith((".py", ".pyi", "/py.typed"))]


def test_wheel_is_typed(members: list[str]) -> None:
    assert "lowrank_opt/py.typed" in members


def test_wheel_carries_its_licence(members: list[str]) -> None:
    assert [name for name in members if name.endswith("/LICENSE")]


@pytest.mark.parametrize("name", ["torch", "numpy", "scipy", "numba", "tqdm"])
def test_wheel_requires_its_core(wheel: Path, name: str) -> None:
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata(wheel).splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert any(line.startswith(name) for line in required), required


@pytest.mark.parametrize("name", ["pandas", "scikit-learn", "geoopt", "matplotlib", "hypothesis"])
def test_wheel_does_not_require_extras(wheel: Path, name: str) -> None:
    lines = [line for line in metadata(wheel).splitlines() if line.startswith("Requires-Dist: ")]
    assert [] == [line for line in lines if name in line and "extra ==" not in line]


def test_installed_wheel_imports_alone(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = tmp_path / "site"
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    script = "import lowrank_opt; print(lowrank_opt.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(target)


def test_source_distribution_holds_no_data(sources: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", sources, tmp_path)) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "lowrank_opt/py.typed" in names
    assert [] == sorted(set(PLANTED) & set(names))


def test_recipe_for_conda_needs_what_the_package_needs() -> None:
    recipe = (ROOT / "conda" / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
    assert f'version: "{lo.__version__}"' in recipe
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    other_names = {"torch": "pytorch"}
    needed = [re.fullmatch(r"(.+?)(>=.+)", one).groups() for one in project["dependencies"]]
    run = recipe.partition("  run:\n")[2].partition("\ntests:")[0]
    assert run.split("\n")[1:-1] == [
        f"    - {other_names.get(name, name)} {bound}" for name, bound in needed
    ]
    assert f"- python {project['requires-python']}" in run
