"""Chains and allocators go on where they were saved."""

import io

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import ConvergenceError, ShapeError
from lowrank_opt.nn import adapt, export_peft, load_adapter, save_adapter
from lowrank_opt.training import ChainOfLowRank, CubicBudget, RankAllocator, ScaledGD, factor_pairs
from lowrank_opt.training.ranks.importance import Magnitude, Sensitivity
from tests.adapted import base_weight, member

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def adapted():
    return adapt(base(), lambda s: lo.NBLoRA(s, 2, radius=0.5), targets=["0", "2"])


def stored(state):
    """Return a state that has been on a disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def shake(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.copy_(torch.randn(p.shape, generator=generator))


def links(model, chain, count):
    for seed in range(count):
        shake(model, seed + chain.ties)
        chain.steps += 1
        chain.tie()


def test_chain_is_saved_with_the_adapter_and_goes_on(tmp_path):
    model = adapted()
    whole = ChainOfLowRank(model, generator=torch.Generator().manual_seed(5))
    links(model, whole, 2)
    shake(model, 9)
    save_adapter(model, tmp_path)
    state, expected = stored(whole.state_dict()), model(X)
    other = load_adapter(base(), tmp_path)
    torch.testing.assert_close(expected, other(X))
    assert torch.equal(base()[0].weight, base_weight(other[0]))
    again = ChainOfLowRank(other, generator=torch.Generator())
    again.load_state_dict(state)
    assert (2, 2, 2) == (again.steps, again.last_knot, again.ties)
    for mine, theirs in zip(whole.links, again.links, strict=True):
        torch.testing.assert_close(mine.total().to_dense(), theirs.total().to_dense())
        assert mine.sets == theirs.sets
    whole.tie()
    again.tie()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(model(X), other(X))


def test_chain_exports_all_of_its_links(tmp_path):
    model = adapted()
    links(model, ChainOfLowRank(model), 2)
    shake(model, 9)
    sites = export_peft(model, tmp_path)
    assert [False, False] == [site.certified for site in sites]
    update = (model[0].weight - base_weight(model[0])).detach()
    assert torch.linalg.matrix_norm(update, 2) <= sites[0].spectral_bound


def test_state_of_another_chain_is_refused():
    chain = ChainOfLowRank(adapted())
    other = ChainOfLowRank(adapt(base(), lambda s: lo.Factored(s, 1), targets="0"))
    with pytest.raises(ShapeError, match="state must be of its links"):
        other.load_state_dict(chain.state_dict())


@pytest.mark.parametrize("importance", [Sensitivity, Magnitude])
def test_allocator_goes_on(importance):
    def run(model, allocator, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (model().to_dense() - 1).square().sum().backward()
            allocator.step()
            optimizer.step()
            allocator.enforce()

    def start():
        torch.manual_seed(0)
        model = lo.Factored((6, 5), 4, dtype=torch.float64)
        nn.init.normal_(model.left)
        budget = CubicBudget(start=4, final=2, total=6)
        return model, RankAllocator(model, budget, importance=importance())

    model, whole = start()
    run(model, whole, torch.optim.SGD(model.parameters(), lr=0.01), 3)
    other, again = start()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(stored(whole.state_dict()))
    for m, allocator in ((model, whole), (other, again)):
        run(m, allocator, torch.optim.SGD(m.parameters(), lr=0.01), 4)
    assert whole.ranks == again.ranks
    assert torch.equal(model.left, other.left)
    small = RankAllocator(lo.Factored((6, 5), 3), CubicBudget(start=3, final=2, total=6))
    with pytest.raises(ShapeError, match="must fit the factors"):
        small.load_state_dict(whole.state_dict())


def test_gradient_that_is_not_finite_moves_nothing():
    model = adapt(base(), lambda s: lo.Factored(s, 2), targets=["0", "2"])
    shake(model, 0)
    optimizer = ScaledGD(factor_pairs(model), lr=0.1)
    model(X).square().sum().backward()
    member(model[2]).left.grad[0, 0] = float("nan")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConvergenceError, match="finite factors and gradients"):
        optimizer.step()
    assert all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))
