"""Pairs whose factors lie in shards over processes: whole for a step, cut again after it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.training.roles import FactorPair


def gathered(pair: FactorPair) -> FactorPair:
    """Return the pair with whole factors and gradients; itself if it is in one piece.

    One gather of each; to be called in all processes, in the same order.
    """
    if not any(is_sharded(x) for x in (pair.left, pair.right, pair.core)):
        return pair
    left, right, core = (_leaf(x) for x in (pair.left, pair.right, pair.core))
    assert left is not None, "a factor"
    assert right is not None, "a factor"
    return replace(pair, left=left, right=right, core=core)


def put_back(whole: FactorPair, pair: FactorPair) -> None:
    """Write what each process has of the factors."""
    for x, shards in ((whole.left, pair.left), (whole.right, pair.right)):
        if x is not shards:
            shards.copy_(_cut_as(x.detach(), shards))


def _leaf(x: Tensor | None) -> Tensor | None:
    if x is None or not is_sharded(x):
        return x
    found = _whole(x.detach()).requires_grad_(x.requires_grad)
    if x.grad is not None:
        found.grad = _whole(x.grad)
    return found


def _whole(x: Tensor) -> Tensor:
    full: Tensor = x.full_tensor()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return full


def _cut_as(x: Tensor, shards: Tensor) -> Tensor:
    """Return a tensor that all processes have in the shards of another one; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = shards.device_mesh, shards.placements  # pyright: ignore
    return distribute_tensor(x, mesh, placements, src_data_rank=None)
