"""Gradients at an optimum have leading singular values that are tied to the last bits."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

import lowrank_opt as lo
from lowrank_opt.completion.certificates import random_start


@pytest.fixture
def no_arpack(monkeypatch):
    """Let ARPACK give up, as it does on such gradients."""

    def gives_up(*_args, **_options):
        raise scipy.sparse.linalg.ArpackNoConvergence("no convergence", [], [])

    monkeypatch.setattr(scipy.sparse.linalg, "svds", gives_up)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_the_estimate_of_a_certificate(no_arpack, shape):
    dense = np.random.default_rng(0).standard_normal(shape)
    found = random_start._estimate(scipy.sparse.csr_array(dense))
    assert found == pytest.approx(np.linalg.norm(dense, 2), rel=1e-9)


def test_the_oracle_outside_of_a_subspace(no_arpack):
    g = torch.Generator().manual_seed(0)
    G = torch.randn(20, 15, generator=g, dtype=torch.float64)
    seen = torch.linalg.qr(torch.randn(15, 3, generator=g, dtype=torch.float64))[0]
    ball = lo.NBLoRA((20, 15), 2, radius=1.0, p=1, dtype=torch.float64)
    feasible = lo.Complement(ball, right=seen).feasible_set
    least = feasible.lmo(scipy.sparse.csr_array(G.numpy())).to_dense()
    part = G - G @ seen @ seen.T
    assert float((least * G).sum()) == pytest.approx(-float(torch.linalg.matrix_norm(part, 2)))


def test_completion_of_noisy_entries_ends(no_arpack):
    g = torch.Generator().manual_seed(0)
    Y = torch.randn(30, 3, generator=g) @ torch.randn(3, 20, generator=g)
    Y += 0.3 * torch.randn(30, 20, generator=g)
    mask = torch.rand(30, 20, generator=g) < 0.5
    observed = lo.Observations.from_dense(Y.where(mask, torch.nan))
    ball = lo.HomogeneousBall(observed.shape, 10, radius=40.0, generator=g)
    assert lo.complete(observed, ball).status.succeeded
