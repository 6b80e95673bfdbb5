"""The rank of a variational fit: more is never worse than noise, and can be stopped anywhere."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import Checkpoint, variational
from lowrank_opt.completion.bayes.growth import GrowingSweeps
from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.observations import Observations

DECAYS = [(0.85, 0.02, 0.3), (0.9, 0.1, 0.3), (0.7, 0.3, 0.2)]


def decaying(decay, noise, share, m=60, n=400, seed=0):
    """Smooth columns with geometrically decaying singular values: fitted and held-out entries."""
    rng = np.random.default_rng(seed)
    left, steps = rng.standard_normal((m, 40)), rng.standard_normal((n, 40))
    right = np.cumsum(steps, axis=0)
    right = (right - right.mean(0)) / right.std(0)
    W = left * decay ** np.arange(40) @ right.T
    Y = W / W.std() + noise * rng.standard_normal((m, n))
    rows, cols = np.nonzero(rng.random((m, n)) < share)
    held = rng.random(len(rows)) < 0.2
    parts = [
        Observations(rows[part], cols[part], Y[rows[part], cols[part]], (m, n))
        for part in (~held, held)
    ]
    return parts[0], parts[1]


def fit(observations, rank, **options):
    return variational(observations, rank, generator=torch.Generator().manual_seed(0), **options)


def error(result, held):
    return float((result.predict(held.rows, held.cols) - held.values).square().mean().sqrt())


@pytest.mark.parametrize("problem", DECAYS)
def test_a_larger_rank_is_not_worse(problem):
    fitted, held = decaying(*problem)
    errors = [error(fit(fitted, rank), held) for rank in (4, 8, 16, 32)]
    assert all(larger <= 1.03 * smaller for smaller, larger in pairwise(errors))


def test_supported_directions_stay():
    fitted, _ = decaying(*DECAYS[0])
    spectra = [fit(fitted, rank).operator.singular_values() for rank in (6, 24)]
    live = [int((s > 1e-2 * s[0]).sum()) for s in spectra]
    assert 6 == live[0] < live[1]


def test_a_stage_without_more_directions_is_undone():
    g = torch.Generator().manual_seed(1)
    W = torch.outer(torch.randn(50, generator=g), torch.randn(40, generator=g))
    mask = torch.rand(50, 40, generator=g) < 0.5
    fitted = Observations.from_dense(
        (W + 0.1 * torch.randn(50, 40, generator=g)).where(mask, torch.nan)
    )
    sweeps = GrowingSweeps(VariationalPosterior(fitted, 1, 50.0, g), 2, 1e-3, None)
    iterates = []
    while not iterates or not iterates[-1].settled:
        iterates.append(next(sweeps))
    last_of_first = [x for x in iterates if x.stage == 0][-1]
    assert iterates[-1].stage == 2
    assert torch.equal(last_of_first.operator.left, iterates[-1].operator.left)
    assert last_of_first.objective == iterates[-1].objective


@pytest.mark.parametrize("stop", [5, 20, 30])
def test_a_fit_that_grows_goes_on_from_a_checkpoint(tmp_path, stop):
    fitted, _ = decaying(*DECAYS[1])
    whole = fit(fitted, 32)
    assert len(whole.history) > 30
    _ = fit(fitted, 32, max_iterations=stop, checkpoint=Checkpoint(tmp_path, every=stop))
    resumed = variational(fitted, 32, checkpoint=Checkpoint(tmp_path, every=stop, resume=True))
    assert torch.equal(whole.operator.left, resumed.operator.left)
    assert whole.history.objective == resumed.history.objective


def test_growing_keeps_what_was_fitted():
    fitted, _ = decaying(*DECAYS[0])
    model = VariationalPosterior(fitted, 3, 50.0, torch.Generator().manual_seed(0))
    for _ in range(3):
        model.sweep()
    before, larger = model.mean(), model.grown(5)
    op, bias = larger.mean()
    assert torch.equal(before[0].left, op.left[:, :3])
    assert torch.equal(before[1].cols, bias.cols)
    assert lo.LowRankOperator(op.left, op.scale, op.right).rank == 5
    larger.sweep()
    assert torch.equal(before[0].left, model.mean()[0].left)
