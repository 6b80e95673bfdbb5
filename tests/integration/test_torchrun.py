"""`torchrun -m lowrank_opt complete` on a folder of Parquet files, one worker killed on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.tables.parquet import write_columns
from tests.preloaded import run_script

pytest.importorskip("pyarrow")
ROOT = Path(__file__).resolve().parents[2]
USERS, ITEMS = 40, 30
# For a single process, which needs no launcher.
AS_TORCHRUN_SETS = {
    **{"TORCHELASTIC_RUN_ID": "one", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"},
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
}


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


def words(tables: Path, out: Path, *options: str) -> list[str]:
    options = ("--tolerance", "1e-300", "--rank", "3", "--quiet", "--json", *options)
    return ["complete", str(tables), "--out", str(out), *options]


def start(processes: int, *asked: str) -> subprocess.Popen[str]:
    launch = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "lowrank_opt", *asked]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def matrix(folder: Path) -> torch.Tensor:
    """Return predictions with rows and columns in the order of their ids."""
    result = lo.CompletionResult.load(folder)
    rows, cols = (np.argsort(x) for x in (result.row_ids, result.col_ids))
    assert USERS == len(rows)
    return result.predict(torch.from_numpy(rows).unsqueeze(1), torch.from_numpy(cols)).double()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a launcher has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(x) for x in found]


@pytest.fixture(scope="module")
def undisturbed(tables: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    asked = words(tables, folder / "model", "--max-iterations", "60", "--checkpoint-every", "0")
    (folder / "one.py").write_text(f"from lowrank_opt.cli import main\nexit(main({asked}))\n")
    done = run_script(folder / "one.py", folder=folder, env=AS_TORCHRUN_SETS)
    assert done.returncode in (0, 1), done.stderr
    return folder / "model"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed in /proc")
def test_a_killed_worker_changes_nothing(tables: Path, undisturbed: Path, tmp_path: Path):
    out = tmp_path / "model"
    running = start(2, *words(tables, out, "--max-iterations", "60"))
    end = time.monotonic() + 120
    while not list(out.glob("checkpoint/state-*/.metadata")) and time.monotonic() < end:
        time.sleep(0.02)
    victim = workers_of(running)[-1]
    os.kill(victim, signal.SIGKILL)
    text, _ = running.communicate(timeout=200)
    assert running.returncode in (0, 1), text
    assert f"{signal.SIGKILL}" in text or "SIGKILL" in text
    torch.testing.assert_close(matrix(undisturbed), matrix(out), rtol=1e-5, atol=1e-5)


def test_names_and_parts_are_those_of_the_tables(undisturbed: Path):
    result = lo.CompletionResult.load(undisturbed)
    assert sorted(f"user-é{k}" for k in range(USERS)) == sorted(result.row_ids)
    assert sorted(10**12 + k for k in range(ITEMS)) == sorted(result.col_ids)
