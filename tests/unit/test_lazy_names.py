"""The package's names load when they are asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

import lowrank_opt as lo
from lowrank_opt import _names


def test_every_name_is_there():
    names = set(_names.__all__)
    # Where the package is installed with its pytest plugin, pytest adds names with an @.
    assert names == {name for name in vars(_names) if not name.startswith(("_", "@"))}
    assert {*names, "__version__"} == set(lo.__all__)
    assert {"Observations", "complete", "NBLoRA"} <= names <= set(dir(lo))
    assert all(getattr(lo, name) is vars(_names)[name] for name in names)


def test_subpackages_load_and_others_do_not():
    assert "lowrank_opt.nn" == lo.nn.__name__
    for name in ("nonsense", "_nonsense"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(lo, name)


@pytest.mark.parametrize("words", [["--help"], ["complete", "--help"], ["recommend", "--help"]])
def test_help_needs_neither_torch_nor_numpy(words: list[str]):
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from lowrank_opt.cli import main\n"
        "try:\n"
        f"    main({words})\n"
        "except SystemExit as stopped:\n"
        "    slow = {'torch', 'numpy', 'scipy', 'pyarrow', 'dataclasses', 'inspect', 'hashlib'}\n"
        "    heavy = sorted(slow & (set(sys.modules) - before))\n"
        "    print(heavy, stopped.code)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[] 0" == run.stdout.splitlines()[-1]


def test_every_module_can_be_imported_first():
    """Names that load late must not close a circle, whatever is asked for first."""
    root = Path(lo.__file__).parent
    rooms = sorted(path.parent.name for path in root.glob("*/__init__.py"))
    modules = [f"lowrank_opt.{room}" for room in (*rooms, "operator", "solvers", "files")]
    script = (
        "import importlib, os, sys\n"
        "import torch, numpy, sklearn.base, hypothesis, pytest\n"
        f"for name in {modules}:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            importlib.import_module(name)\n"
        "        except BaseException as error:\n"
        "            print(name, repr(error), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "" == run.stdout
