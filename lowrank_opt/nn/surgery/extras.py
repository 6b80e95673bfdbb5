"""What an adapter may have besides updates of low rank: magnitudes, dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn.adapters.change import Magnitude, fits, norms_of_sum
from lowrank_opt.nn.adapters.slots import WeightSlot
from lowrank_opt.nn.basis.kinds import Side, kind_of, original_type
from lowrank_opt.nn.surgery.install import Updates


def check_extras(
    groups: Sequence[Sequence[WeightSlot]], *, magnitude: bool, dropout: float
) -> None:
    """Raise unless weights, in groups that are tied, can have magnitudes or dropout.

    Raises
    ------
    OptionError, TargetError
        See `adapt`.
    """
    if isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise OptionError(f"dropout must be a probability in [0, 1); got dropout={dropout!r}")
    for group in groups:
        side = outputs_of(group[0]) if magnitude else None
        if magnitude and side is None:
            raise OptionError(
                "magnitudes are lengths of what leads to one output; got "
                f"{_called(group[0])}, whose outputs are no side of its matrix: exclude it"
            )
        if magnitude and group[0].parameter.is_meta:
            raise TargetError(
                f"magnitudes start at the lengths of the weight; {group[0].name} is on the meta "
                "device: load the base weights first"
            )
        wrong = [slot for slot in group if not fits(kind_of(slot.layer.module), side)]
        if dropout and wrong:
            raise OptionError(
                f"dropout is of the input of an update; got {_called(wrong[0])}, which is called "
                "with dense weights: exclude it, or pass dropout=0"
            )


def outputs_of(slot: WeightSlot) -> Side | None:
    """Return where in the matrices of a weight the outputs of its layer are."""
    return kind_of(slot.layer.module).outputs


@torch.no_grad()
def first_magnitudes(updates: Updates) -> dict[str, Magnitude]:
    """Return the lengths that weights have with their updates as they are now, by names."""
    made: dict[int, Magnitude] = {}
    for slot, members in updates:
        if id(members[0]) not in made:
            side = outputs_of(slot)
            assert side is not None, "checked before"
            norms = norms_of_sum([x.factors() for x in members], slot.parameter, side)
            made[id(members[0])] = magnitude_of(slot, side, norms)
    return {slot.name: made[id(members[0])] for slot, members in updates}


def magnitude_of(slot: WeightSlot, side: Side, lengths: Tensor) -> Magnitude:
    """Return trainable magnitudes in the precision and on the device of updates of a weight."""
    weight = slot.parameter
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = "cpu" if weight.is_meta else weight.device
    return Magnitude(side, nn.Parameter(lengths.detach().to(device, dtype, copy=True)))


def _called(slot: WeightSlot) -> str:
    return f"{slot.name} of a {original_type(slot.layer.module).__name__}"
