"""Bad input is refused before any work, with the rule, what came and what to do."""

import math
import pickle

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt import errors
from lowrank_opt.errors import (
    LowRankError,
    NoRightInverseError,
    NotInSetError,
    RankError,
    ShapeError,
    TargetError,
)
from tests.oracles import fill

MAKERS = {
    "Factored": lambda shape, rank: lo.Factored(shape, rank),
    "NBLoRA": lambda shape, rank: lo.NBLoRA(shape, rank, radius=1.0),
    "HomogeneousBall": lambda shape, rank: lo.HomogeneousBall(shape, rank, radius=1.0),
    "DeLoRA": lambda shape, rank: lo.DeLoRA(shape, rank, radius=1.0),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
LAYERS = {k: (lambda make=make: fill(make((4, 3), 2))) for k, make in MAKERS.items()} | {
    "NestedSVD": lambda: fill(lo.NestedSVD(torch.eye(4, 3), lo.NBLoRA((2, 2), 2, radius=1.0))),
    "Weighted": lambda: fill(lo.Weighted(lo.NBLoRA((4, 3), 2, radius=1.0), torch.ones(4))),
    "Offset": lambda: lo.Offset(fill(lo.NBLoRA((4, 3), 2, radius=1.0))),
    "DenseCore": lambda: fill(lo.DenseCore((4, 3))),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
BOUNDED = {k: v for k, v in LAYERS.items() if k not in ("Factored", "DenseCore")}


@every
@pytest.mark.parametrize("rank", [0, -1, 4, 1.5, math.nan])
def test_bad_rank(make, rank):
    message = rf"rank must be in 1\.\.3 for a 4 x 3 matrix; got rank={rank!r}"
    with pytest.raises(RankError, match=message):
        make((4, 3), rank)


@every
@pytest.mark.parametrize("shape", [(0, 3), (4, -1), (4,), (4, 3, 2), (2.5, 3)], ids=str)
def test_bad_shape(make, shape):
    with pytest.raises(
        ShapeError, match=r"shape must be two positive integers \(rows, columns\); got"
    ):
        make(shape, 1)


@every_layer
@pytest.mark.parametrize("shape", [(3, 4), (4,), (4, 3, 1), (1, 1)], ids=str)
def test_target_of_wrong_shape(make, shape):
    with pytest.raises(TargetError, match=r"the target must have shape \(4, 3\); got \("):
        make().assign(torch.zeros(shape))


@every_layer
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("project", [True, False])
def test_target_that_is_not_finite(make, value, project):
    target = torch.zeros(4, 3)
    target[1, 2] = value
    with pytest.raises(
        TargetError, match=r"the target must be finite; got NaN or infinite entries"
    ):
        make().assign(target, project=project)


@every_layer
def test_operator_target_that_is_not_finite(make):
    op = lo.LowRankOperator(torch.zeros(4, 1), torch.tensor([math.nan]), torch.zeros(3, 1))
    with pytest.raises(TargetError, match=r"the target must be finite"):
        make().assign(op)


@every_layer
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_target_without_floating_dtype(make, dtype):
    with pytest.raises(ShapeError, match=rf"one floating dtype; got {dtype}"):
        make().assign(torch.ones(4, 3, dtype=dtype))


@pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED)
def test_target_outside_the_set(make):
    layer, target = make(), 50 * torch.ones(4, 3)
    with pytest.raises(
        NotInSetError, match=r"exceeds it by .*pass project=True to use the"
    ) as caught:
        layer.assign(target)
    expected = layer.feasible_set.excess(lo.LowRankOperator.from_dense(target))
    assert caught.value.excess == expected > 40


@pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED)
def test_refused_target_changes_nothing(make):
    layer = make()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(NotInSetError):
        layer.assign(50 * torch.ones(4, 3))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED)
def test_message_prints_no_matrix(make):
    with pytest.raises(NotInSetError) as caught:
        make().assign(50 * torch.ones(4, 3))
    assert "tensor(" not in str(caught.value)


class Half(lo.Parameterization):
    """Its right inverse returns one good tensor and one that does not fit."""

    def __init__(self, second):
        super().__init__((4, 3), 1)
        self.first = nn.Parameter(torch.zeros(4, 1))
        self.last = nn.Parameter(torch.ones(3, 1))
        self.second = second

    def factors(self):
        return lo.LowRankOperator(self.first, torch.ones(1), self.last)

    def right_inverse(self, target):
        return {"first": torch.ones(4, 1)} | self.second


@pytest.mark.parametrize(
    "second",
    [{"last": torch.ones(1, 3)}, {"last": torch.ones(1, 1)}, {"unknown": torch.ones(3, 1)}],
    ids=["shape", "broadcastable", "name"],
)
def test_assign_sets_all_parameters_or_none(second):
    layer = Half(second)
    with pytest.raises(
        ShapeError, match=r"right_inverse must return tensors of this module; got \['"
    ):
        layer.assign(torch.zeros(4, 3))
    assert not bool(layer.first.any())


class Bare(lo.Parameterization):
    """Writes nothing but the map."""

    def factors(self):
        return lo.LowRankOperator(torch.zeros(4, 1), torch.ones(1), torch.zeros(3, 1))


def test_parameterization_without_right_inverse():
    with pytest.raises(
        NoRightInverseError, match=r"Bare has no right inverse.*override right_inverse"
    ):
        Bare((4, 3), 1).assign(torch.zeros(4, 3))


def test_parameterization_without_zero_start():
    with pytest.raises(
        NotImplementedError, match=r"Bare has no exact zero start; wrap it in Offset"
    ):
        Bare((4, 3), 1).zero_()


PARENTS = {
    "ShapeError": ValueError,
    "RankError": ValueError,
    "OptionError": ValueError,
    "RadiusError": ValueError,
    "CertificateError": ValueError,
    "ObservationError": ValueError,
    "TargetError": ValueError,
    "NotInSetError": ValueError,
    "NoRightInverseError": NotImplementedError,
    "ConvergenceError": RuntimeError,
    "DenseMaterializationError": RuntimeError,
    "DataError": OSError,
    "DerivativeError": NotImplementedError,
    "MissingExtraError": ImportError,
}


@pytest.mark.parametrize(("name", "parent"), PARENTS.items(), ids=PARENTS)
def test_errors_have_one_root_and_a_builtin_parent(name, parent):
    assert issubclass(getattr(errors, name), LowRankError)
    assert issubclass(getattr(errors, name), parent)


def test_every_error_is_listed_here():
    defined = {
        k for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, LowRankError)
    }
    assert {"LowRankError", *PARENTS} == defined


def test_not_in_set_error_carries_its_excess():
    assert 0.5 == NotInSetError("outside", excess=0.5).excess


def test_not_in_set_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NotInSetError("outside", excess=2.0)))
    assert ("outside", 2.0) == (str(error), error.excess)
