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
from torch.utils._pytree import tree_leaves, tree_map

import lowrank_opt as lo
from lowrank_opt import distributed
from lowrank_opt.completion.loop.checkpoint import Checkpoint
from lowrank_opt.distributed import saving
from lowrank_opt.distributed.digest import checksum
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import by_owner, cuts
from lowrank_opt.errors import ObservationError
from lowrank_opt.kernels.loops.passes import product_pass
from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.plan import plan_of
from lowrank_opt.observations import CompressedAxis
from lowrank_opt.solvers import SOLVERS
from lowrank_opt.tables.parquet import write_columns
from tests.emulated import DEVICE, Elsewhere, emulated_device
from tests.preloaded import run_script
from tests.unit import distributed_columns as columns
from tests.unit import distributed_shares as shares
from tests.unit import distributed_worker as worker


def run(processes: int, folder: Path, *steps: str) -> list[dict[str, Tensor]]:
    """Run steps of the worker in some processes; return what each of them left."""
    done = run_script(Path(worker.__file__), folder, processes, *steps, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{processes}.{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def one() -> dict[str, Tensor]:
    obs = worker.observed()
    found = worker.fits(obs) | worker.proofs(obs) | worker.certificates(worker.turned(obs))
    return found | worker.cut(obs) | shares.fits(spread=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module", params=[2, 4])
def many(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Tensor]]:
    steps = {2: ("first", "whole"), 4: ()}[request.param]
    return run(request.param, folder, "fits", *steps)


def test_too_few_rows_for_a_map_are_refused_in_all_processes(many):
    assert [1.0] * len(many) == [float(found["refused"]) for found in many]
    assert len({int(found["rows"]) for found in many}) > 1, "alike in all, nothing is tried"


def test_what_no_process_has_all_of_them_say(many):
    for found in many:
        assert bool(found["no entries"])
        assert bool(found["no weights"])


def test_all_processes_return_the_result_of_one(one, many):
    for name, expected in one.items():
        for found in many:
            # Parameterizations whose steps amplify rounding are within 1e-9 all the same.
            torch.testing.assert_close(expected, found[name], rtol=1e-9, atol=1e-9, msg=name)
            assert torch.equal(many[0][name], found[name]), name


def test_a_process_holds_the_rows_of_one_block_of_columns_at_most(many):
    # Blocks of at most twenty entries, in columns of at most so many.
    for found in many:
        rows = found["cut.rows_of_blocks"]
        assert len(rows) > 2
        assert 0 < int(rows.min()) <= int(rows.max()) <= 20 < worker.SHAPE[0]


def test_rows_of_half_sweeps_are_those_of_one_to_the_last_bit(one, many):
    # Without biases: a mean is a sum over processes.
    for name in ("als_rows", "cut.als_rows"):
        assert torch.equal(one[name], many[0][name])


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


def test_bytes_of_rows_that_are_cut_are_those_that_columns_ask_for(many):
    obs, P, loss = worker.observed(), len(many), 2 * 8 * (len(many) - 1) / len(many)
    owners = [
        torch.bucketize(x, torch.tensor(cuts(k, P)[1:-1]), right=True)
        for x, k in ((obs.rows, 23), (obs.cols, 17))
    ]
    for rank, found in enumerate(many):
        # Each pair of a row of this process and another process with an entry of it, once.
        elsewhere = (owners[0] == rank) & (owners[1] != rank)
        pairs = torch.stack((obs.rows, owners[1]))[:, elsewhere].unique(dim=1).shape[1]
        gathered = math.ceil(17 / P) * 3 * 8 * (P - 1)
        assert loss == pytest.approx(float(found["bytes.cut.0"]), abs=1)
        assert pairs * (3 + 1) * 8 + gathered + loss == pytest.approx(
            float(found["bytes.cut.1"]), abs=1
        )
        # A map of rank two, whose factors have four columns.
        frames, reduced = 8 * (P - 1) * (1 + 2 * 2), 2 * 8 * (1 + 17 * 4 + 2 * 4) * (P - 1) / P
        assert frames + reduced == pytest.approx(float(found["bytes.cut.gradient"]), abs=3)
        # A draw: sums over rows; lines of two factors, a one and a bias, with a level of noise.
        sums, line = 2 * 8 * 12 * (P - 1) / P, 4 * 4 + 8
        assert sums == pytest.approx(float(found["bytes.draw.0"]), abs=1)
        assert line * (pairs + math.ceil(17 / P) * (P - 1)) == float(found["bytes.draw.1"])


def test_no_process_has_all_lines_of_a_factor(one, many):
    fits = [name for name in columns.PLAN if name != "held"]
    for name in (*fits, *(f"{fit}.objective" for fit in fits)):
        for found in many:
            assert torch.equal(many[0][f"columns.{name}"], found[f"columns.{name}"]), name
            expected = one[f"cut.{name}"]
            torch.testing.assert_close(expected, found[f"columns.{name}"], rtol=1e-9, atol=1e-9)
    assert torch.equal(one["cut.als_rows"], many[0]["columns.als_rows"])
    torch.testing.assert_close(many[0]["columns.held"], many[0]["cut.held"])
    torch.testing.assert_close(one["cut.bound"], many[0]["columns.bound"])


def check_columns(found: dict[str, Tensor], rank: int, P: int) -> None:
    """Hold to the cost model, with blocks of 16 entries: 4 rows, or 2 columns."""
    K, r, shares = columns.RANK + 1, columns.RANK, (320 // P, 160 // P)
    pairs = (columns.regular().rows, columns.regular().cols)
    for side, lines in ((0, 4), (1, 2)):
        own, other, across = pairs[side], pairs[1 - side], shares[1 - side]
        # Lines that this process has and a block of another one names, once for each block.
        theirs = (other // across == rank) & (own // shares[side] != rank)
        asked = torch.stack((other, own // lines))[:, theirs].unique(dim=1).shape[1]
        sent = asked * (K + 1) * 8 + 2 * 8 * (P - 1) / P
        assert sent == pytest.approx(float(found[f"bytes.columns.{side}"]), abs=1)
    # A gradient: lines of columns for the blocks of rows, and their gradients back.
    own, across, block = pairs[0] // shares[0], pairs[1] // shares[1], pairs[0] // 4
    named = torch.stack((pairs[1], block))
    there, back = (
        named[:, (x == rank) & (y != rank)].unique(dim=1).shape[1]
        for x, y in ((across, own), (own, across))
    )
    sent = (there + back) * r * 8 + 2 * 8 * (P - 1) / P
    assert sent == pytest.approx(float(found["bytes.columns.gradient"]), abs=1)
    peak, longest = found["lines.held"].tolist()
    k = shares[0]
    # Random numbers come sixteen lines at a time.
    begun = sum(shares) * (K + r) + k * r + 3 * 16 * r
    swept = (sum(shares) + k) * K + columns.BLOCK * K + 4 * columns.LINES * K + K * K
    assert max(k, columns.BLOCK) == longest
    assert (sum(shares) + k) * K <= peak <= max(begun, swept)


def test_what_columns_that_are_cut_cost_is_that_of_the_cost_model(many, alone):
    for rank, found in enumerate(many):
        check_columns(found, rank, len(many))
    check_columns(columns.counts(), 0, 1)


def test_operations_are_divided_among_the_processes(many, alone):
    whole = worker.operations()
    for side in (0, 1):
        # Gram matrices, right-hand sides and residuals, of 192 entries in three unknowns.
        assert 192 * (2 * 3 * 3 + 2 * 3 + 2 * 3) == int(whole[f"operations.{side}"])
        for found in many:
            assert int(whole[f"operations.{side}"]) == len(many) * int(found[f"operations.{side}"])


def test_additions_and_multiplications_are_those_of_the_cost_model(many, alone):
    whole, P = columns.arithmetic(), len(many)
    # Of 192 entries of 24 x 16: residuals and two gradients, with factors of 2 or 4 columns.
    shared = {
        "gradient": 192 * (6 * 2 + 4),
        "map": 192 * (6 * 4 + 4) + 98 * 24,
        "posterior.0": int(whole["arithmetic.posterior.0"]),
        "posterior.1": int(whole["arithmetic.posterior.1"]),
        "draw.0": int(whole["arithmetic.draw.0"]),
        # In every process, second moments of all columns, and of the rows that its block names.
        "draw.1": int(whole["arithmetic.draw.1"]) - 10 * (16 + 24),
    }
    for name, divided in shared.items():
        rest = int(whole[f"arithmetic.{name}"]) - divided
        assert rest >= 0
        for found in many:
            assert divided / P + rest == int(found[f"arithmetic.{name}"]), name


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


def test_certificates_of_rows_that_are_cut_are_those_of_whole_ones(one, many):
    # Twice the objective with the ridge on factors, which is above that with the nuclear norm.
    above, bound = float(one["cut.als.objective"][-1]) / 2, float(one["cut.bound"])
    for found in many:
        objective, loose = found["cut.bounds"].tolist()
        assert bound < objective < above * (1 + 1e-9)
        # All processes draw the same starts.
        assert torch.equal(many[0]["cut.bounds"], found["cut.bounds"])
        assert 0.95 * bound < loose < bound


def test_the_same_entries_are_held_out_on_any_number_of_processes(many, alone):
    expected = worker.held(distributed.split_rows(worker.observed()))
    for name, truth in expected.items():
        torch.testing.assert_close(truth, many[0][name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(many[0]["held.fit"], many[0]["cut.held"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("many", [2], indirect=True)
def test_a_checkpoint_goes_on_with_another_number_of_processes(many, folder, alone):
    there = worker.checkpoints(folder, "on")
    for name in (
        "variational",
        "lbfgs",
        "als",
        "columns.als",
        "cut.gibbs",
        "columns.lbfgs",
        "cut.momentum",
    ):
        expected, found = many[0][f"whole.{name}"], there[f"on.{name}"]
        torch.testing.assert_close(expected, found, rtol=1e-6, atol=1e-6)
        assert not torch.equal(many[0][f"first.{name}"], found)


def test_positions_beyond_32_bits_are_cut_and_sorted(tmp_path):
    size = 3 * 2**31
    assert [0, 2**31, 2**32, size] == cuts(size, 3)
    positions = torch.tensor([size - 1, 0, 2**31, 2**31 - 1])
    order, sizes = by_owner(positions, cuts(size, 3))
    assert ([1, 3, 2, 0], [2, 1, 1]) == (order.tolist(), sizes)


def test_entries_beyond_two_to_the_31_are_counted():
    # Nothing is as long as the entries: where they begin and end is all that plans are made from.
    counts = torch.tensor([2**31 + 5, 0, 3])
    pointers, none = (
        torch.cat((counts[:1] * 0, counts.cumsum(0))),
        torch.empty(0, dtype=torch.int64),
    )
    plan = plan_of(CompressedAxis(pointers, none.int(), none))
    assert ([2**31 + 5] * 2, [2**31 + 5, 2**31 + 8]) == (
        plan.short.begins.tolist(),
        plan.short.ends.tolist(),
    )
    lengths = plan.pieces.ends - plan.pieces.begins
    assert (2**31 + 5, 2**31 + 5) == (int(lengths.sum()), int(plan.pieces.ends[-1]))
    assert int(lengths.max()) <= sizes.PIECE


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


COLLECTIVES = ("all_reduce", "all_gather", "all_to_all_single", "broadcast")


def test_a_group_for_one_kind_of_device_is_sent_no_other(alone, monkeypatch, tmp_path):
    # As NCCL refuses tensors of the CPU; the emulated device stands for CUDA.
    sent = []

    def checked(name: str):
        real = getattr(torch.distributed, name)

        def call(*given, **options):
            tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
            assert all(isinstance(x, Elsewhere) for x in tensors), name
            sent.append(name)
            return real(*tree_map(lambda x: getattr(x, "inner", x), given), **options)

        return call

    for name in COLLECTIVES:
        monkeypatch.setattr(torch.distributed, name, checked(name))
    monkeypatch.setattr(Processes, "devices", (DEVICE.type,))
    ratings = {"user": ["a", "b", "b"], "item": [1, 1, 2], "rating": [1.0, 2.0, 4.0]}
    write_columns(tmp_path / "part.parquet", ratings)
    given = {"solver": "als", "penalty": 0.5, "max_iterations": 2}
    with emulated_device():
        read = distributed.read_folder(tmp_path, cut=True)
        result = distributed.complete(read.observations, 1, solver="variational", max_iterations=2)
        saving.save(result, read, tmp_path / "model")
        part = distributed.split_rows(worker.observed())
        for entries in (part, distributed.cut_rows(part)):
            kept = Checkpoint(tmp_path / "state", every=1, store=distributed.SharedStore())
            distributed.complete(
                entries, 2, solver="variational", max_iterations=1, checkpoint=kept
            )
        distributed.complete(part, 2, **given, generator=worker.seeded()).certificate()
        distributed.gather_observations(part)
    assert set(COLLECTIVES) == set(sent)
    assert {"a", "b"} == set(lo.CompletionResult.load(tmp_path / "model").row_ids)


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
    with pytest.raises(ObservationError, match="got none in any of the processes"):
        distributed.complete(part, 2, solver="als", penalty=1.0, validation=1e-12)
    with pytest.raises(ObservationError, match="got 220 others"):
        distributed.complete(part, worker.maps()["homogeneous"], loss="logistic")
