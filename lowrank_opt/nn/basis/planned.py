"""Layers under a plan of tensor parallelism: what an update adds to one process's part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_opt.nn.basis.cut import Cut, as_dtensor, cut_with_gradients, in_one_piece, in_place_of
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.kinds import LayerKind
from lowrank_opt.nn.basis.originals import original_type
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.operator import LowRankOperator


def settled(y: Tensor) -> Tensor:
    """Return the output of a layer as what can be added to: rows of cut words are put together.

    What an embedding leaves in a process remembers which rows are its own, and can be read once.
    """
    if not is_sharded(y) or not any(_is_masked(p) for p in as_dtensor(y).placements):
        return y
    from torch.distributed.tensor import Replicate

    placements = as_dtensor(y).placements
    return as_dtensor(y).redistribute(
        None, [Replicate() if _is_masked(p) else p for p in placements]
    )


def _is_masked(placement: Any) -> bool:  # noqa: ANN401
    return placement.is_partial() and "Mask" in type(placement).__name__


def added_in_parts(
    kind: LayerKind,
    layer: nn.Module,
    op: LowRankOperator,
    lengths: Tensor | None,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Return what a change of a weight that is cut adds to the layer's output, cut as that is.

    Nothing is sent for it forwards, beyond what the layer's own output needs to be put together:
    where the weight's inputs are cut, both are terms of one sum over the processes. The exception
    is an embedding whose words are cut, to which each process adds the whole update.

    Parameters
    ----------
    kind : LayerKind
        Has an `update`.
    layer : nn.Module
    op : LowRankOperator
        The change, whole.
    lengths : Tensor, shape (outputs,), optional
        What is added to the lengths of all that leads to one output.
    x, y : DTensor
        Input and output of the layer.
    """
    weight = layer._parameters[kind.weights(layer)[0]]  # pyright: ignore[reportPrivateUsage]
    assert weight is not None, "what is adapted exists"
    outputs = kind.outputs or "rows"
    inputs = "columns" if outputs == "rows" else "rows"
    cut = Cut.of(weight)
    whole_inputs = not x.is_floating_point()
    if whole_inputs:
        cut = cut.without(inputs)
    x, wanted, target = _placed(cut, outputs, x, y)
    summed = [i for i, p in enumerate(wanted) if cut.sides[i] is not None or not p.is_replicate()]
    scaled = [None, lengths] if outputs == "columns" else [lengths, None]
    pieces = [op.left, op.scale, op.right, *(None if s is None else s.unsqueeze(0) for s in scaled)]
    left, scale, right, rows, columns = cut_with_gradients(pieces, cut, summed)
    own = as_dtensor(x).to_local(grad_placements=_of_gradients(cut, outputs, wanted))
    assert kind.update is not None, "others are called with dense weights"
    total = kind.update(layer, LowRankOperator(left, scale, right), own, y)
    if lengths is not None:
        assert kind.rescale is not None, "others are called with dense weights"
        mine = columns if outputs == "columns" else rows
        if as_dtensor(y).placements != target:
            y = as_dtensor(y).redistribute(None, target)
        total = total + kind.rescale(_local(layer, target), mine[0], own, _local_output(y))
    return in_place_of(total.to(y.dtype), y, target)


def _placed(
    cut: Cut, outputs: str, x: Tensor, y: Tensor
) -> tuple[Tensor, list[Any], tuple[Any, ...]]:
    """Return the input laid out as parts of the weight need it; its layout, and the output's."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    wanted: list[Any] = []
    target: list[Any] = []
    last = x.ndim - 1 if x.is_floating_point() else x.ndim
    for side, now in zip(cut.sides, as_dtensor(x).placements, strict=True):
        if side is None:
            # Samples, or words of a sequence, may be apart.
            kept = now if now.is_shard() and now.dim != last else Replicate()  # pyright: ignore[reportAttributeAccessIssue]
            wanted.append(kept)
            target.append(kept)
            continue
        wanted.append(Replicate() if side == outputs else Shard(last))
        target.append(Shard(y.ndim - 1) if side == outputs else Partial())
    if tuple(wanted) != tuple(as_dtensor(x).placements):
        x = as_dtensor(x).redistribute(None, wanted)
    return x, wanted, tuple(target)


def _of_gradients(cut: Cut, outputs: str, wanted: Sequence[Any]) -> list[Any]:
    """Return the layout of the gradient of an input: a sum over processes that have outputs."""
    from torch.distributed.tensor import Partial

    return [Partial() if s == outputs else p for s, p in zip(cut.sides, wanted, strict=True)]


def _local_output(y: Tensor) -> Tensor:
    from torch.distributed.tensor import Replicate

    placements = as_dtensor(y).placements
    whole = [Replicate() if p.is_partial() else p for p in placements]
    return as_dtensor(y).to_local(grad_placements=whole)


def _local(layer: nn.Module, target: Iterable[Any]) -> nn.Module:
    """Return a layer of the same class with this process's part of what is added to its output."""
    from torch.distributed.tensor import Partial

    sums = [i for i, p in enumerate(target) if p.is_partial()]
    own: dict[str, Tensor | None] = {}
    for key in layer._parameters:  # pyright: ignore[reportPrivateUsage]
        x = getattr(layer, key)
        if x is not None and is_sharded(x) and x.ndim == 1:
            mesh = x.device_mesh
            first = all(mesh.get_local_rank(i) == 0 for i in sums)
            gradients = [Partial() if i in sums else p for i, p in enumerate(x.placements)]
            x = x.to_local(grad_placements=gradients) * float(first)
        own[key] = x
    twin = object.__new__(original_type(layer))
    object.__setattr__(twin, "__dict__", {**layer.__dict__, "_parameters": own})
    return twin


def check_can_be_cut(
    name: str, updates: Sequence[nn.Module], weight: Tensor, dropout: float
) -> None:
    """Raise AdapterStateError if what an adapter has for a weight needs the weight whole.

    Parameters
    ----------
    name : str
        Of the weight.
    updates : sequence of Parameterization
    weight : Tensor
        In one piece.
    dropout : float
    """
    holding = [x for x in updates if any(_holds(kept, weight) for kept in x.buffers())]
    if holding:
        raise AdapterStateError(
            "under a plan of tensor parallelism no process has a whole weight; got "
            f"{type(holding[0]).__name__} for a {name!r} of shape {tuple(weight.shape)}, which "
            "keeps it to compute with: adapt such layers after the plan, if that leaves them "
            "whole, or choose another parameterization"
        )
    if dropout:
        raise AdapterStateError(
            "under a plan of tensor parallelism each process would draw a dropout of its own; got "
            f"dropout={dropout} for a {name!r}: adapt with dropout=0.0"
        )


def check_is_matrix(name: str, weight: Tensor) -> None:
    """Raise AdapterStateError if a weight that is cut has more axes than two."""
    if weight.ndim > 2 and any(p.is_shard() for p in as_dtensor(weight).placements):
        raise AdapterStateError(
            "a plan of tensor parallelism may cut adapted weights of two axes; got "
            f"{name!r} of shape {tuple(weight.shape)} in parts: replicate it, or leave it out"
        )


def _holds(x: Tensor, weight: Tensor) -> bool:
    if x.ndim < 2 or x.numel() != weight.numel() or x.is_meta or weight.is_meta:
        return False
    return torch.equal(x.detach().flatten(), in_one_piece(weight).to(x.dtype).flatten())
