import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, OptionError, ShapeError, TargetError
from lowrank_opt.nn import adapt, register_dense


def ball(shape: tuple[int, int] = (6, 4)) -> lo.NBLoRA:
    return lo.NBLoRA(shape, 2, radius=0.5)


def nearest(weight: torch.Tensor) -> torch.Tensor:
    U, s, Vh = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
    return (U[:, :2] * s[:2].clamp_max(0.5) @ Vh[:2]).view_as(weight)


def test_start_is_the_nearest_member_to_the_present_weight() -> None:
    layer = nn.Linear(4, 6)
    expected = nearest(layer.weight)
    register_dense(layer, "weight", ball())
    torch.testing.assert_close(expected, layer.weight)


def test_assignment_takes_the_nearest_member() -> None:
    layer = nn.Conv1d(2, 6, 2)
    register_dense(layer, "weight", ball())
    target = torch.randn(6, 2, 2)
    layer.weight = target
    torch.testing.assert_close(nearest(target), layer.weight)


def test_training_moves_the_parameterization_only() -> None:
    layer = nn.Linear(4, 6)
    made = register_dense(layer, "weight", ball())
    names = {name for name, _ in layer.named_parameters()}
    layer(torch.ones(1, 4)).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert 1 + len(list(made.parameters())) == len(names)


def test_state_dict_and_copy_carry_the_weight() -> None:
    layer = nn.Linear(4, 6)
    register_dense(layer, "weight", ball())
    other = copy.deepcopy(layer)
    other.weight = torch.zeros(6, 4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, other.weight)


def test_weight_is_evaluated_once_within_cached() -> None:
    layer = nn.Linear(4, 6)
    register_dense(layer, "weight", ball())
    with parametrize.cached():
        assert layer.weight is layer.weight


def test_tied_weights_stay_tied_or_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(4, 6)})
    model["b"].weight = model["a"].weight
    kept = model["b"].weight
    with pytest.raises(TargetError, match="must stay tied; 'weight' is the weight of a module out"):
        register_dense(model["a"], "weight", ball())
    assert kept is model["a"].weight is model["b"].weight
    register_dense(model, "a.weight", ball())
    assert torch.equal(model["a"].weight, model["b"].weight)
    assert not torch.equal(kept, model["b"].weight)


@pytest.mark.parametrize("hold", [vars, lambda other: other.__dict__.setdefault("seen", {"of": 1})])
def test_what_looks_at_a_weight_ties_nothing(hold) -> None:
    layer, other = nn.Linear(4, 6), nn.Linear(4, 6)
    hold(other)["looked at"] = layer.weight
    expected = nearest(layer.weight)
    register_dense(layer, "weight", ball())
    torch.testing.assert_close(expected, layer.weight)


def test_dense_weight_follows_conversions() -> None:
    layer = nn.Linear(4, 6)
    register_dense(layer, "weight", ball())
    assert torch.bfloat16 == layer.bfloat16()(torch.ones(2, 4).bfloat16()).dtype


def test_adapted_weight_is_refused() -> None:
    model = adapt(nn.Sequential(nn.Linear(4, 6)), lambda s: lo.Factored(s, 1), targets="0")
    with pytest.raises(TargetError, match="adapted or parameterized, not both"):
        register_dense(model, "0.weight", ball())


@pytest.mark.parametrize(
    ("name", "made", "error", "message"),
    [
        ("bias", ball(), OptionError, r"two or more axes; got 'bias': Linear has \['weight'\]"),
        ("weight", ball((4, 6)), ShapeError, r"must have shape \(6, 4\)"),
        (
            "weight",
            lo.DeLoRA((6, 4), 2, radius=1.0, variant="paper"),
            NoRightInverseError,
            "right inverse",
        ),
    ],
)
def test_failure_leaves_the_module_unchanged(
    name: str, made: lo.Parameterization, error: type, message: str
) -> None:
    layer = nn.Linear(4, 6)
    kept = layer.weight
    with pytest.raises(error, match=message):
        register_dense(layer, name, made)
    assert kept is layer.weight
