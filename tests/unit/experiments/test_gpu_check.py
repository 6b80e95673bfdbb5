"""The check on GPUs: what it says without one, and that it runs, on the CPU."""

import json

import pytest
import torch

from experiments import gpu_check
from lowrank_opt.solvers import SOLVERS

SMALL = ("--profile", "smoke", "--device", "cpu")


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.NO_GPU == gpu_check.main(["--out", str(tmp_path)])
    assert "no GPU: nothing was run\n" == capsys.readouterr().out


def test_every_solver_has_a_line(tmp_path, capsys):
    assert 0 == gpu_check.main([*SMALL, "--out", str(tmp_path)])
    lines = json.loads((tmp_path / "gpu_check.json").read_text())["lines"]
    passes = ["torch: loss and gradient, rank 2", "torch: half sweep, rank 2"]
    assert [*SOLVERS, "estimator: als", *passes] == [line["what"] for line in lines]
    assert "share of copy bandwidth" in capsys.readouterr().out


def test_a_difference_is_a_failure(monkeypatch, tmp_path):
    wrong = [gpu_check.Line("als", 1.0, difference=1e-2)]
    monkeypatch.setattr(gpu_check, "solver_lines", lambda device: wrong)
    assert 1 == gpu_check.main([*SMALL, "--out", str(tmp_path)])


@pytest.mark.parametrize("difference", [None, 1e-5])
def test_lines_hold_within_rounding(difference):
    assert gpu_check.Line("pass", 1.0, difference).holds
