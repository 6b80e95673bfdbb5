"""The parameterization that takes an update of a PEFT checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.errors import NotInSetError, OptionError
from lowrank_opt.nn.adapters.slots import (
    WeightSlot,
)
from lowrank_opt.nn.interop.peft_adapter import PeftSite
from lowrank_opt.nn.interop.peft_layers import in_model
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import AdaLoRA, DeLoRA, Factored, Parameterization


def imported(
    held: PeftSite, slot: WeightSlot, make: Make | None, project: bool
) -> Parameterization:
    """Return what `make` gives, assigned the update; by default PEFT's own method, loaded."""
    op, weight = in_model(slot.layer.module, held.operator()), slot.parameter
    like = torch.empty(
        0,
        dtype=torch.promote_types(weight.dtype, torch.float32),
        device="cpu" if weight.is_meta else weight.device,
    )
    if make is None:
        return _as_in_file(held, slot, op).to(like)
    return assigned(made_for(make, op, slot, held.name), op, project, held.name)


def made_for(make: Make, op: LowRankOperator, slot: WeightSlot, name: str) -> Parameterization:
    """Return what `make` gives for an update, in the dtype and on the device of the weight."""
    made, weight = make(op.shape), slot.parameter
    if not isinstance(made, Parameterization) or made.shape != op.shape:
        raise OptionError(
            f"make({op.shape}) must return a Parameterization of that shape; got "
            f"{made!r} for {name}"
        )
    device = "cpu" if weight.is_meta else weight.device
    return made.to(device, torch.promote_types(weight.dtype, torch.float32))


def assigned(
    member: Parameterization, op: LowRankOperator, project: bool, name: str
) -> Parameterization:
    """Return the parameterization with the update, which errors call by the layer's name."""
    try:
        return member.assign(op.to(device=next(member.parameters()).device), project=project)
    except NotInSetError as error:
        raise NotInSetError(f"{name}: {error}", excess=error.excess) from error


def _as_in_file(held: PeftSite, slot: WeightSlot, op: LowRankOperator) -> Parameterization:
    """Return the parameterization of PEFT's method, with the tensors of the file if they fit."""
    rank, dtype = held.rank, torch.promote_types(slot.parameter.dtype, torch.float32)
    fits = 1 <= rank <= min(op.shape)
    if held.method == "DELORA" and fits and bool((held.tensors["w_norm"] > 0).all()):
        return _delora(held, op.shape, dtype)
    if held.method == "ADALORA" and fits and held.scaling > 0:
        member = AdaLoRA(op.shape, rank, scaling=held.scaling, dtype=dtype)
        return _loaded(member, op, held.tensors["E"].flatten())
    if held.method == "LORA" and fits and held.scaling > 0:
        return _loaded(Factored(op.shape, rank, scaling=held.scaling, dtype=dtype), op)
    # What the method cannot express here: its product, in as many terms as a weight can have.
    member = Factored(op.shape, max(1, min(rank, *op.shape)), dtype=dtype)
    return member if rank == 0 else member.assign(op)


@torch.no_grad()
def _loaded(
    member: Factored | AdaLoRA, op: LowRankOperator, values: Tensor | None = None
) -> Parameterization:
    member.left.copy_(op.left)
    member.right.copy_(op.right)
    if isinstance(member, AdaLoRA) and values is not None:
        member.values.copy_(values)
    return member


@torch.no_grad()
def _delora(held: PeftSite, shape: tuple[int, int], dtype: torch.dtype) -> DeLoRA:
    strength = float(held.tensors["lambda"])
    member = DeLoRA(
        shape,
        held.rank,
        radius=abs(strength) or 1.0,
        column_norms=held.tensors["w_norm"],
        variant="peft",
        dtype=dtype,
    )
    # A strength may have been trained below zero, and a norm cannot be.
    sign = float(strength > 0) - float(strength < 0)
    member.left.copy_(sign * held.tensors["B"])
    member.right.copy_(held.tensors["A"].mT)
    return member
