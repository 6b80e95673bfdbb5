"""Rewinding: the path is that of projections, the loss chooses, and the end is certified."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, OptionError
from lowrank_opt.nn import adapt, adapted_weights, rewind
from lowrank_opt.nn.adapters.weights import settle
from lowrank_opt.training import start
from tests.builders import normal


def trained(make):
    """A model whose two updates are random members, and the parameterizations."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    adapt(model, make, targets="all-linear")
    parts = [x for x in model.modules() if isinstance(x, lo.Parameterization)]
    for k, part in enumerate(parts):
        part.assign(normal(*part.shape, seed=k), project=True)
    return model, parts


MAKES = {
    "Factored": lambda s: lo.Factored(s, 3, dtype=torch.float64),
    "NBLoRA": lambda s: lo.NBLoRA(s, 3, radius=2.0, dtype=torch.float64),
    "HomogeneousBall": lambda s: lo.HomogeneousBall(s, 3, radius=3.0, dtype=torch.float64),
}
PATHS = {
    1.0: lambda s, c: np.maximum(s - _threshold(s, c), 0),
    2.0: lambda s, c: s * min(1, c / np.linalg.norm(s)),
    math.inf: lambda s, c: np.minimum(s, c),
}


def _threshold(s, c):
    """The t with sum max(s - t, 0) = c, by bisection."""
    low, high = 0.0, float(s.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(s - middle, 0).sum() > c else (low, middle)
    return 0.0 if s.sum() <= c else high


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("p", PATHS)
def test_singular_vectors_stay_and_values_follow_the_path(name, p):
    model, parts = trained(MAKES[name])
    before = [np.linalg.svd(x().detach().to_dense().numpy()) for x in parts]
    report = rewind(model, 0.7, p=p)
    assert report.holds
    for (U, s, Vt), part in zip(before, parts, strict=True):
        shrunk = PATHS[p](s, 0.7)
        expected = (U[:, : len(s)] * shrunk) @ Vt[: len(s)]
        np.testing.assert_allclose(part().detach().to_dense().numpy(), expected, atol=1e-9)


def test_held_out_loss_chooses():
    model, parts = trained(MAKES["Factored"])
    best = [0.4 * x().detach().to_dense() for x in parts]

    def validation():
        pairs = zip(parts, best, strict=True)
        return sum((x().detach().to_dense() - b).square().sum() for x, b in pairs)

    def source():
        return sum(x().detach().to_dense().square().sum() for x in parts)

    report = rewind(model, validation=validation, source=source)
    assert 0.4 == report.chosen.fraction
    assert report.holds
    assert float(validation()) < 1e-20
    sources = [point.source for point in report.path]
    assert sorted(sources, reverse=True) == sources
    assert "<- chosen" in report.table().splitlines()[1 + report.path.index(report.chosen)]


def test_of_equal_losses_the_smallest_update_is_taken():
    model, _ = trained(MAKES["Factored"])
    report = rewind(model, validation=lambda: 1.0, fractions=(1.0, 0.5))
    assert 0.5 == report.chosen.fraction


def test_zero_is_the_base_model():
    model, _ = trained(MAKES["NBLoRA"])
    x = normal(3, 6)
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    rewind(model, validation=lambda: 0.0, fractions=(1.0, 0.0))
    torch.testing.assert_close(model(x), base(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", PATHS)
def test_settled_parts_are_rewound_with_the_update(p):
    model, parts = trained(MAKES["NBLoRA"])
    x, before = normal(3, 6), [y().detach().to_dense() for y in parts]
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    for part in parts:
        part.zero_()
    start(model, "pissa")
    torch.testing.assert_close(model(x), base(x), rtol=0, atol=1e-11)
    for k, part in enumerate(parts):
        part.assign(before[k])
    report = rewind(model, 0.5, p=p)
    assert report.holds
    for found in adapted_weights(model):
        total = found.totals()[0]().detach()
        assert float(total.schatten_norm(p)) <= 0.5 + 1e-9
    rewind(model, validation=lambda: 0.0, fractions=(1.0, 0.0))
    torch.testing.assert_close(model(x), base(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_settled_parts_are_of_the_dtype_of_their_update(wide):
    model, parts = trained(MAKES["NBLoRA"])
    op = lo.LowRankOperator.from_dense(normal(5, 6), rank=1).to(dtype=wide)
    expected = sum(op.to_dense().double() for _ in range(2)) + parts[0]().to_dense()
    for dtype in (torch.float32, torch.float64):
        found = adapted_weights(model.to(dtype))[0]
        settle(model, found, [op])
        (fixed,) = adapted_weights(model)[0].settled
        assert fixed().dtype is parts[0]().dtype
    total = adapted_weights(model)[0].totals()[0]().to_dense()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_failure_leaves_settled_parts_as_they_were():
    model, _ = trained(MAKES["NBLoRA"])
    x = normal(3, 6)
    start(model, "pissa")
    before = model(x).detach()
    losses = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        rewind(model, validation=lambda: next(losses))
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)


def test_matrices_inside_the_radius_are_left_alone():
    model, parts = trained(MAKES["Factored"])
    before = [x().detach().to_dense() for x in parts]
    rewind(model, 1e3)
    for x, old in zip(parts, before, strict=True):
        torch.testing.assert_close(x().detach().to_dense(), old, rtol=0, atol=1e-12)


def test_failure_leaves_everything_as_it_was():
    model, _ = trained(MAKES["Factored"])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    losses = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        rewind(model, validation=lambda: next(losses))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_maps_without_a_right_inverse_are_refused_and_kept():
    layer = nn.Linear(6, 8).double()
    weight = layer.weight.detach().clone()
    model = adapt(nn.Sequential(layer), lambda s: lo.ETHERPlus(weight), targets="0")
    with pytest.raises(NoRightInverseError):
        rewind(model, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got neither"),
        ({"radius": 1.0, "validation": lambda: 0.0}, "got both"),
        ({"validation": lambda: 0.0, "fractions": (1.5,)}, r"fractions must be in \[0, 1\]"),
        ({"radius": -1.0}, "radius must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    model, _ = trained(MAKES["Factored"])
    with pytest.raises(OptionError, match=message):
        rewind(model, **options)
