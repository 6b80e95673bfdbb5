"""Adapted layers are what they were: names, attributes, hooks, threads, transforms, wrappers."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune

import lowrank_opt as lo
from lowrank_opt.errors import RadiusError, RankError, ShapeError
from lowrank_opt.nn import (
    AdapterStateError,
    adapt,
    adapted_weights,
    disabled,
    load_adapter,
    merge,
    per_sample,
    remove_adapter,
    save_adapter,
    switch,
    unload,
    unmerge,
)
from lowrank_opt.nn.basis.originals import modules_of
from tests.adapted import base_weight, member


def make(shape):
    return lo.Factored(shape, min(2, *shape))


def randomised(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return model


class Own(nn.Module):
    """A module with names that adapters could have taken, and a method besides its forward."""

    def __init__(self):
        super().__init__()
        self.q, self.scale = nn.Linear(4, 4), nn.Parameter(torch.eye(4))
        self.kind, self.active, self.names, self.merged = "mine", 3, ["x"], "no"
        self.base, self.record, self.changed, self.view, self.parts = 7, 1, 2, 5, ()
        self.adapters = nn.Linear(2, 2)

    def attend(self, x):
        return x @ self.scale

    def forward(self, x):
        return self.q(self.attend(x))


def test_nothing_of_the_author_is_hidden():
    model = Own()
    names = [*dict(model.named_parameters()), *vars(model)]
    kept = {key: x for key, x in vars(model).items() if not key.startswith("_")}
    adapt(model, make, targets=["scale", "q"])
    assert isinstance(model, Own)
    assert isinstance(model.q, nn.Linear)
    assert kept == {key: x for key, x in vars(model).items() if not key.startswith("_")}
    own = [k for k in (*dict(model.named_parameters()), *vars(model)) if "lowrank" not in k]
    assert names == own
    unload(model)
    assert Own is type(model)
    assert nn.Linear is type(model.q)


def test_methods_see_the_adapted_weight():
    model, x = randomised(adapt(Own(), make, targets=["scale", "q"])), torch.randn(2, 4)
    update = {found.name: found for found in adapted_weights(model)}["scale"].updates[0]
    torch.testing.assert_close(x @ (torch.eye(4) + update().to_dense()), model.attend(x))


def test_attributes_can_be_changed_afterwards():
    model = randomised(adapt(nn.Sequential(nn.Conv1d(2, 4, 3)), make, targets="0"))
    model[0].stride = (2,)
    x = torch.randn(1, 2, 9)
    expected = nn.functional.conv1d(x, model[0].weight, model[0].bias, stride=2)
    torch.testing.assert_close(expected, model(x))


def test_hooks_stay_and_see_the_update():
    model, seen = nn.Sequential(nn.Linear(4, 3)), []
    model[0].register_forward_hook(lambda layer, args, y: seen.append(y))
    y = randomised(adapt(model, make, targets="0"))(torch.ones(2, 4))
    assert seen[0] is y


LAYERS = {
    "lstm": (lambda: nn.LSTM(4, 5, batch_first=True), lambda x: (x,)),
    "gru": (lambda: nn.GRU(4, 5, batch_first=True), lambda x: (x,)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda x: (x, x, x)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_threads_compute_alike(kind):
    build, inputs = LAYERS[kind]
    model, args = randomised(adapt(build(), make, targets=".*")), inputs(torch.randn(2, 3, 4))
    expected, wrong = model(*args)[0].detach(), []

    def work():
        for _ in range(20):
            try:
                wrong.extend([] if torch.equal(expected, model(*args)[0].detach()) else ["differs"])
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [] == wrong


@pytest.mark.parametrize("kind", LAYERS)
def test_functional_call_takes_other_parameters(kind):
    build, inputs = LAYERS[kind]
    model, args = randomised(adapt(build(), make, targets=".*")), inputs(torch.randn(2, 3, 4))
    doubled = {key: 2 * x.detach() for key, x in model.state_dict().items()}
    found = torch.func.functional_call(model, doubled, args)[0]
    model.load_state_dict(doubled)
    torch.testing.assert_close(model(*args)[0], found)


def test_vmap_over_attention_and_gradients_by_transform():
    model = randomised(adapt(nn.MultiheadAttention(4, 2, batch_first=True), make, targets=".*"))
    x = torch.randn(3, 2, 3, 4)
    found = torch.func.vmap(lambda x: model(x, x, x, need_weights=False)[0])(x)
    expected = torch.stack([model(y, y, y, need_weights=False)[0] for y in x])
    torch.testing.assert_close(expected, found)


def test_pruned_layer_is_adapted_beneath_its_mask():
    layer = nn.LSTM(4, 5, batch_first=True)
    prune.random_unstructured(layer, "weight_ih_l0", 0.5)
    original, mask = layer.weight_ih_l0_orig.detach().clone(), layer.weight_ih_l0_mask
    model = randomised(adapt(layer, make, targets="weight_ih_l0_orig"))
    plain, x = nn.LSTM(4, 5, batch_first=True), torch.randn(2, 3, 4)
    with torch.no_grad():
        for key in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(plain, key).copy_(getattr(layer, key))
        plain.weight_ih_l0.copy_(mask * (original + member(model)().to_dense()))
    torch.testing.assert_close(plain(x)[0], model(x)[0])


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m),
    "parallel": nn.DataParallel,
    "checkpointed": lambda m: nn.Sequential(checkpoint_wrapper(m[0]), m[1]),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_names_under_wrappers_are_those_of_the_model(kind, tmp_path):
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    model = randomised(adapt(copy.deepcopy(base), make, targets="0", modules_to_train="1"))
    save_adapter(WRAPPERS[kind](model), tmp_path)
    torch.testing.assert_close(model(x), load_adapter(base, tmp_path)(x))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 4), nn.Embedding(7, 4)

    def forward(self, indices):
        return self.tokens(indices) + self.positions(torch.arange(indices.shape[1]))


def test_per_sample_does_not_take_positions_for_samples():
    model = randomised(adapt(Positions(), make, targets=["tokens", "positions"]))
    square = torch.zeros(3, 3, dtype=torch.long)
    with per_sample(model, ["default", None, None]):
        with pytest.raises(ShapeError, match="must know the axis of the samples"):
            model(square)
        with pytest.raises(ShapeError, match="one adapter for each entry of axis 0"):
            model(square[:, :2])


@pytest.mark.parametrize(
    "kind", [f"Conv{what}{d}d" for d in (1, 2, 3) for what in ("", "Transpose")]
)
def test_per_sample_does_not_take_channels_for_samples(kind):
    model = randomised(adapt(nn.Sequential(getattr(nn, kind)(2, 3, 2)), make, targets="0"))
    x = torch.linspace(-1, 1, 4 * 4 ** int(kind[-2])).view(2, 2, *[4] * int(kind[-2]))
    with per_sample(model, ["default", None]):
        y = model(x)
    with disabled(model):
        base = model(x)
    torch.testing.assert_close(torch.stack((model(x)[0], base[1])), y)


def test_per_sample_along_another_axis():
    model = randomised(adapt(nn.Sequential(nn.Linear(4, 2)), make, targets="0"))
    x = torch.randn(5, 3, 4)
    with per_sample(model, ["default", None, "default"], axis=1):
        found = model(x)
    expected = model(x)
    with disabled(model):
        expected = torch.stack((expected[:, 0], model(x)[:, 1], expected[:, 2]), 1)
    torch.testing.assert_close(expected, found)


def test_per_sample_lets_a_reader_look_at_the_dtype():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x):
            return self.inner(x.to(self.inner.weight.dtype))

    model = randomised(adapt(Looks(), make, targets="inner"))
    with per_sample(model, ["default", None]):
        assert (2, 2) == model(torch.ones(2, 4, dtype=torch.float64)).shape
        with pytest.raises(AdapterStateError, match="computes with the weight of an adapted"):
            _ = model.inner.weight.T


def test_tying_once_more_changes_nothing():
    model = nn.ModuleDict({"emb": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["emb"].weight
    randomised(adapt(model, make, targets="emb"))
    assert isinstance(model["emb"].weight, nn.Parameter)
    model["head"].weight = model["emb"].weight
    assert base_weight(model["head"]) is base_weight(model["emb"])


def test_part_of_a_model_has_a_record_of_its_own_from_then_on():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    randomised(adapt(model, make, targets=["a", "b"]))
    x = torch.ones(2, 3)
    kept = model["b"](x)
    switch(model["a"])
    assert torch.equal(
        model["a"](x), nn.functional.linear(x, base_weight(model["a"]), model["a"].bias)
    )
    assert torch.equal(kept, model["b"](x))
    merge(model["a"])
    with pytest.raises(AdapterStateError, match="must not be merged"):
        switch(model)
    unmerge(model["a"])
    switch(model, "default")


def test_modules_are_walked_once_and_without_adapters():
    part = nn.Linear(3, 3)
    model = nn.Sequential(part, nn.Sequential(part, nn.Linear(3, 3)), part)
    before = list(model.modules())
    adapt(model, make, targets="all-linear")
    assert before == list(modules_of(model))
    assert len(before) < len(list(model.modules()))


def test_buffers_of_an_adapter_are_numbers_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    model[1].running_mean.requires_grad_()
    adapt(model, make, targets="0")
    x = torch.ones(2, 3)
    assert torch.equal(model(x), copy.deepcopy(model)(x))
    assert not model[1].running_mean.requires_grad


def test_copy_inside_a_block_is_outside_of_it():
    model, x = (
        randomised(adapt(nn.Sequential(nn.Linear(3, 3)), make, targets="0")),
        torch.ones(2, 3),
    )
    expected = model(x)
    with disabled(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(expected, other(x)) for other in copies)


def test_removed_adapter_leaves_the_others():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3)
    base = copy.deepcopy(model)
    for name in ("a", "b"):
        randomised(adapt(model, make, targets="0", name=name))
    switch(model, "a")
    expected = model(x)
    remove_adapter(model, "b")
    assert torch.equal(expected, model(x))
    remove_adapter(model, "a")
    assert nn.Linear is type(model[0])
    assert torch.equal(base(x), model(x))
    with pytest.raises(AdapterStateError, match="must be adapted"):
        remove_adapter(model, "a")


def test_partial_freezing_survives_a_switch():
    model = nn.Sequential(nn.Linear(3, 3))
    adapt(model, make, targets="0", name="a")
    member(model[0], "a").right.requires_grad_(False)
    adapt(model, make, targets="0", name="b")
    switch(model, "a")
    assert [True, False] == [p.requires_grad for p in member(model[0], "a").parameters()]


def test_errors_name_the_layer():
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(RankError, match=r"0\.weight: rank must be in 1\.\.2"):
        adapt(model, lambda shape: lo.Factored(shape, 3), targets="0")
    with pytest.raises(RadiusError, match=r"0\.weight: .*positive"):
        adapt(model, lambda s, radius: lo.NBLoRA(s, 2, radius=radius), targets="0",
              radius_pattern={"0": 0.0})  # fmt: skip


def test_make_gets_what_it_asks_for():
    seen = []

    def asking(shape, *, weight, name, generator):
        seen.append((name, tuple(weight.shape), generator))
        return lo.Factored(shape, 1)

    generator = torch.Generator()
    adapt(nn.Sequential(nn.Linear(4, 2)), asking, targets="0", generator=generator)
    assert [("0.weight", (2, 4), generator)] == seen
