import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RadiusError, RankError, ShapeError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    LayerKind,
    RelativeRadius,
    active_adapters,
    adapt,
    unload,
)
from lowrank_opt.testing import forbid_dense
from tests.adapted import adapted_layers, base_weight, member

BALL = partial(lo.NBLoRA, rank=2, radius=0.5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.randn(2, 3, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.v_proj(self.q_proj(x).tanh())) + self.scale.mean((0, 1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(Block(), Block())
    return nn.ModuleDict({"body": body, "head": nn.Linear(6, 3)})


def adapted_names(model: nn.Module) -> list[str]:
    return adapted_layers(model)


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        ("q_proj", (), ["body.0.q_proj", "body.1.q_proj"]),
        (r"body\.1\..*proj", (), ["body.1.q_proj", "body.1.v_proj"]),
        (["0.q_proj", "head"], (), ["body.0.q_proj", "head"]),
        ("all-linear", ["head", "v_proj", "0.q_proj"], ["body.1.q_proj"]),
        (lambda name, target: name.endswith("0.v_proj"), (), ["body.0.v_proj"]),
        ("1.scale", (), ["body.1"]),
    ],
)
def test_targets_choose(
    model: nn.Module, targets: object, exclude: list[str], expected: list[str]
) -> None:
    assert expected == adapted_names(adapt(model, BALL, targets=targets, exclude=exclude))


def test_parameters_of_a_module_and_its_layers_adapt_together(model: nn.Module) -> None:
    x = torch.randn(4, 6)
    expected = model["body"](x)
    adapt(model, BALL, targets=["scale", "q_proj"])
    assert torch.equal(expected, model["body"](x))
    assert member(model["body"][0]) is not member(model["body"][0], index=1)


def test_only_adapters_and_chosen_modules_train(model: nn.Module) -> None:
    adapt(model, BALL, targets="q_proj", modules_to_train=["head"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("adapters" in name for name in trained)
    assert 6 == len(trained)
    assert model["head"].weight.requires_grad


def test_patterns_set_rank_and_radius(model: nn.Module) -> None:
    adapt(
        model,
        BALL,
        targets="all-linear",
        rank_pattern={"head": 1, "q_proj": 3},
        radius_pattern={"v_proj": 9.0},
        radius=RelativeRadius(0.1, p=2),
    )
    head, v = model["head"], model["body"][0].v_proj
    expected = 0.1 * float(base_weight(head).norm())
    made = member(head)
    assert 1 == made.rank
    assert made.feasible_set.radius == pytest.approx(expected)
    assert 9.0 == member(v).feasible_set.radius


def test_start_elsewhere_becomes_an_exact_offset() -> None:
    def started(shape: tuple[int, int]) -> lo.Parameterization:
        return lo.Factored(shape, 2).assign(torch.randn(*shape), project=True)

    base = nn.Linear(5, 4)
    x = torch.randn(3, 5)
    expected, kept = base(x), base.weight.detach().clone()
    adapted = adapt(base, started, targets=".*")
    assert isinstance(member(adapted), lo.Offset)
    assert torch.equal(expected, adapted(x))
    assert torch.equal(kept, base_weight(adapted))


def test_shared_module_stays_shared() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    adapt(model, BALL, targets="0")
    assert model[0] is model[2]


def test_tied_weights_share_one_parameterization() -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["emb"].weight
    adapt(model, BALL, targets="emb")
    assert base_weight(model["head"]) is base_weight(model["emb"])
    assert torch.equal(model["head"].weight, model["emb"].weight)
    first, second = (member(model[k]) for k in ("emb", "head"))
    assert first is second


def test_excluded_partner_of_a_tied_weight_is_refused() -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["emb"].weight
    with pytest.raises(OptionError, match=r"tied weights are adapted together; head\.weight"):
        adapt(model, BALL, targets="emb", exclude="head")


def test_half_precision_base_gets_a_float32_adapter() -> None:
    adapted = adapt(nn.Linear(4, 4).bfloat16(), BALL, targets=".*")
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    assert torch.bfloat16 == adapted(x).dtype
    assert {torch.float32} == {p.dtype for p in member(adapted).parameters()}


def test_adapters_are_where_their_base_is(model: nn.Module) -> None:
    adapt(model.to("meta"), lambda s: lo.NBLoRA(s, 2, radius=1.0), targets="all-linear")
    assert {"meta"} == {x.device.type for x in model.state_dict().values()}


def test_unload_gives_the_base_modules_back(model: nn.Module) -> None:
    names = [name for name, _ in model.named_modules()]
    weights = copy.deepcopy(model.state_dict())
    unload(adapt(model, BALL, targets=["q_proj", "scale"]))
    assert names == [name for name, _ in model.named_modules()]
    assert all(torch.equal(w, model.state_dict()[k]) for k, w in weights.items())


class Scaled(nn.Module):
    lowrank_kind = LayerKind(lambda layer: ("matrix",), lambda layer, op, x, y: 2 * op.linear(x))

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(30, 40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x @ self.matrix.mT


class Kindless(Scaled):
    lowrank_kind = "linear"  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize("kind", [Scaled, type("Inherited", (Scaled,), {})])
def test_layer_of_ones_own_is_adapted_from_factors(kind: type[Scaled]) -> None:
    adapted = adapt(nn.Sequential(kind()), BALL, targets="0")
    nn.init.normal_(member(adapted[0]).left_rows)
    x = torch.randn(5, 40)
    with forbid_dense((30, 40)):
        found = adapted(x)
    torch.testing.assert_close(found, 2 * x @ adapted[0].matrix.mT)


def test_kind_of_ones_own_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match=r"Kindless.lowrank_kind must be a LayerKind"):
        adapt(nn.Sequential(Kindless()), BALL, targets="0")


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class ScaledEmbedding(nn.Embedding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Wide(nn.Conv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (2, 2))).relu()


class Renamed(nn.Linear):
    """Without a forward of its own."""


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Doubled(4, 3), torch.randn(5, 4)),
        (ScaledEmbedding(6, 3), torch.tensor([0, 5, 2])),
        (Wide(2, 3, 3), torch.randn(5, 2, 7)),
        (Renamed(4, 3), torch.randn(5, 4)),
    ],
    ids=["linear", "embedding", "convolution", "plain"],
)
def test_subclass_with_its_own_forward_sees_the_adapted_weight(
    layer: nn.Module, x: torch.Tensor
) -> None:
    model = adapt(nn.Sequential(copy.deepcopy(layer)), BALL, targets="0")
    nn.init.normal_(member(model[0]).left_rows)
    nn.init.normal_(member(model[0]).right_rows)
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.weight.copy_(model[0].weight)
    assert not torch.equal(expected.weight, layer.weight)
    torch.testing.assert_close(model(x), expected(x))


BAD: dict[str, tuple[Callable[[nn.Module], object], type[Exception], str]] = {
    "no match": (
        lambda m: adapt(m, BALL, targets="k_proj"),
        OptionError,
        "must match something; got 'k_proj': adaptable are .*q_proj",
    ),
    "one of several": (
        lambda m: adapt(m, BALL, targets=["q_proj", "k_proj"]),
        OptionError,
        "got 'k_proj'",
    ),
    "not adaptable": (
        lambda m: adapt(m, BALL, targets="norm"),
        OptionError,
        r"must be adaptable; got 'norm', which is body.0.norm \(LayerNorm",
    ),
    "all excluded": (
        lambda m: adapt(m, BALL, targets="head", exclude="head"),
        OptionError,
        "must leave something",
    ),
    "exclude nothing": (
        lambda m: adapt(m, BALL, targets="head", exclude="hat"),
        OptionError,
        "exclude must match something",
    ),
    "no regex": (lambda m: adapt(m, BALL, targets="("), OptionError, "regular expression"),
    "rank": (lambda m: adapt(m, BALL, targets="head", rank_pattern={"head": 4}), RankError, "1..3"),
    "radius": (lambda m: adapt(m, BALL, targets="head", radius=-1.0), RadiusError, "positive"),
    "fraction": (
        lambda m: adapt(m, BALL, targets="head", radius=RelativeRadius(-1.0)),
        RadiusError,
        "positive fraction",
    ),
    "pattern": (
        lambda m: adapt(m, BALL, targets="head", rank_pattern={"hat": 1}),
        OptionError,
        "rank or radius pattern must match",
    ),
    "make without rank": (
        lambda m: adapt(m, lambda s: BALL(s), targets="head", rank_pattern={"head": 1}),
        OptionError,
        r"make must take a shape and \['rank'\]",
    ),
    "make of something": (
        lambda m: adapt(m, lambda s: nn.Linear(*s), targets="head"),
        OptionError,
        "must return a Parameterization; got Linear",
    ),
    "make of another shape": (
        lambda m: adapt(m, lambda s: BALL(s[::-1]), targets="head"),
        ShapeError,
        r"must have shape \(3, 6\); got \(6, 3\)",
    ),
    "modules to train": (
        lambda m: adapt(m, BALL, targets="head", modules_to_train=["hat"]),
        OptionError,
        "modules_to_train must match",
    ),
    "trained and adapted": (
        lambda m: adapt(m, BALL, targets="head", modules_to_train=["head"]),
        OptionError,
        "adapted or trained, not both",
    ),
    "name": (lambda m: adapt(m, BALL, targets="head", name="a.b"), AdapterStateError, "plain word"),
    "fails late": (
        lambda m: adapt(m, BALL, targets=["q_proj", "head"], rank_pattern={"head": 9}),
        RankError,
        "got rank=9",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_failure_leaves_the_model_unchanged(model: nn.Module, case: str) -> None:
    act, error, message = BAD[case]
    before = [(name, id(module)) for name, module in model.named_modules()]
    flags = [(id(p), p.requires_grad) for p in model.parameters()]
    with pytest.raises(error, match=message):
        act(model)
    assert before == [(name, id(module)) for name, module in model.named_modules()]
    assert flags == [(id(p), p.requires_grad) for p in model.parameters()]


def test_weight_with_nan_is_refused(model: nn.Module) -> None:
    nn.init.constant_(model["head"].bias, 0.0)
    with torch.no_grad():
        model["head"].weight[0, 0] = float("nan")
    with pytest.raises(TargetError, match=r"must be finite; head\.weight has NaN"):
        adapt(model, BALL, targets=["q_proj", "head"])
    assert [] == adapted_names(model)


def test_one_parameterization_for_two_sites_is_refused(model: nn.Module) -> None:
    one = BALL((6, 6))
    with pytest.raises(OptionError, match="a new parameterization at each call"):
        adapt(model, lambda shape: one, targets="q_proj")


def test_name_twice_is_refused(model: nn.Module) -> None:
    adapt(model, BALL, targets="head")
    with pytest.raises(AdapterStateError, match="must be new; the model has 'default'"):
        adapt(model, BALL, targets="head")


def test_embedding_with_max_norm_is_refused() -> None:
    with pytest.raises(OptionError, match="max_norm rewrites the weight"):
        adapt(nn.Sequential(nn.Embedding(5, 4, max_norm=1.0)), BALL, targets="0")


def test_parameter_of_the_model_itself_is_adapted() -> None:
    model = nn.Bilinear(3, 4, 5)
    x, y = torch.randn(2, 3), torch.randn(2, 4)
    expected = model(x, y)
    adapted = adapt(model, BALL, targets="weight")
    assert adapted is model
    assert isinstance(adapted, nn.Bilinear)
    assert torch.equal(expected, adapted(x, y))


def test_name_of_a_module_method_can_name_an_adapter(model: nn.Module) -> None:
    adapt(model, BALL, targets="head", name="half")
    assert {"half": 1.0} == active_adapters(model)


def test_replacing_an_adapted_weight_is_refused(model: nn.Module) -> None:
    adapt(model, BALL, targets="head")
    with pytest.raises(AdapterStateError, match="assign it before adapting"):
        model["head"].weight = nn.Parameter(torch.zeros(3, 6))
