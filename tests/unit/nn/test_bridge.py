import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, OptionError, ShapeError
from lowrank_opt.nn import register_dense


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


def test_tied_weight_elsewhere_is_left_alone() -> None:
    a, b = nn.Linear(4, 6), nn.Linear(4, 6)
    b.weight = a.weight
    kept = b.weight.detach().clone()
    register_dense(a, "weight", ball())
    assert torch.equal(kept, b.weight)


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
