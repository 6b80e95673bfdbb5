"""Every class is made again from its options and state: bit-equal factors, the same set."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.config import describe, known_class, rebuild
from lowrank_opt.parameterizations.example import example_tensor

D = torch.float64
SHAPE = (9, 8)
TABLE = [e for e in examples() if "WeightDecomposed" not in e.name]


def drawn(module: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=D))
    return module


def again(module: nn.Module) -> nn.Module:
    """Return the module made from what a file could hold."""
    text = json.dumps(describe(module), allow_nan=False)
    state = {key: x.clone() for key, x in module.state_dict().items()}
    torch.manual_seed(987)
    return rebuild(json.loads(text), state)


def assert_same(module: nn.Module, other: nn.Module) -> None:
    assert type(module) is type(other)
    assert all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(module.factors(), other.factors(), strict=True)
    )
    assert repr(module.feasible_set) == repr(other.feasible_set)
    assert (module.shape, module.rank) == (other.shape, other.rank)
    assert module.complete == other.complete
    assert describe(module) == describe(other)
    assert repr(module) == repr(other)


def of(cls, *args, **options):
    return partial(cls, *args, **options)


# Options that no example has.
FURTHER = {
    "boft": of(lo.boft, example_tensor(*SHAPE), blocks=4, stages=2),
    "ETHER output": of(lo.ETHER, example_tensor(*SHAPE), side="output"),
    "NormalizedLoRA start": of(lo.NormalizedLoRA, SHAPE, 3, every_step=False),
    "AdaLoRA": of(lo.AdaLoRA, SHAPE, 3, scaling=2.0),
    "DynamicRank": of(lo.DynamicRank, SHAPE, 3, scaling=0.5),
    "NBLoRA half": of(lo.NBLoRA, SHAPE, 3, radius=2.0, dtype=torch.bfloat16),
    "Contractions default": of(lo.Contractions, SHAPE, 3),
    "DeLoRA author": of(
        lo.DeLoRA,
        SHAPE,
        3,
        radius=2.0,
        variant="author",
        learn_radius=True,
        column_norms=torch.linspace(1, 2, 8),
    ),
    "DenseCore": of(lo.DenseCore, SHAPE),
    "RadialBall ball": of(lo.RadialBall, SHAPE, 3, radius=2.0, norm=lo.KyFanBall(2, 9.0, 1)),
    "VeRA shared": of(lo.VeRA, SHAPE, 3, projections=(torch.randn(12, 5), torch.randn(5, 11))),
    "Frozen": lambda: Frozen(lo.LowRankOperator.from_dense(torch.randn(SHAPE), rank=3)),
    "Offset of ETHER": lambda: lo.Offset(lo.ETHER(torch.randn(SHAPE), blocks=2)),
    "Offset given": lambda: lo.Offset(
        lo.Factored(SHAPE, 2),
        minus_initial=False,
        offset=lo.LowRankOperator.from_dense(torch.randn(SHAPE), rank=4),
    ),
    "Weighted both": lambda: lo.Weighted(
        lo.DeLoRA(SHAPE, 2, radius=2.0), torch.rand(9) + 0.1, torch.rand(8) + 0.1
    ),
    "Nested mixed dtypes": lambda: lo.NestedSVD(
        torch.randn(SHAPE), lo.NBLoRA((4, 3), 2, dtype=torch.bfloat16)
    ),
    "Nested of nested": lambda: lo.NestedSVD(
        torch.randn(SHAPE),
        lo.NestedSVD(torch.randn(6, 6), lo.HomogeneousBall((4, 3), 2, radius=1.0)),
    ),
    "Inductive sparse": lambda: lo.Inductive(
        lo.NBLoRA((4, 8), 2, radius=1.0),
        (torch.rand(9, 4) * (torch.rand(9, 4) > 0.5)).to_sparse().coalesce(),
    ),
    "Inductive dependent": lambda: lo.Inductive(
        lo.Weighted(lo.Factored((3, 8), 2), torch.tensor([1.0, 2.0, 3.0])), torch.ones(9, 3)
    ),
    "Inductive orthonormal one side": lambda: lo.Inductive(
        lo.NBLoRA((4, 8), 2, radius=1.0), torch.rand(9, 4), orthonormal=True
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("example", TABLE, ids=lambda e: e.name)
def test_round_trip_of_every_example(example, dtype) -> None:
    module = drawn(example.make(SHAPE, 2, dtype=dtype))
    assert_same(module, again(module))


@pytest.mark.parametrize("make", FURTHER.values(), ids=FURTHER)
def test_round_trip_of_further_options(make) -> None:
    torch.manual_seed(0)
    module = drawn(make())
    assert_same(module, again(module))


def test_every_class_is_in_some_round_trip() -> None:
    torch.manual_seed(0)
    made = [e.make(SHAPE, 2, dtype=D) for e in TABLE] + [make() for make in FURTHER.values()]
    kinds = {type(part) for module in made for part in module.modules()}
    public = {x for x in map(partial(getattr, lo), dir(lo)) if isinstance(x, type)}
    concrete = {x for x in public if issubclass(x, lo.Parameterization)} - {lo.Parameterization}
    assert set() == concrete - kinds


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_round_trip_of_drawn_options(data) -> None:
    m, n = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)), label="shape")
    rank = data.draw(st.integers(1, min(m, n)), label="rank")
    radius = data.draw(st.floats(1e-3, 1e3), label="radius")
    p = data.draw(st.sampled_from([1.0, 1.5, 2.0, 40.0, float("inf")]), label="p")
    bounds = st.lists(st.floats(-5, 5), min_size=rank, max_size=rank).filter(any)
    kind = data.draw(
        st.sampled_from(
            [
                of(lo.NBLoRA, radius=radius, p=p),
                of(lo.NBLoRA, radius=radius, ky_fan=data.draw(st.integers(1, 4))),
                of(lo.NBLoRA, bounds=[abs(b) for b in data.draw(bounds)]),
                of(lo.Contractions, radius=radius, p=p),
                of(lo.Contractions, bounds=data.draw(bounds)),
                of(lo.RadialBall, radius=radius, norm=p),
                of(lo.HomogeneousBall, radius=radius, p=min(p, 40.0)),
                of(lo.SVDFrames, frame=data.draw(st.sampled_from(["cayley", "polar", "qr"]))),
                of(lo.DeLoRA, radius=radius, learn_radius=data.draw(st.booleans())),
            ]
        ),
        label="kind",
    )
    module = drawn(kind((m, n), rank, dtype=data.draw(st.sampled_from([D, torch.float16]))))
    assert_same(module, again(module))


def test_sizes_after_components_were_cut() -> None:
    module = drawn(lo.AdaLoRA(SHAPE, 4))
    module.rank, keep = 2, torch.tensor([0, 3])
    for name in ("left", "values", "right"):
        p = module.get_parameter(name)
        p.data = p.data[..., keep].clone()
    assert_same(module, again(module))


class Own(lo.Parameterization):
    """Of one's own: nothing written but the map and an attribute for each option."""

    def __init__(self, shape: tuple[int, int], rank: int, *, factor: float = 1.0) -> None:
        super().__init__(shape, rank)
        self.factor = factor
        self.left = nn.Parameter(torch.zeros(shape[0], rank))

    def factors(self) -> lo.LowRankOperator:
        right = self.left.new_ones(self.shape[1], self.rank)
        return lo.LowRankOperator(self.left, self.left.new_full((self.rank,), self.factor), right)


class Forgets(Own):
    def __init__(self, shape: tuple[int, int], rank: int, *, secret: float) -> None:
        super().__init__(shape, rank)


def test_a_class_of_ones_own_needs_nothing_more() -> None:
    module = drawn(Own(SHAPE, 2, factor=0.25))
    assert "Own(shape=(9, 8), rank=2, factor=0.25)" == repr(module)
    assert_same(module, again(module))


def test_an_option_that_is_not_held_is_named() -> None:
    module = Forgets(SHAPE, 2, secret=1.0)
    with pytest.raises(OptionError, match=r"must hold what its constructor takes; .* no 'secret'"):
        module.config()
    assert "Forgets(shape=(9, 8), rank=2)" == repr(module)


def test_options_of_another_kind_are_refused() -> None:
    module = Own(SHAPE, 2, factor=object())
    with pytest.raises(OptionError, match="must be plain data, a tensor, a set"):
        describe(module)


def test_only_known_classes_are_made(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mischief.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mischief.Class", "os.system", "torch.nn.modules.linear.Linear", "builtins.eval"):
        with pytest.raises(OptionError, match=f"must be known to the program; got {name}"):
            rebuild({"class": name, "options": {}})
    assert lo.NBLoRA is known_class("lowrank_opt.parameterizations.balls.nb_lora.NBLoRA")


def test_edited_options_are_refused() -> None:
    said = describe(lo.Factored(SHAPE, 2))
    with pytest.raises(OptionError, match=r"must fit the constructor of .*Factored; got"):
        rebuild({**said, "options": {**said["options"], "colour": 1}})
    with pytest.raises(OptionError, match=r"must make the rank they were written with, 3"):
        rebuild({**said, "rank": 3})
    huge = {**said["options"], "shape": [10**9, 10**9]}
    with pytest.raises(OptionError, match=r"must make the shape .* \[9, 8\]; got \[1000000000, 1"):
        rebuild({**said, "options": huge})
    with pytest.raises(OptionError, match="must have the options of its class; got None"):
        rebuild({**said, "options": None})


def test_a_weight_may_be_given_and_shared() -> None:
    weight = torch.randn(SHAPE)
    module = lo.ETHER(weight, blocks=2)
    made = lo.ETHER.from_config(module.config(), weight=weight)
    assert made.weight.data_ptr() == weight.data_ptr()
    assert module.feasible_set == made.feasible_set


def test_classes_given_are_preferred() -> None:
    said = {**describe(Own(SHAPE, 1)), "class": "elsewhere.Own"}
    Own2 = type("Own2", (Own,), {"__module__": "elsewhere", "__qualname__": "Own"})
    made = rebuild(said, classes=[Own2])
    assert type(made) is Own2


def test_loaded_weights_carry_their_own_bounds() -> None:
    one, two = (lo.ETHER(w, blocks=2) for w in (torch.eye(4, 4), 3 * torch.eye(4, 4)))
    two.load_state_dict(one.state_dict())
    assert one.feasible_set == two.feasible_set


class Liar(Own):
    """Says another option than it was made with."""

    def options(self):
        return {**super().options(), "factor": 1.0}


def test_options_that_lie_are_noticed() -> None:
    module = drawn(Liar(SHAPE, 2, factor=0.25))
    with pytest.raises(AssertionError):
        assert_same(module, again(module))
