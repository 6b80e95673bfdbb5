"""What two processes do with models that are cut, and compare with what one does."""

import math
import os
import random
import signal
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lowrank_opt.nn import (
    AdapterSteps,
    adapt,
    adapter_figures,
    adapter_report,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    remove_adapter,
    rewind,
    save_adapter,
    summary,
    switch,
    unload,
    unmerge,
)
from lowrank_opt.testing.laws import adapter_moves as moves
from lowrank_opt.testing.laws.adapter_machine import adapter_machine, play_out
from lowrank_opt.testing.laws.adapter_play import Play
from lowrank_opt.testing.laws.adapter_stage import Stage
from tests.cut_models import FAMILIES, Sent, ball, base, tied

DRAW, SEEDS = random.Random(), 2
FOLDER = Path.cwd()
WHOLE = Replicate()


def planned(net):
    # Fresh styles: they remember what they are called with.
    return parallelize_module(
        net,
        MESH,
        {
            "emb": ColwiseParallel(output_layouts=WHOLE),
            "words": RowwiseParallel(input_layouts=WHOLE),
            "up": ColwiseParallel(use_local_output=False),
            "down": RowwiseParallel(),
            "head": ColwiseParallel(output_layouts=WHOLE),
        },
    )


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def equal(x, y, what=""):
    assert torch.allclose(whole(x), whole(y), rtol=1e-12, atol=1e-13), (what, whole(x) - whole(y))


def replicas_are_equal(net):
    for name, p in net.named_parameters():
        if "lowrank_adapters" in name and not isinstance(p, DTensor):
            first = p.detach().clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, p), name


X = torch.randint(0, 5, (4, 3), generator=torch.Generator().manual_seed(3))


def train(net, kind=torch.optim.SGD, **options):
    optimizer = kind([p for p in net.parameters() if p.requires_grad], lr=0.3, **options)
    for _ in range(3):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()


def pair(make, *, first, **options):
    nets = []
    for cut in (False, True):
        net = base()
        if cut and not first:
            planned(net)
        # Under a plan the numbers of the first process count.
        torch.manual_seed(5 + 7 * (RANK if cut else 0))
        adapt(net, make, targets="emb|words|up|down", name="a", **options)
        nets.append(planned(net) if cut and first else net)
    return nets


def trains_as_one_process():
    for i, (name, make) in enumerate(FAMILIES.items()):
        given = {"magnitude": i % 2 == 1, "modules_to_train": "head"}
        one, cut = pair(make, first=i % 4 < 2, **given)
        for net in (one, cut):
            train(net, torch.optim.AdamW if i % 3 == 0 else torch.optim.SGD)
        for (key, p), q in zip(one.named_parameters(), cut.parameters(), strict=True):
            equal(p, q, (name, key))
            assert p.requires_grad is q.requires_grad, key
        equal(one(X), cut(X))
        assert (one(X) - base()(X)).abs().max() > 1e-3, name
        replicas_are_equal(cut)
        if i in (0, 3):
            lives_as_in_one_process(one, cut)


def lives_as_in_one_process(one, cut):
    wanted = one(X)
    for act in (merge, unmerge):
        for net in (one, cut):
            act(net)
        equal(cut(X), wanted)
        with disabled(cut):
            equal(cut(X), base()(X))
    assert isinstance(cut.down.weight, DTensor)
    equal(cut.down.weight, one.down.weight)
    for mine, other in zip(adapter_report(cut), adapter_report(one), strict=True):
        for what in ("holds", "trainable", "bound", "rank"):
            assert getattr(mine, what) == getattr(other, what), (mine, other)
        assert math.isclose(mine.drift, other.drift, rel_tol=1e-9), (mine, other)
    assert [*summary(cut)] == [*summary(one)]
    figures, others = adapter_figures(cut), adapter_figures(one)
    assert all(math.isclose(figures[k], x, rel_tol=1e-9, abs_tol=1e-12) for k, x in others.items())
    folder = FOLDER / f"of{RANK}"
    save_adapter(cut, folder, name="a")
    equal(load_adapter(base(), folder)(X), wanted)
    equal(load_adapter(planned(base()), folder)(X), wanted)
    save_adapter(one, folder, name="a")
    again = load_adapter(planned(base()), folder)
    equal(again(X), wanted)
    adapt(again, ball, targets="down", name="b")
    switch(again, "a", "b", lead="a")
    equal(again(X), wanted)
    equal(remove_adapter(again, "b")(X), wanted)
    merged = merge_and_unload(again)
    assert type(merged.up) is nn.Linear
    equal(merged(X), wanted)
    equal(unload(cut)(X), base()(X))


def sends_factors_alone():
    """One sum of the gradients of the factors for a weight, and nothing forwards."""
    sent = {}
    for magnitude in (None, False, True):
        net = planned(base())
        if magnitude is not None:
            adapt(net, ball, targets="up|down", magnitude=magnitude)
        with Sent() as forwards:
            y = net(X)
        with Sent() as backwards:
            # The base model has gradients of its embedding's input alone.
            y.square().mean().backward()
        sent[magnitude] = forwards.calls, backwards.calls
    base_forwards = sent[None][0]
    assert base_forwards, "the plan sends something"
    assert base_forwards == sent[False][0], sent
    # (m + n) r numbers for each of two weights, of 7 x 4 and 4 x 7.
    assert [22, 22] == added(sent[False][1]), sent
    # Of magnitudes the gradients go in the same call; forwards, lengths of rows are put together.
    assert [22 + 4, 22 + 7] == added(sent[True][1]), sent
    more = [n for name, n in sent[True][0] if name == "allgather_"]
    assert len(more) == len(sent[True][0]) - len(base_forwards), sent
    assert [1, 4, 1, 4] == more, more


def added(calls):
    return [n for name, n in calls if name == "allreduce_"]


def follows_sequences():
    """Between layers that are cut, norms of parts of sequences."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.LayerNorm(4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4)
        ).double()

    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    one, cut = (adapt(net(), ball, targets="1|3", modules_to_train="4") for _ in range(2))
    for model in (one, cut):
        torch.manual_seed(2)
        for p in (p for p in model.parameters() if p.requires_grad):
            p.data.add_(0.1 * torch.randn(p.shape))
    parallelize_module(
        cut,
        MESH,
        {
            "0": SequenceParallel(use_local_output=False),
            "1": ColwiseParallel(input_layouts=Shard(1)),
            "3": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
            "4": SequenceParallel(use_local_output=False),
        },
    )
    # The plan asks for gradients of all that it replicates; what was frozen stays so.
    assert not any(cut[i]._parameters["weight"].requires_grad for i in (1, 4))
    mine = x.chunk(2, dim=1)[RANK].contiguous()
    for net, data in ((one, x), (cut, mine)):
        whole(net(data)).square().mean().backward()
    equal(cut(mine), one(x))
    for (key, p), q in zip(one.named_parameters(), cut.parameters(), strict=True):
        if p.requires_grad and "adapters" in key and "own" not in key:
            equal(p.grad, q.grad, key)


def plays_as_one_process():
    stage = Stage(base, (X,), "emb|words|up|down", heads="head", cut=planned)
    play_out(adapter_machine({"cut": stage}, ball), seed=2, runs=2, steps=12, shrink=False)


def fully_sharded(net):
    for part in (net.emb, net.words, net.up, net.down, net.head, net):
        fully_shard(part, reshard_after_forward=DRAW.random() < 0.5)
    return net


def plays_in_shards():
    """Every law of one process, in an order that is drawn, once the model is cut."""
    stage = Stage(base, (X,), "emb|words|up|down", heads="head", has_inputs=True)
    for seed in range(SEEDS):
        DRAW.seed(seed)
        play = Play(stage, ball)
        for name in "ab":
            given = {"head": DRAW.random() < 0.5, "magnitude": DRAW.random() < 0.5}
            play.step("adapt", name=name, **given)
        play.step(moves.shard, cut=fully_sharded)
        for _ in range(14):
            name, other = DRAW.choice("ab"), DRAW.choice("abc")
            weights = {name: DRAW.choice([1.0, -0.5]), other: 1.0}
            act, given = DRAW.choice(
                [
                    ("switch", {"weights": weights}),
                    ("merge", {}),
                    ("unmerge", {}),
                    ("enter", {}),
                    ("leave", {}),
                    ("train", {}),
                    ("train", {}),
                    ("freeze", {}),
                    (moves.shard, {"cut": fully_sharded}),
                    ("remove", {"name": name}),
                    ("combine", {"weights": weights, "name": "d"}),
                    ("adapt", {"name": other, "head": False}),
                    ("reload", {"name": name, "new": other, "fresh": DRAW.random() < 0.3}),
                    ("check_samples", {"names": [name, None]}),
                    ("route", {"names": [None, name]}),
                    (moves.write, {"name": name, "through_data": DRAW.random() < 0.5}),
                    (moves.train_base, {"which": DRAW.randrange(6)}),
                    (moves.freeze_one, {"which": DRAW.randrange(6)}),
                    (moves.exchange_with_peft, {"name": name, "new": other}),
                ]
            )
            play.step(act, **given)
        play.leave_all()


def every(**options):
    def cut(net):
        for part in (net.up, net.down, net):
            fully_shard(part, **options)

    return cut


def planned_and_sharded(net):
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    parallelize_module(net, mesh["tensor"], plan)
    every(mesh=mesh["data"])(net)


def planned_and_tied(net):
    parallelize_module(
        net,
        MESH,
        {
            "emb": RowwiseParallel(input_layouts=WHOLE),
            "up": ColwiseParallel(),
            "down": RowwiseParallel(),
            "head": ColwiseParallel(output_layouts=WHOLE),
        },
    )


def stands_other_cuts():
    """Replicas of shards, memory of the host, ties, and both kinds of cuts at once."""
    for build, targets, cut_in in (
        (base, "up|down", every(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("r", "s")))),
        (base, "up|down", every(offload_policy=CPUOffloadPolicy(pin_memory=False))),
        (base, "up|down", planned_and_sharded),
        (tied, "emb|up", every()),
        (tied, "emb|up", planned_and_tied),
    ):
        one, cut = (adapt(build(), ball, targets=targets, magnitude=True) for _ in range(2))
        cut_in(cut)
        for net in (one, cut):
            train(net)
        equal(one(X), cut(X))
        for act in (merge, unmerge):
            act(cut)
            equal(one(X), cut(X))
        save_adapter(cut, FOLDER / f"of{RANK}")
        equal(load_adapter(build(), FOLDER / f"of{RANK}")(X), one(X))


def stays_in_its_set_in_few_bits():
    one, cut = (adapt(base().float(), ball, targets="up|down") for _ in range(2))
    every(mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))(cut)
    for net in (one, cut):
        train(net)
    assert all(p.dtype is torch.float32 for p in cut.parameters())
    assert (one(X) - cut(X)).abs().max() < 0.05
    assert all(site.holds for site in adapter_report(cut))


def moves_as_one_process():
    one, cut = pair(ball, first=True)
    for net in (one, cut):
        train(net)
        AdapterSteps(recenter=1, radius=lambda step: 0.1)(net, 1)
    equal(one(X), cut(X))
    for net in (one, cut):
        rewind(net, 0.05)
    equal(one(X), cut(X))
    replicas_are_equal(cut)


def main():
    # Torch warns that nobody may write into the output of a layer; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    trains_as_one_process()
    sends_factors_alone()
    follows_sequences()
    plays_as_one_process()
    plays_in_shards()
    stands_other_cuts()
    stays_in_its_set_in_few_bits()
    moves_as_one_process()


def in_two_processes():
    """Run `main` in this process and in a fork of it; only as a program, never on import."""
    global RANK, MESH
    child = os.fork()
    RANK = int(child == 0)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{FOLDER}/meet",
            rank=RANK,
            world_size=2,
            timeout=timedelta(seconds=120),
        )
        MESH = init_device_mesh("cpu", (2,))
        main()
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        if child:
            os.kill(child, signal.SIGKILL)
        os._exit(1)
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the other process failed"


if __name__ == "__main__":
    in_two_processes()
