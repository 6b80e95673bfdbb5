"""Members of one kind evaluated in one stacked call, each as if it had been evaluated alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.func import vmap

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.source import Source

Gradients: TypeAlias = list[Tensor | None]
_PARTS = ("left", "scale", "right")


@dataclass
class Graph:
    """A stacked evaluation that autograd recorded: its results, and copies of its arguments."""

    tensors: dict[str, Tensor]
    op: LowRankOperator

    @property
    def trained(self) -> list[str]:
        """The names of the arguments that have gradients."""
        return [name for name, x in self.tensors.items() if x.requires_grad]

    def differentiated(self) -> list[int]:
        """Return which of left, scale and right have gradients."""
        return [i for i, x in enumerate(self.op) if x.requires_grad]


def evaluate_together(
    members: Sequence[Parameterization],
) -> tuple[list[LowRankOperator], list[dict[int, Tensor]]]:
    """Return the factors of members of one layout, from one stacked evaluation.

    Differentiable as those of `factors` are: a member whose factors are not used gets no gradient
    (None, not zero); backward passes through some members leave those through others possible;
    second derivatives are there. Values and gradients equal those of single members to rounding.

    Parameters
    ----------
    members : sequence of Parameterization
        Which differ in nothing but their numbers, with parameters that are leaves, of which the
        same are trained.

    Returns
    -------
    list of LowRankOperator
    list of dict of int to Tensor
        For each member the copies of its tensors that were used, by the identity of a tensor.

    Raises
    ------
    RuntimeError
        From `torch.func.vmap`, if the map branches on numbers or draws them; or if it writes into
        its module. The members are then as they were.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> members = [NBLoRA((6, 4), 2) for _ in range(3)]
    >>> ops, _ = evaluate_together(members)
    >>> ops[0].left.sum().backward()
    >>> [member.left_rows.grad is None for member in members]
    [False, True, True]
    """
    own = [_tensors_of(member) for member in members]
    shared = {name for name in own[0] if _is_shared(own, name)}
    tensors = _stacked(own)
    source = Source.of(members[0], own[0].values())
    graph = _record(source, tensors, shared)
    inputs = [x for name in graph.trained for x in _columns(own, name)]
    flat: tuple[Tensor, ...] = _AsAlone.apply(graph, source, own, *inputs)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
    count = len(members)
    parts = [flat[i * count : (i + 1) * count] for i in range(len(_PARTS))]
    ops = [LowRankOperator(*triple) for triple in zip(*parts, strict=True)]
    copies = {k: [x] * count if k in shared else x.detach().unbind() for k, x in tensors.items()}
    return ops, [{id(x): copies[k][i] for k, x in of.items()} for i, of in enumerate(own)]


def _tensors_of(member: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, each once; faster than torch's own walk."""
    found: dict[int, tuple[str, Tensor]] = {}
    _find(member, "", found)
    return dict(found.values())


def _find(module: nn.Module, prefix: str, found: dict[int, tuple[str, Tensor]]) -> None:
    for kept in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
        for name, x in kept.items():
            if x is not None:
                found.setdefault(id(x), (prefix + name, x))
    for name, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
        if part is not None:
            _find(part, f"{prefix}{name}.", found)


def _columns(own: Sequence[dict[str, Tensor]], name: str) -> list[Tensor]:
    """Return the tensors of that name: one for each member, or the one that all of them share."""
    return [own[0][name]] if _is_shared(own, name) else [tensors[name] for tensors in own]


def _is_shared(own: Sequence[dict[str, Tensor]], name: str) -> bool:
    return all(tensors[name] is own[0][name] for tensors in own)


@torch.no_grad()
def _stacked(own: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return copies of all numbers, which ask for gradients where the members do."""
    found: dict[str, Tensor] = {}
    for name, first in own[0].items():
        columns = _columns(own, name)
        copied = first.clone() if len(columns) == 1 else torch.stack(columns)
        found[name] = copied.detach().requires_grad_(first.requires_grad)
    return found


def _record(source: Source, tensors: dict[str, Tensor], shared: Collection[str]) -> Graph:
    axes = {name: None if name in shared else 0 for name in tensors}
    versions = [x._version for x in tensors.values()]
    with torch.enable_grad():
        op = LowRankOperator(*vmap(source.evaluate, in_dims=(axes,))(tensors))
    if versions != [x._version for x in tensors.values()]:
        raise RuntimeError("a parameterization writes into its tensors")
    return Graph(tensors, op)


class _Context(FunctionCtx):
    graph: Graph
    source: Source
    own: Sequence[dict[str, Tensor]]
    versions: list[int]
    tensors: dict[str, Tensor]
    saved_tensors: tuple[Any, ...]


class _AsAlone(torch.autograd.Function):
    """Connects the factors of each member with its own parameters."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context,
        graph: Graph,
        source: Source,
        own: Sequence[dict[str, Tensor]],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.source, ctx.own = source, own
        ctx.versions = [x._version for x in inputs]
        ctx.tensors = graph.tensors
        ctx.set_materialize_grads(False)
        # Saved as a tensor is: released after a backward pass, unless the graph is to be kept.
        marker = inputs[0].new_empty(0)
        marker.graph = graph  # pyright: ignore[reportAttributeAccessIssue]
        ctx.save_for_backward(marker)
        parts = [x.detach().unbind() for x in graph.op]
        have = graph.differentiated()
        constant = [x for i, part in enumerate(parts) if i not in have for x in part]
        ctx.mark_non_differentiable(*constant)
        return tuple(x for part in parts for x in part)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(ctx.own)
        parts = [list(gradients[i * count : (i + 1) * count]) for i in range(len(_PARTS))]
        if torch.is_grad_enabled():
            return None, None, None, *_one_by_one(ctx, parts)
        return None, None, None, *_at_once(_graph_of(ctx), ctx.own, parts)


def _graph_of(ctx: _Context) -> Graph:
    """Return what was recorded; again, if a backward pass through other members released it."""
    try:
        (marker,) = ctx.saved_tensors
    except RuntimeError:
        shared = {name for name in ctx.tensors if _is_shared(ctx.own, name)}
        with ctx.source.casting():
            return _record(ctx.source, ctx.tensors, shared)
    return marker.graph


def _at_once(
    graph: Graph, own: Sequence[dict[str, Tensor]], parts: Sequence[Gradients]
) -> list[Tensor | None]:
    triple = tuple(graph.op)
    have = [i for i in graph.differentiated() if any(x is not None for x in parts[i])]
    used = [any(part[k] is not None for part in parts) for k in range(len(own))]
    found = torch.autograd.grad(
        [triple[i] for i in have],
        [graph.tensors[name] for name in graph.trained],
        [_filled(parts[i], triple[i]) for i in have],
        retain_graph=True,
        allow_unused=True,
    )
    result: list[Tensor | None] = []
    for name, x in zip(graph.trained, found, strict=True):
        if _is_shared(own, name):
            result.append(x)
        elif x is None:
            result += [None] * len(own)
        else:
            # Each in memory of its own: what is kept, freed or saved of one leaves the others.
            result += [g.clone() if hit else None for g, hit in zip(x.unbind(), used, strict=True)]
    return result


def _filled(gradients: Gradients, like: Tensor) -> Tensor:
    """Return gradients stacked, zero where nothing arrived."""
    if all(x is not None for x in gradients):
        return torch.stack([x for x in gradients if x is not None])
    zero = like.new_zeros(like.shape[1:])
    return torch.stack([zero if x is None else x for x in gradients])


def _one_by_one(ctx: _Context, parts: Sequence[Gradients]) -> list[Tensor | None]:
    """Return gradients that can be differentiated again, by the members' own evaluation."""
    trained = [name for name, x in ctx.tensors.items() if x.requires_grad]
    inputs = [x for name in trained for x in _columns(ctx.own, name)]
    if ctx.versions != [x._version for x in inputs]:
        raise RuntimeError(
            "a parameter of an adapter was modified by an inplace operation between the forward "
            "pass and a backward pass with create_graph=True: call backward() first"
        )
    found: dict[str, list[Tensor | None]] = {name: [] for name in trained}
    for k, own in enumerate(ctx.own):
        arrived = [part[k] for part in parts]
        gradients: list[Tensor | None] = [None] * len(trained)
        if any(x is not None for x in arrived):
            gradients = _of_member(ctx.source, own, trained, arrived)
        for name, x in zip(trained, gradients, strict=True):
            found[name].append(x)
    return [
        x
        for name in trained
        for x in (_sum(found[name]) if _is_shared(ctx.own, name) else found[name])
    ]


def _of_member(
    source: Source, own: dict[str, Tensor], trained: list[str], arrived: Gradients
) -> list[Tensor | None]:
    # What was frozen since asked for gradients in the forward pass.
    woken = {k: own[k] for k in trained if not own[k].requires_grad}
    own = own | {k: x.detach().requires_grad_() for k, x in woken.items()}
    with source.casting():
        op = source.evaluate(own)
    pairs = [(x, g) for x, g in zip(op, arrived, strict=True) if g is not None and x.requires_grad]
    return list(
        torch.autograd.grad(
            [x for x, _ in pairs],
            [own[name] for name in trained],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )


def _sum(gradients: Gradients) -> list[Tensor | None]:
    given = [x for x in gradients if x is not None]
    return [torch.stack(given).sum(0) if given else None]
