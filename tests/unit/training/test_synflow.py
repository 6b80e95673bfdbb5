"""Synaptic flow: conserved from layer to layer, and gone without a trace."""

import copy

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import LowRankLinear, adapt
from lowrank_opt.training import factor_pairs, snip_score, synflow_scores

SHAPES = ((5, 7), (4, 5), (3, 4))


def chain(dtype=torch.float64):
    """Three low-rank layers in a row, without biases: everything flows through every factor."""
    g = torch.Generator().manual_seed(0)
    layers = []
    for shape in SHAPES:
        update = lo.Factored(shape, 2, dtype=dtype, generator=g)
        nn.init.normal_(update.left, generator=g)
        layers.append(LowRankLinear(update))
    return nn.Sequential(*layers)


def flow(model):
    """Return the sum of outputs for ones, with all factors replaced by their moduli."""
    x = torch.ones(7, dtype=torch.float64)
    for pair in factor_pairs(model):
        x = pair.scale * pair.left.detach().abs() @ (pair.right.detach().abs().mT @ x)
    return float(x.sum())


def test_flow_is_conserved_through_every_factor():
    model = chain()
    ones = torch.ones(1, 7, dtype=torch.float64)
    scores = synflow_scores(model, ones, factor_pairs(model), score=snip_score)
    assert scores == pytest.approx([2 * flow(model)] * 3)


def test_zero_start_has_a_score_that_snip_lacks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    adapt(model, lambda shape: lo.Factored(shape, rank=2), targets="all-linear")
    pairs, ones = factor_pairs(model), torch.ones(1, 6)
    assert [0.0, 0.0] == synflow_scores(model, ones, pairs, score=snip_score)
    assert min(synflow_scores(model, ones, pairs)) > 0


def test_everything_is_as_before():
    model = nn.Sequential(nn.BatchNorm1d(7, dtype=torch.float64), chain(), nn.Dropout())
    model[1].eval()
    model(torch.randn(4, 7, dtype=torch.float64)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    tensors = [p.data_ptr() for p in model.parameters()]
    synflow_scores(model, torch.ones(2, 7, dtype=torch.float64), factor_pairs(model))
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert all(map(torch.equal, grads, [p.grad for p in model.parameters()]))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert tensors == [p.data_ptr() for p in model.parameters()]


def test_scores_do_not_depend_on_the_order_of_pairs():
    model = chain()
    pairs, ones = factor_pairs(model), torch.ones(1, 7, dtype=torch.float64)
    assert synflow_scores(model, ones, pairs) == synflow_scores(model, ones, pairs[::-1])[::-1]


def test_overflow_is_refused_and_leaves_the_model():
    model = chain(torch.float32)
    with torch.no_grad():
        model[0].weight.left.fill_(-3e38)
    with pytest.raises(ValueError, match="must be finite"):
        synflow_scores(model, torch.ones(1, 7), factor_pairs(model))
    assert bool((model[0].weight.left == -3e38).all())


def test_pair_outside_of_the_model_is_refused():
    model = chain()
    stranger = factor_pairs(chain())
    with pytest.raises(ValueError, match="without a gradient"):
        synflow_scores(model, torch.ones(1, 7, dtype=torch.float64), stranger)
