"""Shortcuts are parts of a model: adapters say their own of them, and none is lost."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError
from lowrank_opt.nn import (
    adapt,
    add_shortcut,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    switch,
    unload,
    unmerge,
)

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def make(shape):
    return lo.Factored(shape, 1)


def base(shortcut=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        model = nn.Sequential(nn.Linear(3, 3), block).double()
        if shortcut:
            add_shortcut(model, "1", lo.Factored((3, 3), 1))
        return model


def shake(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


COPIES = {
    "as it is": lambda model: model,
    "frozen": lambda model: model.requires_grad_(False),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "a second adapter": lambda model: adapt(model, make, targets="0", name="second"),
}


@pytest.mark.parametrize("how", COPIES)
def test_path_that_was_added_to_an_adapted_model_is_in_its_folder(how, tmp_path):
    model = adapt(base(), make, targets="0|1.2")
    add_shortcut(model, "1", lo.Factored((3, 3), 1))
    expected = shake(model)(X)
    save_adapter(COPIES[how](model), tmp_path / "a", name="default")
    torch.testing.assert_close(expected, load_adapter(base(True), tmp_path / "a")(X))
    plain = base()
    before = plain(X)
    with pytest.raises(DataError, match=r"trained tensors missing.*1.weight.left"):
        load_adapter(plain, tmp_path / "a")
    assert torch.equal(before, plain(X))
    assert "1.2.weight" in plain.state_dict()


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_path_around_a_block_that_copies_itself_is_copied(how):
    model = base(True)
    if how == "copied":
        # Parametrized layers say themselves how they are copied, and are not pickled.
        model[1].base = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3).double())
    shake(model)
    again = COPIES[how](model)
    assert type(model[1]) is type(again[1])
    assert torch.equal(model(X), again(X))


def test_path_of_the_base_is_frozen_and_adds_nothing_to_names(tmp_path):
    model = adapt(base(True), make, targets=r"0|1\.2")
    assert not [k for k, p in model.named_parameters() if p.requires_grad and "adapters" not in k]
    expected = shake(model)(X)
    save_adapter(model, tmp_path / "a")
    assert torch.equal(expected, load_adapter(base(), tmp_path / "a")(X))


def test_each_adapter_has_a_path_of_its_own(tmp_path):
    model, plain = base(True), base()(X)
    outputs = {}
    for seed, name in enumerate("ab"):
        adapt(model, make, targets="0", modules_to_train=r"1\.weight", name=name)
        outputs[name] = shake(model, seed)(X)
    for name, expected in outputs.items():
        switch(model, name)
        assert torch.equal(expected, model(X))
        merge(model)
        torch.testing.assert_close(expected, model(X))
        with disabled(model):
            assert torch.equal(plain, model(X))
        unmerge(model)
        again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert torch.equal(expected, again(X))
        save_adapter(model, tmp_path / name, name=name)
        assert torch.equal(expected, load_adapter(base(True), tmp_path / name)(X))
    assert torch.equal(plain, unload(model)(X))
