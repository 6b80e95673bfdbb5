"""The package's names load when they are asked for, and are those that type checkers see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank_opt as lo

SOURCE = Path(lo.__file__).read_text(encoding="utf-8")


def declared() -> set[str]:
    """Names imported for type checkers."""
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    return {alias.asname or alias.name for node in block.body for alias in node.names}


def test_every_declared_name_loads():
    assert declared() == {name for name in declared() if hasattr(lo, name)}
    assert declared() <= set(dir(lo)) | {"solvers"}


def test_a_name_comes_from_where_it_is_declared():
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    imports = [(alias.name, node.module) for node in block.body for alias in node.names]
    homes = {name: module for name, module in imports if name in lo._HOME}
    assert homes == {name: f"lowrank_opt.{home}" for name, home in lo._HOME.items()}


def test_subpackages_load_and_others_do_not():
    assert "lowrank_opt.nn" == lo.nn.__name__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        lo.nonsense


@pytest.mark.parametrize("words", [["--help"], ["complete", "--help"], ["recommend", "--help"]])
def test_help_needs_neither_torch_nor_numpy(words: list[str]):
    script = (
        "import sys\n"
        "from lowrank_opt.cli import main\n"
        "try:\n"
        f"    main({words})\n"
        "except SystemExit as stopped:\n"
        "    heavy = sorted({'torch', 'numpy', 'scipy', 'pyarrow'} & set(sys.modules))\n"
        "    print(heavy, stopped.code)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[] 0" == run.stdout.splitlines()[-1]
