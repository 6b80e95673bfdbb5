"""Weights that a plan of tensor parallelism has cut, and what goes with one process's part.

``parallelize_module`` puts a `DTensor` where a weight was: each process has some rows of the
matrix, or some columns. Free parameters of adapters stay whole in every process, and equal. So the
factors are evaluated everywhere, rows of them are taken that go with the part of the weight, and
what is added to the output is a part as the base layer's own is. Then gradients are of these parts:
those of the factors are summed over the processes, in one call for a weight, before they go on
through the map, from equal numbers to equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from lowrank_opt.linalg import lp_norm
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from lowrank_opt.nn.basis.kinds import Side


@dataclass(frozen=True)
class Cut:
    """Which part of a matrix this process has.

    Attributes
    ----------
    mesh : DeviceMesh
    sides : tuple of "rows", "columns" or None
        What each axis of the mesh cuts; None if it has copies.
    rows, columns : slice
        Of the matrix, in this process.
    """

    mesh: DeviceMesh
    sides: tuple[Side | None, ...]
    rows: slice
    columns: slice

    @classmethod
    def of(cls, weight: Tensor) -> Cut:
        """Return how a DTensor is cut; one of more axes than two is whole."""
        from torch.distributed.tensor._utils import (
            compute_local_shape_and_global_offset,
        )

        x = as_dtensor(weight)
        sizes, offsets = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
        sides: list[Side | None] = [_side(getattr(p, "dim", None)) for p in x.placements]
        rows, columns = (slice(a, a + n) for a, n in zip(offsets[:2], sizes[:2], strict=True))
        return cls(x.device_mesh, (*sides,), rows, columns if x.ndim == 2 else slice(None))

    def without(self, side: Side) -> Cut:
        """Return the cut with one side in one piece."""
        sides: list[Side | None] = [None if s == side else s for s in self.sides]
        rows, columns = (
            slice(None) if key == side else kept
            for key, kept in (("rows", self.rows), ("columns", self.columns))
        )
        return Cut(self.mesh, (*sides,), rows, columns)

    def part(self, op: LowRankOperator) -> LowRankOperator:
        """Return this process's part of a matrix, which passes no gradients between processes."""
        return LowRankOperator(op.left[self.rows], op.scale, op.right[self.columns])

    def norms(self, own: Tensor, side: Side) -> Tensor:
        """Return lengths of whole rows or columns from those of each process's parts of them.

        Parameters
        ----------
        own : Tensor, shape (matrices, k)
            Of the rows, or columns, that this process has.
        side : {"rows", "columns"}

        Returns
        -------
        Tensor, shape (matrices, m) or (matrices, n)
        """
        for axis in reversed(range(self.mesh.ndim)):
            if self.sides[axis] is not None:
                parts = _gathered(own, self.mesh, axis)
                own = torch.cat(parts, 1) if self.sides[axis] == side else _length(parts)
        return own


def _side(axis: int | None) -> Side | None:
    if axis is None:
        return None
    return "columns" if axis else "rows"


def as_dtensor(x: Tensor) -> DTensor:
    """Return what is known to be a DTensor as one."""
    return x  # pyright: ignore[reportReturnType]


def in_place_of(part: Tensor, like: Tensor, placements: Any = None) -> Tensor:  # noqa: ANN401
    """Return the DTensor, of the shape and layout of another one, of which this is a part."""
    from torch.distributed.tensor import DTensor

    x = as_dtensor(like)
    return DTensor.from_local(
        part,
        x.device_mesh,
        x.placements if placements is None else placements,
        run_check=False,
        shape=x.shape,
        stride=x.stride(),
    )


def cut_as(x: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that all processes have in the parts of another one; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    other = as_dtensor(like)
    return distribute_tensor(x, other.device_mesh, other.placements, src_data_rank=None)


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that all processes have whole, in parts if another one is in parts."""
    return cut_as(x, like) if is_sharded(like) and not is_sharded(x) else x


def in_one_piece(x: Tensor) -> Tensor:
    """Return a tensor itself, or put together; all processes that have parts of it take part."""
    return as_dtensor(x.detach()).full_tensor() if is_sharded(x) else x


def cut_with_gradients(pieces: list[Tensor | None], cut: Cut, summed: list[int]) -> list[Tensor]:
    """Return parts of left, scale and right factors, and of lengths of rows and of columns.

    Parameters
    ----------
    pieces : list of Tensor or None
        Those five, whole, equal in all processes.
    cut : Cut
    summed : list of int
        The axes of the mesh over which gradients are summed.
    """
    return list(_Parts.apply(cut, tuple(summed), *pieces))  # pyright: ignore[reportReturnType]


def _places(cut: Cut) -> list[tuple[Any, ...]]:
    """Return where a part is in each of left, scale, right, and lengths of rows and columns."""
    return [
        (cut.rows,), (), (cut.columns,), (slice(None), cut.rows), (slice(None), cut.columns)
    ]  # fmt: skip


class _Parts(torch.autograd.Function):
    """The parts; backwards, their gradients summed over processes in one call for each axis."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        cut: Cut,
        summed: tuple[int, ...],
        *whole: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.cut, ctx.summed = cut, summed
        ctx.like = [None if x is None else (x.shape, x.dtype, x.device) for x in whole]
        places = zip(whole, _places(cut), strict=True)
        return tuple(None if x is None else x[place].clone() for x, place in places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = [i for i, like in enumerate(ctx.like) if like and ctx.needs_input_grad[i + 2]]
        whole: list[Tensor | None] = [None] * len(ctx.like)
        for i in wanted:
            shape, dtype, device = ctx.like[i]
            whole[i] = torch.zeros(shape, dtype=dtype, device=device)
            gradient = gradients[i]
            if gradient is not None:
                whole[i][_places(ctx.cut)[i]] = gradient  # pyright: ignore[reportOptionalSubscript]
        sum_over([x for x in whole if x is not None], ctx.cut.mesh, ctx.summed)
        return None, None, *whole


def sum_over(tensors: list[Tensor], mesh: DeviceMesh, axes: tuple[int, ...]) -> None:
    """Sum tensors over axes of a mesh, in place: one call for each axis and dtype."""
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        group = [x for x in tensors if x.dtype is dtype]
        flat = torch.cat([x.flatten() for x in group])
        for axis in axes:
            dist.all_reduce(flat, group=mesh.get_group(axis))
        for x, total in zip(group, flat.split([x.numel() for x in group]), strict=True):
            x.copy_(total.view_as(x))


def everywhere(flag: bool, weight: Tensor) -> bool:
    """Whether something is true in all processes that have a part of a weight."""
    mesh = as_dtensor(weight).device_mesh
    found = torch.tensor(int(flag), device=as_dtensor(weight).to_local().device)
    for axis in range(mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MIN, group=mesh.get_group(axis))
    return bool(found)


@torch.no_grad()
def made_equal(tensors: list[Tensor], weight: Tensor) -> None:
    """Give tensors the numbers of the first process of those that have parts of a weight."""
    mesh = as_dtensor(weight).device_mesh
    for x in (x for x in tensors if not x.is_meta):
        for axis in range(mesh.ndim):
            group = mesh.get_group(axis)
            dist.broadcast(x.data, dist.get_global_rank(group, 0), group=group)


def _gathered(own: Tensor, mesh: DeviceMesh, axis: int) -> list[Tensor]:
    """Return the parts of all processes along an axis, in order; they may differ in size."""
    group, count = mesh.get_group(axis), mesh.size(axis)
    sizes = [torch.zeros((), dtype=torch.int64, device=own.device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor(own.shape[1], device=own.device), group=group)
    most = max(int(n) for n in sizes)
    padded = own.new_zeros(own.shape[0], most)
    padded[:, : own.shape[1]] = own
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded, group=group)
    return [part[:, : int(n)] for part, n in zip(parts, sizes, strict=True)]


def _length(parts: list[Tensor]) -> Tensor:
    return lp_norm(torch.stack(parts, dim=-1), 2)
