"""Shards of parameters are known as such; a process group that sends nothing stands in."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import lowrank_opt as lo
from lowrank_opt.nn import AdapterStateError, adapt, unload
from lowrank_opt.nn.basis.sharded import check_whole, is_same_sharded, is_sharded


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
    check_whole(model, "this")
    model.weight = shards
    with pytest.raises(AdapterStateError, match=r"this needs .* not sharded.*'weight'"):
        check_whole(model, "this")


def test_adapted_layers_take_no_plan_of_tensor_parallelism(mesh):
    model = adapt(nn.Sequential(nn.Linear(3, 4)), lambda s: lo.Factored(s, 1), targets="0")
    with pytest.raises(AdapterStateError, match="takes no plan of tensor parallelism"):
        parallelize_module(model, mesh, {"0": ColwiseParallel()})
    assert is_sharded(parallelize_module(unload(model)[0], mesh, ColwiseParallel()).weight)
