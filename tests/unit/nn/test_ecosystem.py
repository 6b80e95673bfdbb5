"""Adapters in the loops of others, without the others: steps, model cards, a hub that stands in."""

import math
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, MissingExtraError, OptionError
from lowrank_opt.nn import (
    AdapterStateError,
    AdapterSteps,
    adapt,
    adapted_weights,
    adapter_figures,
    follow_trainer,
    lightning_callback,
    load_adapters,
    load_from_hub,
    model_card,
    push_to_hub,
    switch,
)

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        adapt(model, partial(lo.NBLoRA, rank=2, radius=2.0), targets="all-linear", name="a")
        for p in model.parameters():
            if p.requires_grad:
                nn.init.normal_(p)
    return model


def dense(model: nn.Module) -> list[Tensor]:
    return [w.updates[0]().to_dense().detach() for w in adapted_weights(model)]


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """Take one step, so that the optimizer remembers something of each parameter."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(X).square().mean().backward()
    optimizer.step()
    return optimizer


def test_figures_are_those_of_the_dense_updates():
    model = make_model()
    W = dense(model)
    base = [layer.state_dict()["weight"] for layer in (model[0], model[2])]
    spectral = [float(torch.linalg.matrix_norm(x, 2)) for x in W]
    figures = adapter_figures(model)
    expected = {
        "norm": math.hypot(*(float(x.norm()) for x in W)),
        "spectral": max(spectral),
        "drift": max(float(x.norm() / b.norm()) for x, b in zip(W, base, strict=True)),
        "gap": 1 - max(spectral) / 2.0,
        "certified": 1.0,
    }
    for key, value in expected.items():
        assert value == pytest.approx(figures[f"adapters/a/{key}"], rel=1e-4, abs=1e-6), key
    assert figures["adapters/a/excess"] < 1e-4
    assert {f"adapters/a/{key}" for key in (*expected, "excess")} == set(figures)


def test_figures_come_when_they_are_due_and_of_active_adapters():
    model = make_model()
    adapt(model, partial(lo.Factored, rank=1), targets="0", name="b")
    steps = AdapterSteps(every=3)
    assert [3, 6] == [step for step in range(1, 7) if steps(model, step)]
    names = {key.split("/")[1] for key in steps(model, 3)}
    assert {"b"} == names
    assert "adapters/b/gap" not in steps(model, 3)
    switch(model, "a", "b")
    assert {"a", "b"} == {key.split("/")[1] for key in steps(model, 3)}
    assert {} == AdapterSteps(every=0)(model, 3)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_schedule_bounds_every_update_after_each_step(p):
    model = make_model()
    steps = AdapterSteps(every=0, radius=lambda step: 2.0 / step, p=p)
    for step in range(1, 6):
        optimizer = stepped(model)
        steps(model, step, [optimizer])
        norms = [float(torch.linalg.svdvals(W).norm(p)) for W in dense(model)]
        assert max(norms) <= 2.0 / step * (1 + 1e-4)


def test_what_is_inside_the_bound_is_left_alone():
    model, steps = make_model(), AdapterSteps(every=0, radius=lambda step: 100.0)
    optimizer = stepped(model)
    before = [p.clone() for p in model.parameters()]
    steps(model, 1, [optimizer])
    assert all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))
    assert len(optimizer.state) == sum(p.requires_grad for p in model.parameters())


def test_recentring_keeps_the_weight_and_forgets_the_moments():
    model = make_model()
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.mul_(30)
    optimizer = stepped(model)
    before, largest = dense(model), max(float(p.abs().max()) for p in model.parameters())
    steps = AdapterSteps(every=0, recenter=2)
    steps(model, 1, [optimizer])
    assert len(optimizer.state) > 0
    steps(model, 2, [optimizer])
    assert 0 == len(optimizer.state)
    for expected, W in zip(before, dense(model), strict=True):
        torch.testing.assert_close(W, expected, rtol=1e-4, atol=1e-4)
    assert max(float(p.abs().max()) for p in model.parameters()) < largest
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("given", [{"every": -1}, {"recenter": -2}])
def test_steps_are_counted(given):
    with pytest.raises(OptionError, match="numbers of steps must be 0 or more"):
        AdapterSteps(**given)


def test_a_schedule_has_nothing_to_bound_where_no_adapter_is_active():
    model = make_model()
    switch(model)
    assert {} == AdapterSteps(radius=lambda step: 1.0 / step, recenter=1)(model, 1)


class Followed:
    """What is used of a trainer: the callbacks it calls after each step, and what they log."""

    def __init__(self, model, folder):
        self.model, self.logged, self.callbacks = model, [], []
        self.args = SimpleNamespace(output_dir=str(folder), should_save=True)
        self.processing_class, self.state = None, SimpleNamespace(global_step=0)
        self.add_callback, self.log = self.callbacks.append, self.logged.append

    def step(self, optimizer):
        self.state.global_step += 1
        (callback,) = self.callbacks
        callback.on_step_end(None, self.state, None, model=self.model, optimizer=optimizer)


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(TrainerCallback=object))


def test_a_trainer_logs_and_bounds_and_writes_adapters_alone(transformers, tmp_path):
    trainer = Followed(make_model(), tmp_path)
    steps = AdapterSteps(every=2, radius=lambda step: 1.0 / step)
    assert trainer is follow_trainer(trainer, steps)
    for step in (1, 2):
        optimizer = stepped(trainer.model)
        trainer.step(optimizer)
        assert 0 == len(optimizer.state)
        assert step // 2 == len(trainer.logged)
    assert trainer.logged[0]["adapters/a/spectral"] <= 0.5 * (1 + 1e-4)
    expected = trainer.model(X)
    trainer._save()
    trainer.args.should_save = False
    trainer._save(str(tmp_path / "another process"))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {f"adapters/a/adapter.{kind}" for kind in ("json", "safetensors")} == files
    stepped(trainer.model)
    trainer.step(None)
    assert not torch.equal(expected, trainer.model(X))
    trainer._load_from_checkpoint(tmp_path)
    assert torch.equal(expected, trainer.model(X))
    with pytest.raises(DataError, match="has a folder 'adapters'"):
        load_adapters(trainer.model, tmp_path / "adapters")


@pytest.mark.parametrize("sharded", [True, False])
def test_a_trainer_may_write_whole_models_as_ever(transformers, sharded, tmp_path):
    trainer = Followed(make_model(), tmp_path)
    trainer.is_fsdp_enabled = sharded
    follow_trainer(trainer, AdapterSteps(), adapters_only=False)
    assert not {"_save", "_load_from_checkpoint", "_load_best_model"} & set(vars(trainer))
    if sharded:
        with pytest.raises(OptionError, match="a trainer that shards the model"):
            follow_trainer(trainer, AdapterSteps())


@pytest.mark.parametrize("adapters_only", [True, False])
def test_lightning_logs_each_step_once_and_shortens_checkpoints(adapters_only, monkeypatch):
    pytorch = SimpleNamespace(Callback=object)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    model, logged, called = make_model(), [], []
    model.log_dict = logged.append
    steps = AdapterSteps(every=2, radius=lambda step: called.append(step) or 1.0)
    callback = lightning_callback(steps, adapters_only=adapters_only)
    for step in (0, 1, 1, 2, 2):
        optimizer = stepped(model)
        trainer = SimpleNamespace(global_step=step, optimizers=[optimizer])
        callback.on_train_batch_end(trainer, model, None, None, 0)
    # Gradients of two batches are summed for a step; zero steps are none.
    assert [1, 2] == called
    assert ["adapters/a/norm"] == [next(iter(figures)) for figures in logged]
    whole = {key: x.clone() for key, x in model.state_dict().items()}
    if adapters_only:
        checkpoint = {"state_dict": dict(whole)}
        callback.on_save_checkpoint(None, model, checkpoint)
        held = checkpoint["state_dict"]
        assert {key for key in whole if "lowrank_adapters" in key} == set(held)
        stepped(model)
        for _ in range(2):
            callback.setup(None, model, "fit")
        assert 1 == len(model._load_state_dict_pre_hooks)
        model.load_state_dict(held)
        assert all(torch.equal(x, model.state_dict()[key]) for key, x in whole.items())
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(dict(list(held.items())[1:]))
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict({})
    else:
        assert not hasattr(callback, "on_save_checkpoint")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The API of huggingface_hub that is used, with folders for repositories."""
    calls = []

    class HfApi:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            assert exist_ok
            calls.append(("create", repo_id, private))
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            calls.append(("upload", repo_id, commit_message))
            return SimpleNamespace(commit_url=f"https://hub.test/{repo_id}/commit/1")

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        # As the cache of the hub: links to files that are kept elsewhere.
        folder = tmp_path / "cache" / str(revision)
        folder.mkdir(parents=True)
        for name in allow_patterns:
            (folder / name).symlink_to(tmp_path / repo_id / name)
        return str(folder)

    module = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download, calls=calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_an_adapter_goes_to_the_hub_and_back(hub, tmp_path):
    model = make_model()
    url = push_to_hub(model, "me/mine", base_model="org/base", private=True, message="Try")
    assert "https://hub.test/me/mine/commit/1" == url
    assert [("create", "me/mine", True), ("upload", "me/mine", "Try")] == hub.calls
    names = {path.name for path in (tmp_path / "me/mine").iterdir()}
    assert {"README.md", "adapter.json", "adapter.safetensors"} == names
    card = Path(tmp_path / "me/mine/README.md").read_text(encoding="utf-8")
    assert card == model_card(model, "me/mine", base_model="org/base")
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: lowrank_opt\n")
    assert "spectral <= 2" in card
    fresh = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    fresh.load_state_dict(model.state_dict(), strict=False)
    load_from_hub(fresh, "me/mine", revision="main")
    assert torch.equal(model(X), fresh(X))


def test_nothing_is_uploaded_if_there_is_nothing_to_save(hub):
    model = make_model()
    adapt(model, partial(lo.Factored, rank=1), targets="0", name="b")
    with pytest.raises(AdapterStateError, match="name must be given"):
        push_to_hub(model, "me/mine")
    assert [] == hub.calls


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("transformers", lambda: follow_trainer(None, AdapterSteps())),
        ("lightning", lambda: lightning_callback(AdapterSteps())),
        ("huggingface_hub", lambda: push_to_hub(make_model(), "me/mine")),
    ],
)
def test_what_is_missing_is_named(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.pytorch", raising=False)
    with pytest.raises(MissingExtraError, match=f"needs the package {package}"):
        call()


@pytest.mark.parametrize("strict", [False, True])
def test_an_adapted_model_is_exported(strict):
    model = make_model()
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (X,), dynamic_shapes=shapes, strict=strict)
    assert torch.equal(model(X[:3]), program.module()(X[:3]))
    own = [key for key in program.state_dict if "lowrank_adapters" in key]
    assert 4 == len(own)
