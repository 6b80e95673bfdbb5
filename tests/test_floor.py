"""Nothing asks for more than the oldest torch of pyproject.toml has."""

import ast
from pathlib import Path

import pytest

from tests.preloaded import ROOT

FOLDERS = ("lowrank_opt", "problems", "experiments", "tests")


def faults(folder: Path) -> list[str]:
    """Return the calls that leave out what had no default in torch 2.5."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("functional_call"):
                given = len(node.args) + len(node.keywords)
                if given < 3:
                    found.append(f"{path.name}:{node.lineno}: functional_call needs its arguments")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_functional_call_is_given_its_arguments(folder: str) -> None:
    assert [] == faults(ROOT / folder)


# What users compile runs through these.
COMPILED = ("nn/basis", "nn/adapters", "nn/low_rank", "parameterizations", "linalg")


def unions(folder: Path) -> list[str]:
    """Return the checks `isinstance(x, A | B)`, which the compiler of torch 2.5 refuses."""
    return [
        f"{path.name}:{node.lineno}: isinstance takes a tuple of classes here"
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if isinstance(node.args[1], ast.BinOp)
    ]


@pytest.mark.parametrize("folder", COMPILED)
def test_compiled_code_asks_for_no_union(folder: str) -> None:
    assert [] == unions(ROOT / "lowrank_opt" / folder)


def test_checker_catches_a_union(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("isinstance(x, A | B)", encoding="utf-8")
    assert 1 == len(unions(tmp_path))


def test_checker_catches_a_call_without_arguments(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("torch.func.functional_call(W, {})", encoding="utf-8")
    assert 1 == len(faults(tmp_path))
