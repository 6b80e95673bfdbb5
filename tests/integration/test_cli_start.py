"""How the command starts: what it loads, what it compiles, and what it says while it does."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching

import lowrank_opt.cli.commands.complete as command
from lowrank_opt.cli import main
from lowrank_opt.completion import CompletionResult
from lowrank_opt.kernels.batches import backend as batches_backend
from lowrank_opt.kernels.loops import backend as loops_backend
from lowrank_opt.kernels.loops import compiler
from tests.preloaded import run_script


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("start") / "r.csv"
    dense = 3 + np.outer(rng.normal(size=30), rng.normal(size=20))
    cells = rng.permutation(600)[:400]
    lines = [f"u{c // 20},i{c % 20},{dense.flat[c]:.2f}" for c in cells]
    path.write_text("\n".join(["user,item,rating", *lines]) + "\n", encoding="utf-8")
    return path


def fitted(path: Path, folder: Path) -> CompletionResult:
    assert 0 == main(["complete", str(path), "--out", str(folder / "m"), "--quiet"])
    return CompletionResult.load(folder / "m")


# What a short fit needs: nothing is compiled, and nothing is loaded that takes a tenth of a second.
WITHOUT = (
    "numba",
    "llvmlite",
    "scipy",
    "pandas",
    "sklearn",
    "pyarrow",
    "matplotlib",
    "torch._dynamo",
)
LOADED = """
import sys
for name in [x for x in sys.modules if x.startswith("torch._dynamo")]:
    del sys.modules[name]
from lowrank_opt.cli import main
for words in ({fit!r}, {use!r}):
    assert 0 == main(words)
print([name for name in {without!r} if name in sys.modules], file=sys.stderr)
"""


def test_a_small_fit_loads_torch_and_no_compiler(table: Path, tmp_path: Path):
    fit = ["complete", str(table), "--out", str(tmp_path / "m"), "--quiet"]
    use = ["predict", str(tmp_path / "m"), str(table)]
    script = tmp_path / "script.py"
    script.write_text(LOADED.format(fit=fit, use=use, without=WITHOUT), encoding="utf-8")
    assert "[]" == run_script(script, folder=tmp_path).stderr.splitlines()[-1]


def test_the_size_of_a_fit_decides_what_computes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = []
    backends = {"torch": batches_backend, "numba": loops_backend}
    for name, module in backends.items():
        monkeypatch.setattr(
            module,
            "posterior",
            lambda *x, name=name, do=module.posterior: (used.append(name), do(*x))[1],
        )
    found = fitted(table, tmp_path)
    assert {"torch"} == set(used)
    monkeypatch.setattr(command, "_WORTH_LOOPS", 400 * 14 * 15 // 2 - 1)
    expected = fitted(table, tmp_path)
    assert {"torch", "numba"} == set(used)
    # What rounding is left of ten sweeps in float32.
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=1e-4)


def test_compiling_is_said_once_and_only_when_it_happens(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
):
    script = (
        "import sys; from lowrank_opt.cli import main\n"
        f"sys.exit(main(['complete', {str(table)!r}, '--out', {str(tmp_path / 'm')!r},"
        "'--max-iterations', '1']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "LOWRANK_OPT_BACKEND": "numba"}
    call = partial(
        subprocess.run,
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert [1, 0] == [call().stderr.count("compiling loops") for _ in range(2)]


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    name = "CacheImpl" if hasattr(caching, "CacheImpl") else "_CacheImpl"
    monkeypatch.setattr(getattr(caching, name), "_locator_classes", [])

    def one(x: float) -> float:
        return x + 1.0

    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(one)
    assert 3.0 == compiler.njit(cache=True)(one)(2.0)


AT_THE_END = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0, gc.isenabled(), file=sys.stderr))
from lowrank_opt.cli import main
sys.argv = ["lowrank-opt", *{words!r}]
{call}
"""


@pytest.mark.parametrize(("call", "frozen"), [("main()", True), ("main(sys.argv[1:])", False)])
def test_a_command_ends_without_a_last_look_for_cycles(call: str, frozen: bool, tmp_path: Path):
    script = tmp_path / "script.py"
    words = ["inspect", str(tmp_path / "nothing")]
    script.write_text(AT_THE_END.format(call=call, words=words), encoding="utf-8")
    code = f"import runpy; runpy.run_path({str(script)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{frozen} True" == done.stderr.splitlines()[-1]
