"""The roofline experiment: what it counts, and the record it writes."""

import json

import pytest

from experiments import roofline


def test_smoke_profile_measures_every_kernel(tmp_path, capsys) -> None:
    options = ["--profile", "smoke", "--turns", "1", "--ranks", "4", "--threads", "1"]
    assert 0 == roofline.main([*options, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "roofline.json").read_text())
    small = roofline.skewed_observations((30, 20), 200)
    names = [kernel.name for kernel in roofline.kernels(small, 4)]
    assert names == [line["name"] for line in record["lines"]]
    assert all(0 < line["fractions"][0] for line in record["lines"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert record["machine"]["bandwidth"] > 0


def test_bound_is_the_larger_of_both_times() -> None:
    machine = roofline.Machine(bandwidth=10.0, rate=100.0)
    kernels = [roofline.Kernel("k", 1, flops, 20.0, list) for flops in (100.0, 1000.0)]
    assert [2.0, 10.0] == [kernel.bound(machine) for kernel in kernels]


def test_operations_of_loss_and_gradients_are_six_a_number() -> None:
    observed = roofline.skewed_observations((30, 20), 200)
    loss = roofline.kernels(observed, 4)[0]
    assert loss.flops == pytest.approx(6 * 200 * 4)


def test_entries_are_distinct_and_skewed() -> None:
    observed = roofline.skewed_observations((300, 200), 5000)
    assert 5000 == len(set(zip(observed.rows.tolist(), observed.cols.tolist(), strict=True)))
    counts = observed.row_counts.double()
    assert float(counts.max()) > 2 * float(counts.mean())
