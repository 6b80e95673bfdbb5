"""Two and four processes against one: solvers, certificates, bytes, checkpoints.

The processes of a test are copies of one that has imported what they need; what they compute is in
`distributed_worker`. That torchrun starts them as well is tested with the command.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt import distributed
from lowrank_opt.distributed.digest import checksum
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import by_owner, cuts
from lowrank_opt.errors import ObservationError
from lowrank_opt.kernels.loops.passes import product_pass
from lowrank_opt.solvers import SOLVERS
from tests.preloaded import run_script
from tests.unit import distributed_worker as worker


def run(processes: int, folder: Path, *steps: str) -> list[dict[str, Tensor]]:
    """Run steps of the worker in some processes; return what each of them left."""
    done = run_script(Path(worker.__file__), folder, processes, *steps, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{processes}.{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def one() -> dict[str, Tensor]:
    obs = worker.observed()
    return worker.fits(obs) | worker.proofs(obs) | worker.certificates(worker.turned(obs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module", params=[2, 4])
def many(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Tensor]]:
    steps = {2: ("first", "whole"), 4: ()}[request.param]
    return run(request.param, folder, "fits", *steps)


def test_all_processes_return_the_result_of_one(one, many):
    for name, expected in one.items():
        for found in many:
            # Parameterizations whose steps amplify rounding are within 1e-9 all the same.
            torch.testing.assert_close(expected, found[name], rtol=1e-9, atol=1e-9, msg=name)
            assert torch.equal(many[0][name], found[name]), name


def test_rows_of_half_sweeps_are_those_of_one_to_the_last_bit(one, many):
    # Without biases: a mean is a sum over processes.
    assert torch.equal(one["als_rows"], many[0]["als_rows"])


def test_entries_come_together_whoever_had_them(many):
    obs = worker.observed()
    dense = torch.zeros(worker.SHAPE, dtype=torch.float64)
    dense[obs.rows, obs.cols] = obs.values
    for found in many:
        assert torch.equal(dense, found["whole"])
        assert checksum(obs) == int(found["checksum"])


def test_what_is_random_is_that_of_the_first(many):
    for found in many:
        assert torch.equal(many[0]["agreed"], found["agreed"])
        assert torch.equal(many[0]["agreed.map"], found["agreed.map"])


def test_bytes_are_those_of_the_cost_model(many):
    (m, n), size, P = worker.SHAPE, 8, len(many)
    longest = {0: math.ceil(m / P), 1: math.ceil(n / P)}
    summed = 2 * (1 + 2 * n) * size * (P - 1) / P
    for found in many:
        gradient = longest[0] * 2 * size * (P - 1) + summed
        assert gradient == pytest.approx(float(found["bytes.gradient"]), abs=2)
        for side in (0, 1):
            half = longest[side] * 3 * size * (P - 1) + 2 * size * (P - 1) / P
            assert half == pytest.approx(float(found[f"bytes.half_sweep.{side}"]), abs=1)


def test_bytes_of_a_certificate_are_those_of_the_cost_model(many):
    (m, n), size, P = worker.SHAPE, 8, len(many)
    sums = 2 * (min(m, n) ** 2 + 2 * n) * size * (P - 1) / P
    scalars = 2 * 32 * size
    for found in many:
        assert sums == pytest.approx(float(found["bytes.certificate.sums"]), abs=scalars)
    # Row, column, value and weight of each entry go to the process of its column.
    there = sum(float(found["bytes.certificate.entries"]) for found in many)
    assert 0 < there <= 4 * 8 * 220
    assert sum(float(found["bytes.certificate"]) for found in many) <= there + P * (
        sums + scalars + 8 * P * n
    )


def test_the_same_entries_are_held_out_on_any_number_of_processes(many, alone):
    expected = worker.held(distributed.split_rows(worker.observed()))
    for name, truth in expected.items():
        torch.testing.assert_close(truth, many[0][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("many", [2], indirect=True)
def test_a_checkpoint_goes_on_with_another_number_of_processes(many, folder, alone):
    there = worker.checkpoints(folder, "on")
    for name in ("variational", "lbfgs"):
        expected, found = many[0][f"whole.{name}"], there[f"on.{name}"]
        torch.testing.assert_close(expected, found, rtol=1e-6, atol=1e-6)
        assert not torch.equal(many[0][f"first.{name}"], found)


def test_positions_beyond_32_bits_are_cut_and_sorted(tmp_path):
    size = 3 * 2**31
    assert [0, 2**31, 2**32, size] == cuts(size, 3)
    positions = torch.tensor([size - 1, 0, 2**31, 2**31 - 1])
    order, sizes = by_owner(positions, cuts(size, 3))
    assert ([1, 3, 2, 0], [2, 1, 1]) == (order.tolist(), sizes)


def test_entries_beyond_two_to_the_31_are_reached_through_a_mapped_file(tmp_path):
    # Files with holes: only the last few numbers are on the disk.
    first, count = 2**31 + 5, 3
    for name, last in (("values", np.float32([2, 3, 4])), ("indices", np.int32([1, 0, 1]))):
        with open(tmp_path / name, "wb") as file:
            file.seek(first * 4)
            file.write(last.tobytes())
    values = np.memmap(tmp_path / "values", np.float32, "r")
    indices = np.memmap(tmp_path / "indices", np.int32, "r")
    pointers, other = np.array([first, first + 1, first + count]), np.float32([[1.0], [10.0]])
    sums, biases = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    assert len(values) == first + count > 2**31
    product_pass(0, 2, pointers, indices, None, values, other, sums, biases)
    assert ([[20.0], [43.0]], [2.0, 7.0]) == (sums.tolist(), biases.tolist())


@pytest.fixture
def alone():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield Processes()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", [k for k, s in SOLVERS.items() if not s.traits.distributed])
def test_other_solvers_refuse_a_part(name: str, alone):
    part = distributed.split_rows(worker.observed())
    assert "distributed" not in name
    solver = SOLVERS[name](radius=1.0) if name == "max_norm" else SOLVERS[name]()
    misfits = list(solver.traits.misfits(lo.CompletionProblem(part, 2)))
    assert "takes all entries in one process; got a part of them" in misfits


def test_errors_say_what_to_do(alone):
    with pytest.raises(ObservationError, match="pass them through split_rows or own_rows"):
        distributed.complete(worker.observed(), 2)
    part = distributed.split_rows(worker.observed())
    with pytest.raises(ObservationError, match=r"a share must be in \(0, 1\); got 1.5"):
        distributed.complete(part, 2, solver="als", penalty=1.0, validation=1.5)
    with pytest.raises(ObservationError, match="every process must have entries; got"):
        distributed.complete(part, 2, solver="als", penalty=1.0, validation=1e-12)
    with pytest.raises(ObservationError, match="got 220 others"):
        distributed.complete(part, worker.maps()["homogeneous"], loss="logistic")
