"""The updates that adapters have for weights: one walk over an adapted model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_opt.nn.adapters.change import Magnitude, not_low_rank
from lowrank_opt.nn.adapters.part import Part
from lowrank_opt.nn.adapters.slots import WeightSlot, every_slot
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Offset, Parameterization


@dataclass(frozen=True)
class AdaptedWeight:
    """The update that one adapter has for one weight.

    Attributes
    ----------
    slot : WeightSlot
    adapter : str
    updates : sequence of Parameterization
        One for each matrix of the weight; shared between weights that are tied.
    settled : sequence of Frozen
        What is added to each of them and not trained any more: earlier links of a chain, earlier
        rounds; empty if there is nothing.
    magnitude : (side, lengths), optional
        The lengths that the adapter gives to the rows, or columns, of the weight plus its update.
    """

    slot: WeightSlot
    adapter: str
    updates: Sequence[Parameterization]
    settled: Sequence[Frozen] = ()
    magnitude: Magnitude | None = None

    @property
    def name(self) -> str:
        """The dotted name of the weight."""
        return self.slot.name

    @property
    def matrix_names(self) -> list[str]:
        """The names of its matrices: ``/0``, ``/1``, ... are added where there are several."""
        count = len(self.updates)
        return [f"{self.name}/{i}" for i in range(count)] if count > 1 else [self.name]

    def totals(self) -> list[Parameterization]:
        """Return the whole change of each matrix, settled part and all.

        Raises
        ------
        TargetError
            If it is not of low rank, for the adapter has magnitudes.
        """
        if self.magnitude is not None:
            raise not_low_rank(self.name)
        return self.totals_before_rescaling()

    def totals_before_rescaling(self) -> list[Parameterization]:
        """Return the whole update of each matrix, before its rows get the lengths of magnitudes."""
        if not self.settled:
            return list(self.updates)
        return [
            Offset(update, minus_initial=False, offset=-1.0 * fixed().to(dtype=update().dtype))
            for update, fixed in zip(self.updates, self.settled, strict=True)
        ]

    def base_matrices(self) -> Tensor:
        """Return the base weight as a stack of its matrices, detached."""
        return self.slot.parameter.detach().reshape(len(self.updates), *self.updates[0].shape)


def adapted_weights(
    model: nn.Module, names: Collection[str] | None = None, *, tied: bool = True
) -> list[AdaptedWeight]:
    """Return the updates of all weights by all adapters: the one walk over an adapted model.

    Parameters
    ----------
    model : nn.Module
        Adapted or not; perhaps inside ``torch.compile``, DistributedDataParallel or a wrapper of
        activation checkpoints, which add nothing to names.
    names : collection of str, optional
        Of adapters; all by default.
    tied : bool
        Whether weights that share an update each occur; otherwise the first of them.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Sequential(nn.Linear(4, 2)), lambda s: Factored(s, 1), targets="0")
    >>> [(found.name, found.adapter, found.updates) for found in adapted_weights(model)]
    [('0.weight', 'default', [Factored(shape=(2, 4), rank=1, scaling=1.0)])]
    """
    found: list[AdaptedWeight] = []
    seen: set[int] = set()
    for slot in every_slot(model):
        for adapter, part in () if slot.store is None else slot.store.parts().items():
            if names is not None and adapter not in names:
                continue
            for weight, updates in part.updates.items():
                if tied or id(updates[0]) not in seen:
                    settled = part.settled.get(weight, ())
                    at, magnitude = WeightSlot(slot, weight), part.magnitude(weight)
                    found.append(AdaptedWeight(at, adapter, updates, settled, magnitude))
                seen.add(id(updates[0]))
    return found


def dropout_of(model: nn.Module, adapter: str) -> float:
    """Return the dropout of an adapter, the same in all of its modules."""
    stores = [slot.store for slot in every_slot(model)]
    parts = [None if store is None else store.part(adapter) for store in stores]
    return max((part.dropout for part in parts if part is not None), default=0.0)


@torch.no_grad()
def settle(model: nn.Module, found: AdaptedWeight, ops: Sequence[LowRankOperator | None]) -> None:
    """Add matrices to the settled part of an update, wherever its weight is tied.

    More columns than a matrix can need are merged; the base weight stays as it is.
    """
    made = [
        _added(update, found.settled[i]() if found.settled else None, op)
        for i, (update, op) in enumerate(zip(found.updates, ops, strict=True))
    ]
    for i, (part, weight) in enumerate(_everywhere(model, found)):
        part.settle(weight, made, linked=i > 0)


def unsettle(model: nn.Module, found: AdaptedWeight) -> None:
    """Forget the settled part of an update."""
    for part, weight in _everywhere(model, found):
        part.settle(weight, (), linked=False)


def _everywhere(model: nn.Module, found: AdaptedWeight) -> list[tuple[Part, str]]:
    parts: list[tuple[Part, str]] = []
    for other in adapted_weights(model, {found.adapter}):
        store = other.slot.layer.store
        part = None if store is None else store.part(found.adapter)
        if part is not None and other.updates[0] is found.updates[0]:
            parts.append((part, other.slot.weight))
    return parts


def _added(
    update: Parameterization, fixed: LowRankOperator | None, op: LowRankOperator | None
) -> Frozen:
    terms = [x.to(dtype=update().dtype) for x in (fixed, op) if x is not None]
    zero = update().detach().truncate(1) * 0.0
    total = sum(terms[1:], start=terms[0]) if terms else zero
    most = min(total.shape)
    return Frozen(total.truncate(most) if total.rank > most else total)
