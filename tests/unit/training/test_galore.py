"""GaLore and Fira: projectors, ranks, orthogonality, limits; Adam where nothing is projected."""

import itertools

import pytest
import torch
from torch import nn

from lowrank_opt.errors import RankError
from lowrank_opt.training import GaLore


def gradient(m, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=g, dtype=torch.float64)


def stepped(shape, seeds=(0,), **options):
    """Return the changes of a weight, one for each gradient, and the optimizer's state."""
    p = torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
    optimizer = GaLore([p], lr=1.0, **options)
    changes = []
    for seed in seeds:
        before = p.detach().clone()
        p.grad = gradient(*shape, seed)
        optimizer.step()
        changes.append(p.detach() - before)
    return changes, optimizer.state[p]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_projector_captures_the_leading_singular_values(shape):
    _, state = stepped(shape, rank=3)
    P, G = state["projector"], gradient(*shape)
    G = G if shape[0] < shape[1] else G.T
    torch.testing.assert_close(P.T @ P, torch.eye(3).double())
    energy = torch.linalg.svdvals(G)[:3].square().sum()
    assert float(energy) == pytest.approx(float((P.T @ G).square().sum()), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_step_is_adam_in_the_subspace(shape):
    (change,), state = stepped(shape, rank=3, scale=0.5)
    P, G = state["projector"], gradient(*shape)
    R = P.T @ (G if shape[0] < shape[1] else G.T)
    # Adam's first direction is the sign, up to eps.
    expected = -0.5 * P @ (R / (R.abs() + 1e-8))
    torch.testing.assert_close(change if shape[0] < shape[1] else change.T, expected)
    assert 3 == int(torch.linalg.matrix_rank(change))


def test_state_is_smaller_than_that_of_adam():
    _, state = stepped((60, 80), rank=4)
    numbers = sum(x.numel() for x in state.values() if isinstance(x, torch.Tensor))
    assert 4 * (60 + 2 * 80) == numbers


def test_full_rank_is_plain_adamw():
    a = torch.zeros(5, 4, requires_grad=True)
    b = torch.zeros(5, 4, requires_grad=True)
    ours = GaLore([a], lr=0.1, rank=4, weight_decay=0.1)
    theirs = torch.optim.AdamW([b], lr=0.1, weight_decay=0.1)
    for seed in range(5):
        a.grad = b.grad = gradient(5, 4, seed).float()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b)


def test_residual_is_orthogonal_to_the_subspace():
    (plain,), state = stepped((6, 9), rank=3)
    (change,), _ = stepped((6, 9), rank=3, residual=True)
    rest = change - plain
    assert float(rest.norm()) > 0.1
    assert float((state["projector"].T @ rest).norm()) <= 1e-13 * float(rest.norm())


def test_residual_grows_slowly():
    p = torch.zeros(6, 9, dtype=torch.float64, requires_grad=True)
    optimizer = GaLore([p], lr=1.0, rank=3, residual=True)
    norms = []
    for k in range(6):
        p.grad = gradient(6, 9) + k * gradient(6, 9, 7)
        optimizer.step()
        norms.append(optimizer.state[p]["residual_norm"])
    assert all(b <= 1.01 * a * (1 + 1e-12) for a, b in itertools.pairwise(norms))


def test_refresh_transports_the_moments():
    _, before = stepped((6, 9), seeds=(0, 1), rank=3, refresh=2)
    old = before["projector"] @ before["adam_mean"]
    (*_, _), after = stepped((6, 9), seeds=(0, 1, 2), rank=3, refresh=2)
    P = after["projector"]
    expected = 0.9 * (P @ (P.T @ old)) + 0.1 * P @ (P.T @ gradient(6, 9, 2))
    torch.testing.assert_close(P @ after["adam_mean"], expected)


@pytest.mark.parametrize("residual", [False, True])
def test_training_lowers_the_loss(residual):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2))
    x, y = torch.randn(30, 3, 4), torch.randn(30, 2)
    optimizer = GaLore(net.parameters(), lr=0.02, rank=2, refresh=10, residual=residual)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_rank_zero_is_refused():
    with pytest.raises(RankError, match="got rank=0, refresh=200"):
        GaLore([torch.zeros(2, 2, requires_grad=True)], rank=0)


def test_half_precision_resumes_to_the_last_bit():
    def steps(weight, optimizer, numbers):
        for k in numbers:
            weight.grad = gradient(8, 12).roll(k, 0).bfloat16()
            optimizer.step()

    whole, first = (torch.zeros(8, 12, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    steps(whole, GaLore([whole], lr=0.1, rank=3, residual=True), range(8))
    optimizer = GaLore([first], lr=0.1, rank=3, residual=True)
    steps(first, optimizer, range(4))
    second = first.detach().clone().requires_grad_()
    resumed = GaLore([second], lr=0.1, rank=3, residual=True)
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, range(4, 8))
    assert torch.equal(whole, second)
