"""Shards of parameters are known as such; a process group that sends nothing stands in."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

import lowrank_opt as lo
from lowrank_opt.nn import AdapterStateError, adapt, merge, per_sample, unload
from lowrank_opt.nn.basis.sharded import check_whole, is_same_sharded, is_sharded


def one(shape):
    return lo.Factored(shape, 1)


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_shards_are_told_from_whole_parameters(mesh):
    whole = nn.Parameter(torch.ones(4, 3))
    shards = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    assert (True, False) == (is_sharded(shards), is_sharded(whole))
    # Either takes the place of the other before and after a call, with its shape, as a parameter.
    for value, base, same in (
        (shards, whole, True),
        (whole, shards, True),
        (shards, shards, True),
        (whole, whole, False),
        (shards, None, False),
        (shards.data, whole, False),
        (shards, nn.Parameter(torch.ones(2, 3)), False),
    ):
        assert same is is_same_sharded(value, base)
    model = nn.Linear(3, 4)
    model.weight = shards
    # What a plan has cut is no obstacle; what `fully_shard` manages is, from within as well.
    check_whole(model, "this")
    whole = nn.Sequential(nn.Linear(3, 4))
    fully_shard(whole, mesh=mesh)
    for part in (whole, whole[0]):
        with pytest.raises(AdapterStateError, match=r"this needs .* not sharded.* in shards"):
            check_whole(part, "this")


def kept(shape, weight):
    return lo.ETHER(weight)


@pytest.mark.parametrize(
    ("make", "options", "prepare", "message"),
    [
        (kept, {}, None, "got ETHER for a 'weight' of shape .* which keeps it to compute with"),
        (one, {"dropout": 0.5}, None, r"each process would draw .* got dropout=0\.5"),
        (one, {}, merge, "sums would be made again; got a merged model"),
    ],
)
def test_what_needs_whole_weights_is_told_before_a_plan_cuts_any(
    mesh, make, options, prepare, message
):
    model = adapt(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), one, targets="0", name="a")
    adapt(model, make, targets="1", name="b", **options)
    if prepare is not None:
        prepare(model)
    # The first layer of the plan could be cut, and the second not.
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    with pytest.raises(AdapterStateError, match=message):
        parallelize_module(model, mesh, plan)
    assert not any(is_sharded(p) for p in model.parameters())


def test_samples_have_no_adapters_of_their_own_under_a_plan(mesh):
    model = adapt(nn.Sequential(nn.Linear(3, 4)), one, targets="0", name="a")
    parallelize_module(model, mesh, {"0": ColwiseParallel()})
    with pytest.raises(AdapterStateError, match=r"rows of whole activations.* '0\.weight'"):
        per_sample(model, ["a", None]).__enter__()
    assert is_sharded(unload(model)[0].weight)
