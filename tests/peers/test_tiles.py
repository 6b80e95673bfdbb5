"""The Triton backend without a GPU: values by the interpreter, code by the compiler's report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import gpu_check
from lowrank_opt.kernels import use_backend
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.loops import backend as loops
from lowrank_opt.kernels.tiles import backend as tiles
from lowrank_opt.kernels.tiles import cost, entries, sizes
from tests.peers import tiles_worker as worker
from tests.peers.tiles_compiler import Launch, recorded, report_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[tuple[str, int], dict[str, Tensor]]:
    """What Triton's interpreter computes, in a process of its own: kernels are one or the other."""
    file = tmp_path_factory.mktemp("tiles") / "found.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.peers.tiles_worker", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file)


@pytest.mark.parametrize("case", worker.CASES, ids=str)
def test_values_are_those_of_the_loops_in_float64(interpreted, case):
    found, expected = interpreted[case], worker.results(loops, torch.float64, case[1])
    assert set(expected) == set(found)
    eps = torch.finfo(torch.promote_types(getattr(torch, case[0]), torch.float32)).eps
    for name, truth in expected.items():
        size = float(truth.nan_to_num().abs().max().clamp_min(1))
        torch.testing.assert_close(
            found[name].double(), truth, rtol=0, atol=1e3 * eps * size, equal_nan=True, msg=name
        )


def test_columns_are_ranked_as_by_sorting_all_scores(interpreted):
    given = worker.ranking(5)
    scores = (given.rows @ given.cols.mT + given.offsets).where(given.allowed, -torch.inf)
    scores[given.seen] = -torch.inf
    # Of equal scores the first column is the better one.
    values, columns = (x[:, :10] for x in scores.sort(descending=True, stable=True))
    torch.testing.assert_close(interpreted["ranked"]["values"], values)
    assert torch.equal(columns, interpreted["ranked"]["columns"])


@pytest.mark.parametrize(("weighted", "number"), worker.COUNTED, ids=str)
def test_bytes_moved_are_those_of_the_cost_model(interpreted, weighted, number):
    m, n = len(worker.LENGTHS), worker.COLUMNS
    known = cost.Sizes(sum(worker.LENGTHS), m, n, 8, number.itemsize, weighted=weighted)
    for name, moved in interpreted[weighted, number].items():
        assert getattr(cost, name)(known) == moved, name


def launches(width: int, dtype: torch.dtype) -> list[Launch]:
    """Return what is started on vectors of a width, once with every part."""
    with recorded() as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "SHORT", worker.SHORT)
        patch.setattr(sizes, "PIECE", worker.PIECE)
        obs = worker.observed(torch.float32, weighted=True)
        right = worker.normal(worker.COLUMNS, width, seed=0, dtype=dtype)
        left = worker.normal(len(worker.LENGTHS), width, seed=0, dtype=torch.float32)
        model = worker.ModelParts(left, right, left[:, 0].clone(), right[:, 0].float())
        tiles.squared_loss(model, obs, None, worker.Needed(True, True, True, True))
        worker.rows_of(tiles, obs, right, right[:, 0].float())
        if width <= sizes.WIDEST_POSTERIOR:
            worker.posteriors(tiles, obs, width - 2)
        for k in {16, 128} & {width}:
            given = worker.ranking(k)
            tiles.best_columns(given, 10 if k == 128 else 50)
    return found


PLANS = [
    *((generation, 128, torch.float32) for generation in (80, 90, 100)),
    *((generation, 32, torch.float32) for generation in (80, 100)),
    # Unknowns that do not fill a block are masked, which takes registers.
    (90, 63, torch.float32),
    (90, 64, torch.bfloat16),
    (90, 16, torch.bfloat16),
]


@pytest.mark.parametrize(("generation", "width", "dtype"), PLANS, ids=str)
def test_kernels_neither_spill_nor_crowd_and_read_lines_sixteen_bytes_at_a_time(
    generation, width, dtype
):
    for launch in launches(width, dtype):
        report = report_of(launch, generation)
        assert report.spilled == 0, (launch, report)
        assert report.resident >= launch.resident, (launch, report)
        # A posterior reads packed triangles, of one row each, not lines for each entry.
        assert report.wide_loads > 0 or launch.name == "posterior_kernel", (launch, report)


def test_the_report_sees_spills_crowds_and_narrow_loads():
    found = launches(16, torch.float32)
    launch = next(x for x in found if x.name == "product_kernel" and _short(x))
    sound = report_of(launch, 90)
    assert report_of(_other(launch, K=15), 90).wide_loads < sound.wide_loads
    assert report_of(_other(launch, ROWS=64), 90).resident < sound.resident
    assert report_of(_other(launch, ROWS=128, ENTRIES=16), 90).spilled > 0


def _other(launch: Launch, **constants: int) -> Launch:
    return launch._replace(constants=tuple((dict(launch.constants) | constants).items()))


def _short(launch: Launch) -> bool:
    known = dict(launch.constants)
    return known["ROWS"] > 1 and known["K"] == 16


def test_what_is_too_wide_is_done_in_plain_torch(monkeypatch):
    monkeypatch.setattr(entries, "residual_kernel", None)
    obs = worker.observed(torch.float32, weighted=True)
    left, right = (torch.ones(k, 129) for k in obs.shape)
    loss, _ = tiles.squared_loss(worker.ModelParts(left, right), obs, None, worker.Needed())
    exact = (obs.weights.double() * (129 - obs.values.double()).square()).sum()
    torch.testing.assert_close(exact, loss, rtol=1e-6, atol=0)


def test_the_check_on_gpus_compares_every_operation():
    # On the CPU, where "triton" leaves the work to numba.
    lines = gpu_check.kernel_lines(torch.device("cpu"), [2], rows=40, entries=300)
    names = ["loss and gradient", "half sweep", "posterior", "ranking"]
    assert [f"triton: {name}, rank 2" for name in names] == [line.what for line in lines]
    assert all(line.difference < 1e-4 for line in lines)


def test_the_backend_is_that_of_cuda_where_it_is_asked_for():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert backend_of(cuda) is not tiles
    with use_backend("triton"):
        assert (tiles, loops) == (backend_of(cuda), backend_of(cpu))
