"""What a bound on the spectral norm of an update implies for singular vectors."""

import math
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from lowrank_opt.merging import SingularBasis, intruder_free_radius, spectral_report


def random_frame(m: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(m, count, generator=generator, dtype=torch.float64)).Q


CASES = {
    "m": st.integers(2, 12),
    "n": st.integers(2, 12),
    "seed": st.integers(0, 10**6),
    "rank": st.integers(1, 4),
}


@given(**CASES, size=st.floats(1e-3, 3.0))
def test_energy_far_from_a_singular_value_is_bounded(
    m: int, n: int, seed: int, rank: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    W0 = torch.randn(m, n, generator=generator, dtype=torch.float64)
    D = torch.randn(m, n, generator=generator, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(D, full_matrices=False)
    D = (U[:, :rank] * (size * s[:rank] / s[0])) @ Vh[:rank]
    x, sigma, yh = torch.linalg.svd(W0, full_matrices=False)
    u, tau, vh = torch.linalg.svd(W0 + D, full_matrices=False)
    energy = (x.mT @ u).square() + (yh @ vh.mT).square()
    distance = (sigma.unsqueeze(1) - tau).abs()
    for d in (0.1, 0.5, 2.0):
        far = (energy * (distance >= d)).sum(0)
        assert float(far.max()) <= 2 * size**2 / d**2 + 1e-9
    outside = (u - x @ (x.mT @ u)).square().sum(0).sqrt()
    assert bool((outside * tau <= size + 1e-9).all())


@given(**CASES, threshold=st.sampled_from([0.3, 0.5, 0.8]))
@example(m=2, n=2, seed=0, rank=1, threshold=0.5)
def test_no_update_within_the_radius_makes_an_intruder(
    m: int, n: int, seed: int, rank: int, threshold: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    W0 = torch.randn(m, n, generator=generator, dtype=torch.float64)
    basis, k = SingularBasis.of(W0), min(m, n)
    radius = intruder_free_radius(basis, k=k, threshold=threshold)
    if not 1e-9 < radius < math.inf:
        return
    D = torch.randn(m, n, generator=generator, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(D, full_matrices=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for update in (U[:, :rank] @ Vh[:rank], rotation(basis, seed)):
            for side in ("left", "right", "both"):
                report = spectral_report(
                    basis, 0.999 * radius * update, k=k, threshold=threshold, side=side
                )
                assert 0 == report.count


def rotation(basis: SingularBasis, seed: int) -> Tensor:
    """Return the update of norm one that turns two neighbouring triples into each other."""
    (x, sigma, y), j = basis.triples, seed % max(len(basis.values) - 1, 1)
    i = min(j + 1, len(sigma) - 1)
    update = torch.outer(x[:, j], y[:, i]) + torch.outer(x[:, i], y[:, j])
    return update / torch.linalg.matrix_norm(update, 2)


@pytest.mark.parametrize("delta", [0.6, 0.9])
def test_updates_somewhat_larger_than_the_gap_do_turn_vectors(delta: float) -> None:
    """Turned by 45 degrees already by an update a little larger than half of the gap."""
    W0 = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    D = delta * torch.tensor([[-1.0, 0.1], [0.1, 1.0]], dtype=torch.float64) / math.hypot(1, 0.1)
    u = torch.linalg.svd(W0 + D).U
    assert abs(float(u[0, 0])) < math.sqrt(0.5)
