"""Many parameterizations of one kind evaluated as one stacked computation."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.config import describe

# What a module has because it is one; `training` is a fact that may matter.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
# Stacks hold about this many numbers, which fit in the cache of a processor.
_AT_ONCE = 1 << 18


class BatchedParameterization(nn.Module):
    """Evaluate members of equal kind and shape together: one batched solve instead of many.

    The members keep their own parameters (optimizers, state dicts and `assign` work on them as
    before); only the evaluation is stacked. Results and gradients equal those of the members to
    rounding.

    Parameters
    ----------
    members : sequence of Parameterization
        At least one; the same class, shape, rank, options, dtype and device.

    Raises
    ------
    ShapeError
        If members differ.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> layers = [NBLoRA((6, 4), 2, radius=1.0) for _ in range(3)]
    >>> batch = BatchedParameterization(layers)
    >>> batch().left.shape
    torch.Size([3, 6, 2])
    """

    def __init__(self, members: Sequence[Parameterization]) -> None:
        super().__init__()
        _check_alike(members)
        self.members: nn.ModuleList = nn.ModuleList(members)
        # Out of the module tree: the template gives the computation, never a parameter.
        self._template = (copy.deepcopy(members[0]).to("meta"),)

    def factors(self) -> LowRankOperator:
        """Return one operator whose factors carry a leading axis over the members."""
        return vmap(self._evaluate)(_stacked(self.members))

    def forward(self) -> LowRankOperator:
        """Return `factors`."""
        return self.factors()

    def unstack(self) -> list[LowRankOperator]:
        """Return one operator for each member, from one stacked evaluation."""
        triples = zip(*(x.unbind() for x in self.factors()), strict=True)
        return [LowRankOperator(*triple) for triple in triples]

    def _evaluate(self, tensors: dict[str, Tensor]) -> LowRankOperator:
        # As a plain triple: operators that multiply in a way of their own are no trees of tensors.
        op: LowRankOperator = functional_call(self._template[0], tensors, ())
        return LowRankOperator(op.left, op.scale, op.right)


def _stacked(members: nn.ModuleList) -> dict[str, Tensor]:
    tensors = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in members]
    return {name: torch.stack([t[name] for t in tensors]) for name in tensors[0]}


def stacks(
    members: Sequence[Parameterization],
) -> Iterator[tuple[list[int], LowRankOperator]]:
    """Yield positions of members, and their factors with a leading axis over them.

    Members that differ in nothing but their numbers are evaluated together, 2^18 numbers at
    a time; others, and those that cannot be, for what they compute depends on the numbers, one by
    one. Every position comes once. Factors equal those of the members to rounding.

    Parameters
    ----------
    members : sequence of Parameterization
        Of any kinds and shapes.

    Examples
    --------
    >>> from lowrank_opt import DeLoRA, NBLoRA
    >>> members = [NBLoRA((6, 4), 2), DeLoRA((6, 4), 2, radius=1.0), NBLoRA((6, 4), 2)]
    >>> [(positions, tuple(op.left.shape)) for positions, op in stacks(members)]
    [([0, 2], (2, 6, 2)), ([1], (1, 6, 2))]
    """
    groups: dict[Hashable, list[int]] = {}
    for i, member in enumerate(members):
        layout = _layout(member)
        groups.setdefault(i if layout is None else layout, []).append(i)
    for group in groups.values():
        count = max(1, _AT_ONCE // _numbers(members[group[0]]))
        for start in range(0, len(group), count):
            yield from _stacks_of_alike(members, group[start : start + count])


def _stacks_of_alike(
    members: Sequence[Parameterization], chosen: list[int]
) -> Iterator[tuple[list[int], LowRankOperator]]:
    if len(chosen) > 1:
        try:
            op = BatchedParameterization([members[i] for i in chosen]).factors()
        except RuntimeError:
            # Branches on numbers, or draws of them, are not batched: `vmap` says so.
            pass
        else:
            yield chosen, op
            return
    for i in chosen:
        op = members[i].factors()
        yield [i], LowRankOperator(*(x.unsqueeze(0) for x in (op.left, op.scale, op.right)))


def _numbers(member: Parameterization) -> int:
    """Return how many numbers the evaluation of a member is about."""
    state = sum(x.numel() for x in (*member.parameters(), *member.buffers()))
    return max(1, state, sum(member.shape) * member.rank)


def _layout(module: nn.Module) -> Hashable:
    """Return what two modules share that compute the same of their tensors; None if unknown."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return None
    facts = tuple(pair for pair in own.items() if pair[0] not in _OF_EVERY_MODULE)
    tensors: list[Hashable] = []
    for kind in ("_parameters", "_buffers"):
        for name, x in own[kind].items():
            if x is None:
                tensors.append((name, None))
                continue
            if type(x) not in (Tensor, nn.Parameter) or x.is_meta or x.layout != torch.strided:
                return None
            tensors.append((name, x.shape, x.dtype, x.device))
    parts: list[Hashable] = []
    for name, part in own["_modules"].items():
        layout = None if part is None else _layout(part)
        if part is not None and layout is None:
            return None
        parts.append((name, layout))
    key = (type(module), facts, tuple(tensors), tuple(parts))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _check_alike(members: Sequence[Parameterization]) -> None:
    if not members:
        raise ShapeError("a batch needs at least one parameterization; got none")
    layouts = {_layout(member) for member in members}
    if len(layouts) == 1 and None not in layouts:
        return
    kinds = {_kind(member) for member in members}
    if len(kinds) > 1:
        raise ShapeError(
            f"members of a batch must be equal but for their parameters; got {sorted(kinds)}: "
            "make one batch for each kind"
        )


def _kind(member: Parameterization) -> str:
    """Return everything that a stacked evaluation must not mix."""
    tensors = member.state_dict(keep_vars=True)
    layout = {k: (tuple(t.shape), str(t.dtype), str(t.device)) for k, t in tensors.items()}
    return f"{describe(member)} {layout}"
