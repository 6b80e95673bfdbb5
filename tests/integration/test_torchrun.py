"""`torchrun -m lowrank_opt complete` on a folder of Parquet files, workers killed on the way."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.tables.parquet import write_columns
from tests.preloaded import run_script

pytest.importorskip("pyarrow")
USERS, ITEMS = 40, 30
SOLVERS = {
    "gradient": ("8", "0", "--radius", "60", "--cut-items"),
    "gibbs": (None, "0", "--solver", "gibbs"),
    "als": ("8", "0", "--solver", "als", "--penalty", "1", "--cut-items"),
}
NAMES = ("undisturbed", "disturbed", *(f"{name} {k}" for name in SOLVERS for k in (1, 2)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Three files with text for users and integers for items, in no order."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    truth = rng.standard_normal((USERS, 2)) @ rng.standard_normal((2, ITEMS))
    cells = rng.permutation(USERS * ITEMS)[:700]
    for k, some in enumerate(np.array_split(cells, 3)):
        i, j = some // ITEMS, some % ITEMS
        values = truth[i, j] + 0.1 * rng.standard_normal(len(some))
        columns = {
            "user": [f"user-é{x}" for x in i],
            "item": (j + 10**12).tolist(),
            "rating": np.float32(values).astype(float).tolist(),
        }
        write_columns(folder / f"part-{k}.parquet", columns)
    return folder


def words(tables: Path, out: Path, most: str | None, every: str, *options: str) -> list[str]:
    options = ("--rank", "3", "--quiet", "--json", "--checkpoint-every", every, *options)
    if most is not None:
        options += ("--tolerance", "1e-300", "--max-iterations", most)
    return ["complete", str(tables), "--out", str(out), *options]


def matrix(folder: Path) -> torch.Tensor:
    """Return predictions with rows and columns in the order of their ids."""
    result = lo.CompletionResult.load(folder)
    rows, cols = (np.argsort(x) for x in (result.row_ids, result.col_ids))
    assert USERS == len(rows)
    return result.predict(torch.from_numpy(rows).unsqueeze(1), torch.from_numpy(cols)).double()


@pytest.fixture(scope="module")
def folders(tables: Path, tmp_path_factory) -> dict[str, Path]:
    """The same problem on one process; and on two that are killed, ended early, gone on with."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: folder / name for name in NAMES}
    undisturbed, disturbed, *others = found.values()
    plan = [
        (1, words(tables, undisturbed, "16", "0"), []),
        # The second of two before it writes its third state; then the first, once it has.
        (2, words(tables, disturbed, "8", "2"), [(1, 3, "before"), (0, 2, "after")]),
        (3, words(tables, disturbed, "16", "2", "--resume"), []),
    ]
    # Solvers whose rows are cut too, each on one process and on two; of one of them, columns.
    for out in others:
        name, processes = out.name.split()
        plan.append((int(processes), words(tables, out, *SOLVERS[name]), []))
    script = Path(__file__).with_name("torchrun_worker.py")
    done = run_script(script, json.dumps(plan), folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    # Those that are asked for too few iterations to settle say so.
    ends = [[int("--max-iterations" in asked)] * processes for processes, asked, _ in plan]
    assert ends == statuses
    lost = re.findall(r"process (\d) terminated with signal SIGKILL", done.stderr)
    assert {"0", "1"} == set(lost), done.stderr[-3000:]
    return found


@pytest.mark.parametrize("name", SOLVERS)
def test_two_processes_find_what_one_finds(folders, name):
    one, two = (matrix(folders[f"{name} {k}"]) for k in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert float(one.std()) > 0.5


def test_kills_and_another_number_of_processes_change_nothing(folders):
    expected, found = (matrix(folders[name]) for name in NAMES[:2])
    torch.testing.assert_close(expected, found, rtol=1e-6, atol=1e-6)
    assert list(folders["disturbed"].glob("checkpoint/state-*/.metadata"))


def test_names_and_parts_are_those_of_the_tables(folders):
    for folder in folders.values():
        result = lo.CompletionResult.load(folder)
        assert sorted(f"user-é{k}" for k in range(USERS)) == sorted(result.row_ids)
        assert sorted(10**12 + k for k in range(ITEMS)) == sorted(result.col_ids)
