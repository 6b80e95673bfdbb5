"""Solvers whose rows are solved in plain torch, as on other devices, against the numba loops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowrank_opt.completion import als, bayesian, max_norm, variational
from lowrank_opt.completion.after.fold_in import FactorPrior, fold_in_rows
from lowrank_opt.kernels import use_backend
from lowrank_opt.kernels.batches import gaussian, padded
from lowrank_opt.kernels.batches.padded import batches
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import Observations
from tests.completion_cases import normal, observe, seeded


def skewed(weights: bool = True) -> Observations:
    """Rows of 0, 1, 2, ... entries, and one with all."""
    mask = torch.arange(19)[None] < torch.arange(23)[:, None] - 1
    mask[11] = True
    rows, cols = mask.nonzero().T
    w = normal(len(rows), seed=3).abs() + 0.1 if weights else None
    return Observations(rows, cols, normal(len(rows)), (23, 19), w)


def with_torch(run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return what numba and what plain torch compute."""
    with use_backend("numba"):
        expected = run()
    with use_backend("torch"):
        return expected, run()


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_every_row_is_in_one_batch_with_its_entries(monkeypatch, block):
    monkeypatch.setattr(padded, "BLOCK", block)
    axis = skewed().csr
    seen = {}
    for batch in batches(axis, 3):
        assert 3 * batch.positions.numel() <= max(block, 3 * int(axis.counts.max()))
        for i, positions, present in zip(*batch.__dict__.values(), strict=True):
            assert int(i) not in seen
            seen[int(i)] = positions[present].tolist()
    spans = axis.pointers.tolist()
    assert {i: list(range(spans[i], spans[i + 1])) for i in range(23)} == seen


@pytest.mark.parametrize("noisy", [False, True])
def test_rows_are_solved_alike(noisy):
    obs, K = skewed(), 4
    rows, F, o = RowProblems.of(obs, obs.csr, torch.float64), normal(19, K), normal(19, seed=1)
    given = {
        "precision": torch.eye(K).double() + 0.1,
        "strengths": torch.linspace(0.5, 2, 23).double(),
        "pull": normal(23, K, seed=2),
        "noise": normal(23, K, seed=4) if noisy else None,
        "scale": 1.3,
    }

    def run() -> Tensor:
        x = torch.zeros(23, K, dtype=torch.float64)
        return torch.cat((torch.tensor([rows.solve(x, F, o, **given)]).double(), x.flatten()))

    torch.testing.assert_close(*with_torch(run), rtol=1e-11, atol=1e-11)


def test_a_singular_row_stays_and_is_reported():
    obs = skewed()
    rows, F = RowProblems.of(obs, obs.csr, torch.float64), normal(19, 4)

    def run() -> Tensor:
        x, zero = torch.ones(23, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
        loss = rows.solve(x, F, F.new_zeros(19), precision=zero, strengths=F.new_ones(23))
        assert loss != loss
        return x[:2]

    expected, found = with_torch(run)
    assert torch.equal(expected, found)
    assert torch.equal(torch.ones_like(found), found)


def test_pivots_lost_to_rounding_are_raised():
    A = torch.ones(2, 3, 3, dtype=torch.float64)
    A[1] += torch.eye(3)
    L = gaussian._factor(A, 1e-3)
    assert bool((L[0].diagonal() ** 2 >= 1e-3 * (1 - 1e-12)).all())
    torch.testing.assert_close(L[1] @ L[1].T, A[1])


@pytest.mark.parametrize("noisy", [False, True])
def test_gaussian_rows_agree(noisy):
    obs, K = skewed(), 3
    rows = GaussianRows.of(obs, obs.csr, torch.float64)
    given = {
        "scales": torch.linspace(0.5, 2, 23).double(),
        "precision": torch.eye(K + 1).double() + 0.2,
        "pull": normal(23, K + 1, seed=2),
        "multipliers": torch.linspace(0.5, 2, 19).double(),
    }

    def run() -> Tensor:
        other = Moments.of(normal(19, K), normal(19, seed=1))
        own = Moments.of(normal(23, K), normal(23, seed=1))
        if noisy:
            losses = rows.draw(own, other, **given, noise=normal(23, K + 1, seed=5))
            return torch.cat((losses, own.means.flatten(), own.products.flatten()))
        parts = [*rows.posterior(own, other, **given), own.means, own.products, own.total()]
        return torch.cat([x.flatten() for x in parts])

    torch.testing.assert_close(*with_torch(run), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "solve",
    [
        lambda obs: als(obs, 2, penalty=0.1, generator=seeded(0)),
        lambda obs: als(obs, 2, penalty=0.1, method="cg", sweeps=5, generator=seeded(0)),
        lambda obs: max_norm(obs, 2, radius=3.0, max_iterations=5, generator=seeded(0)),
        lambda obs: variational(obs, 2, max_iterations=5, generator=seeded(0)),
        lambda obs: bayesian(obs, 2, burn_in=1, samples=2, generator=seeded(0)),
    ],
    ids=["als", "als-cg", "max_norm", "variational", "bayesian"],
)
def test_solvers_agree(solve):
    obs = observe(normal(20, 2) @ normal(2, 15, seed=1), 0.6)

    def run() -> Tensor:
        result = solve(obs)
        i, j = torch.arange(20), torch.arange(15)
        return result.predict(i.repeat_interleave(15), j.repeat(20)).double()

    torch.testing.assert_close(*with_torch(run), rtol=1e-4, atol=1e-4)


def test_new_rows_agree():
    obs = observe(normal(20, 2) @ normal(2, 15, seed=1), 0.6)
    result = als(obs, 2, penalty=0.1, generator=seeded(0))

    def run() -> Tensor:
        prior = FactorPrior.ridge(2, penalty=0.1, bias_penalty=0.1)
        return fold_in_rows(result, obs, prior).operator.left

    torch.testing.assert_close(*with_torch(run), rtol=1e-10, atol=1e-10)
