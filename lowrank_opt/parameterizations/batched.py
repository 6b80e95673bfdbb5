"""Many parameterizations of one kind evaluated as one stacked computation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.config import describe


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


def _check_alike(members: Sequence[Parameterization]) -> None:
    if not members:
        raise ShapeError("a batch needs at least one parameterization; got none")
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
