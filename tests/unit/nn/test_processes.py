"""Adapters in two processes: under DDP, in shards, and a folder that is written and read."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt import files
from lowrank_opt.nn import adapt, load_adapter, save_adapter
from tests.preloaded import run_script

PROGRAM = """
import os, signal, sys, time, torch
from pathlib import Path
from torch import nn
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel
import lowrank_opt as lo
from lowrank_opt.nn import adapt, load_adapter, save_adapter, switch

FOLDER = Path.cwd()

def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

def make(shape):
    return lo.NBLoRA(shape, 2, radius=0.5)

def parallel(rank):
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/meet", rank=rank, world_size=2)
    model = base()
    for name in "ab":
        adapt(model, make, targets="0", name=name, modules_to_train="2", magnitude=True)
    switch(model, "a")
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(rank)).double()
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
    if rank == 0:
        save_adapter(wrapped, FOLDER / "saved", name="a")
        torch.save(model.eval()(torch.ones(2, 3).double()).detach(), FOLDER / "wanted")
    dist.destroy_process_group()

def adapted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    adapt(model, make, targets=".*", name="a", magnitude=True)
    adapt(model, lambda s: lo.HomogeneousBall(s, 2, radius=0.5), targets="2", name="b")
    adapt(model, make, targets="0", name="c", modules_to_train="2")
    switch(model, "a")
    return model

def read(model):
    state = get_model_state_dict(model)
    checkpoint.load({"model": state}, checkpoint_id=FOLDER / "checkpoint")
    set_model_state_dict(model, state)

def alone(_):
    model = adapted()
    read(model)
    switch(model, "b")
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    for rank in range(2):
        wanted = torch.load(FOLDER / f"wanted{rank}")
        assert torch.allclose(model(x), wanted, rtol=1e-12, atol=1e-13), model(x) - wanted

def steps_on_pairs(x, rank, equal):
    from torch.distributed.fsdp import fully_shard
    from lowrank_opt import training
    for kind, options in (
        (training.LoRARite, {"clip": 0.1}), (training.LoRAProAdamW, {}), (training.LoRAProFull, {}),
        (training.ScaledAdamW, {}), (training.SpectralDescent, {"weight_decay": 0.1}),
    ):
        nets = []
        for shards in (False, True):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
            made = {(4, 5): lo.Factored, (3, 4): lo.AdaLoRA}
            adapt(net, lambda s: made[s](s, 2), targets="0|2", magnitude=True)
            for part in (net[0], net[2], net) if shards else ():
                fully_shard(part)
            data, optimizer = x.chunk(2)[rank] if shards else x, kind(net, lr=0.05, **options)
            for step in range(4):
                optimizer.zero_grad()
                net(data).square().mean().backward()
                optimizer.step()
                if step == 1:
                    optimizer.load_state_dict(optimizer.state_dict())
            nets.append(net)
        one, cut = (dict(net.named_parameters()) for net in nets)
        for name, p in one.items():
            equal(p, cut[name].full_tensor())

def sharded(rank):
    from torch.distributed.fsdp import fully_shard
    from lowrank_opt.nn import (
        AdapterStateError, AdapterSteps, adapter_figures, adapter_report, disabled, merge,
        remove_adapter, rewind, unload, unmerge
    )
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/meet", rank=rank, world_size=2)
    one, model = adapted(), adapted()
    for part in (model[0], model[2], model):
        fully_shard(part)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    mine = x.chunk(2)[rank]
    def equal(a, b):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13), (a - b).abs().max()
    for name in "abc":
        for net, data in ((one, x), (model, mine)):
            switch(net, name)
            optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
            for _ in range(3):
                optimizer.zero_grad()
                net(data).square().mean().backward()
                optimizer.step()
    for weights in ("a",), ("b",), ("c",), ({"a": 1.0, "b": 0.5},):
        for net in (one, model):
            switch(net, *weights, **({} if isinstance(weights[0], str) else {"lead": "a"}))
        wanted = one(x)
        equal(model(x), wanted)
        with disabled(model), disabled(one):
            equal(model(x), one(x))
        for net in (one, model):
            merge(net)
        equal(model(x), one(x))
        equal(model(x), wanted)
        for net in (one, model):
            unmerge(net)
        equal(model(x), wanted)
    for mine, other in zip(adapter_report(model), adapter_report(one)):
        for what in ("nuclear", "drift", "trainable"):
            assert abs(getattr(mine, what) - getattr(other, what)) < 1e-12, (mine, other)
        figures = [adapter_figures(net) for net in (model, one)]
        for key in figures[1]:
            assert abs(figures[0][key] - figures[1][key]) < 1e-12, key
    steps_on_pairs(x, rank, equal)
    save_adapter(model, FOLDER / f"of{rank}", name="b")
    switch(model, "b")
    loaded = load_adapter(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(),
                          FOLDER / f"of{rank}")
    own = [p for n, p in loaded.named_parameters() if p.requires_grad]
    switch(one, "b")
    for p, q in zip(own, [p for p in one.parameters() if p.requires_grad], strict=True):
        equal(p, q)
    for change in (
        lambda: adapt(model, make, targets="0", name="c"),
        lambda: load_adapter(model, FOLDER / f"of{rank}"),
        lambda: remove_adapter(model, "a"),
        lambda: unload(model),
        lambda: rewind(model, 0.1),
        lambda: AdapterSteps(recenter=1)(model, 1),
        lambda: AdapterSteps(radius=lambda step: 0.1)(model, 1),
        lambda: model[0].weight + 1,
    ):
        try:
            change()
        except AdapterStateError as error:
            assert "shard" in str(error), error
        else:
            raise AssertionError("not refused")
    equal(model(x), one(x))
    state = get_model_state_dict(model)
    checkpoint.save({"model": state}, checkpoint_id=FOLDER / "checkpoint")
    again = adapted()
    for part in (again[0], again[2], again):
        fully_shard(part)
    read(again)
    switch(again, "b")
    equal(again(x), one(x))
    torch.save(one(x).detach(), FOLDER / f"wanted{rank}")
    dist.destroy_process_group()

def shared(rank):
    models = [adapt(base(), make, targets="0", name="a", dropout=p) for p in (0.0, 0.25)]
    for k, model in enumerate(models):
        with torch.no_grad():
            for p in model.parameters():
                p.requires_grad and p.fill_(1.0 + k)
    wanted = [model.eval()(torch.ones(2, 3).double()) for model in models]
    folder, done = FOLDER / "shared", FOLDER / "done"
    if rank == 0:
        for k in range(60):
            save_adapter(models[k % 2], folder)
        done.touch()
        return
    while not (folder / "adapter.json").exists():
        pass
    seen = 0
    while not done.exists() or not seen:
        y = load_adapter(base(), folder).eval()(torch.ones(2, 3).double())
        assert any(torch.equal(y, z) for z in wanted), y
        seen += 1

def three(rank):
    from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/three", rank=rank, world_size=3)
    model = adapted()
    for part in (model[0], model[2], model):
        fully_shard(part)
    read(model)
    switch(model, "b")
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(model(x), torch.load(FOLDER / "wanted0"), rtol=1e-12, atol=1e-13)
    dist.destroy_process_group()

def killed(rank):
    models = [adapt(base(), make, targets="0", name="a", dropout=p) for p in (0.0, 0.25)]
    for k, model in enumerate(models):
        for p in (p for p in model.parameters() if p.requires_grad):
            p.data.fill_(1.0 + k)
    x, folder = torch.ones(2, 3).double(), FOLDER / "killed"
    wanted = [model.eval()(x) for model in models]
    save_adapter(models[0], folder)
    for k in range(6):
        writer = os.fork()
        while writer == 0:
            for model in models:
                save_adapter(model, folder)
        time.sleep(0.02 + 0.013 * k)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        y = load_adapter(base(), folder).eval()(x)
        assert any(torch.equal(y, z) for z in wanted), y
    save_adapter(models[1], folder)
    assert torch.equal(load_adapter(base(), folder).eval()(x), wanted[1])

def together(function, count):
    children = []
    for rank in range(1, count):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                function(rank)
            except BaseException as error:
                print(type(error).__name__, error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
    function(0)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "another process failed"

COUNTS = {parallel: 2, shared: 2, sharded: 2, alone: 1, three: 3, killed: 1}
together(*next((f, n) for f, n in COUNTS.items() if f.__name__ == sys.argv[1]))
"""


@pytest.fixture
def run(tmp_path):
    def run(what):
        script = tmp_path / "program.py"
        script.write_text(PROGRAM)
        done = run_script(script, what, folder=tmp_path)
        assert done.returncode == 0, done.stderr

    return run


def test_what_is_saved_under_ddp_loads_on_a_plain_base(run, tmp_path):
    run("parallel")
    torch.manual_seed(0)
    base = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    ).double()
    model = load_adapter(base, tmp_path / "saved").eval()
    wanted = torch.load(tmp_path / "wanted")
    assert torch.equal(wanted, model(torch.ones(2, 3).double()))


def test_shards_train_and_answer_as_one_process_does(run):
    run("sharded")
    run("alone")
    run("three")


@pytest.mark.parametrize("what", ["shared", "killed"])
def test_a_folder_that_is_written_meanwhile_loads_whole(run, what):
    run(what)


def test_a_folder_that_is_written_twice_while_it_is_read_loads_whole(tmp_path, monkeypatch):
    models = [
        adapt(torch.nn.Linear(3, 2), lambda s: lo.Factored(s, 1), targets=".*", dropout=p)
        for p in (0.0, 0.25, 0.5)
    ]
    save_adapter(models[0], tmp_path)
    read, later = files._read_tensors, models[1:]

    def slowly(*arguments):
        for model in (later.pop(0) for _ in range(len(later))):
            torch.nn.init.normal_(next(p for p in model.parameters() if p.requires_grad))
            save_adapter(model, tmp_path)
        return read(*arguments)

    monkeypatch.setattr(files, "_read_tensors", slowly)
    loaded = load_adapter(torch.nn.Linear(3, 2), tmp_path)
    part = loaded.lowrank_adapters.part("default")
    assert 0.5 == part.dropout
