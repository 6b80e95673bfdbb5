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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_summed_alike_on_every_device(dtype):
    axis, w = skewed().csr, skewed().weights.to(dtype)
    data = (normal(19, 5).to(dtype), axis.indices, axis.pointers.to(axis.indices), w)
    dense = torch.zeros(23, 19, dtype=dtype)
    dense[skewed().rows, skewed().cols] = w
    expected, eps = dense.double() @ data[0].double(), torch.finfo(dtype).eps
    for found in (gaussian._bags(*data), gaussian._padded_bags(*data)):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=100 * eps)


def test_rows_are_the_same_in_any_block_and_on_any_number_of_threads(monkeypatch):
    obs, K = skewed(), 3
    rows = GaussianRows.of(obs, obs.csr, torch.float32)
    given = {"scales": torch.ones(23).double(), "pull": normal(23, K + 1, seed=2)}
    found, before = [], torch.get_num_threads()
    for cached, threads in ((1 << 18, 1), (1, 1), (60, 1), (1 << 18, 3)):
        monkeypatch.setattr(gaussian, "CACHED", cached)
        torch.set_num_threads(threads)
        other = Moments.of(normal(19, K).float(), normal(19, seed=1).float())
        own = Moments.of(torch.zeros(23, K), torch.zeros(23))
        with use_backend("torch"):
            losses = rows.posterior(own, other, precision=torch.eye(K + 1).double(), **given)
        found.append((*losses, own.means, own.products))
    torch.set_num_threads(before)
    assert all(map(torch.equal, found[0] * 3, (x for one in found[1:] for x in one)))


def test_losses_that_cancel_are_summed_entry_by_entry():
    """Values near 1000, fitted to 0.1: squares cancel to a part in 1e8, below float32."""
    rows, cols = torch.arange(40) // 10, torch.arange(40) % 10
    values = 1000 + 0.1 * normal(40)
    obs = Observations(rows, cols, values, (4, 10))
    given = {"scales": torch.ones(4).double(), "pull": torch.zeros(4, 2).double()}
    other = Moments.of(torch.ones(10, 1), torch.zeros(10))
    own = Moments.of(torch.zeros(4, 1), torch.zeros(4))
    precision = torch.tensor([1e-6, 1e9]).diag().double()
    with use_backend("torch"):
        losses, _ = GaussianRows.of(obs, obs.csr, torch.float32).posterior(
            own, other, precision=precision, **given
        )
    residuals = obs.values.double().view(4, 10) - own.means[:, :1].double()
    # The posterior variance, a tenth of the noise's, counts once for each entry.
    torch.testing.assert_close(losses, residuals.square().sum(1) + 1.0, rtol=0.05, atol=0.02)


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
