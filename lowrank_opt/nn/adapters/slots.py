"""Where things are in a model: modules and weights under their authors' names, and one walk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lowrank_opt.nn.adapters.adapted import adapted_modules, store_of
from lowrank_opt.nn.adapters.kinds import kind_of, matrix_shapes, type_name
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.adapters.store import STORE, Part, Store, stored
from lowrank_opt.nn.errors import AdapterStateError
from lowrank_opt.nn.frozen import Frozen
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Offset, Parameterization

# What computes a weight is not itself a layer.
_OPAQUE = (Parameterization, ParametrizationList)

# Wrappers that add a name of theirs between a model and its modules, which is not the author's.
_TRANSPARENT = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.OffloadWrapper": (
        "_checkpoint_wrapped_module"
    ),
}


@dataclass
class LayerSlot:
    """A module of the model as its author named it.

    Attributes
    ----------
    name : str
        Its first name.
    module : nn.Module
    holders : list of (module, key)
        The modules that it is a part of, and under which key.
    opaque : bool
        Whether it is part of what computes a weight: a parametrization or a parameterization.
    """

    name: str
    module: nn.Module
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)
    opaque: bool = False

    @property
    def store(self) -> Store | None:
        """What adapters have in the module, or None."""
        return store_of(self.module)


@dataclass(frozen=True)
class WeightSlot:
    """One weight of one layer."""

    layer: LayerSlot
    weight: str

    @property
    def name(self) -> str:
        """The dotted name of the parameter."""
        return join(self.layer.name, self.weight)

    @property
    def parameter(self) -> nn.Parameter:
        """The base weight."""
        found = stored(self.layer.module, self.weight)
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes of its matrices."""
        return matrix_shapes(self.parameter, kind_of(self.layer.module))


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
    """

    slot: WeightSlot
    adapter: str
    updates: Sequence[Parameterization]
    settled: Sequence[Frozen] = ()

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
        """Return the whole update of each matrix, settled part and all."""
        if not self.settled:
            return list(self.updates)
        return [
            Offset(update, minus_initial=False, offset=-1.0 * fixed().to(dtype=update().dtype))
            for update, fixed in zip(self.updates, self.settled, strict=True)
        ]

    def base_matrices(self) -> Tensor:
        """Return the base weight as a stack of its matrices, detached."""
        return self.slot.parameter.detach().reshape(len(self.updates), *self.updates[0].shape)


def every_slot(model: nn.Module) -> list[LayerSlot]:
    """Return every module once, in order, without those of adapters; wrappers are transparent."""
    found: dict[int, LayerSlot] = {}

    def visit(
        module: nn.Module, name: str, holder: tuple[nn.Module, str] | None, *, opaque: bool
    ) -> None:
        hidden = opaque or isinstance(module, _OPAQUE)
        known = id(module) in found
        slot = found.setdefault(id(module), LayerSlot(name, module, opaque=hidden))
        if holder is not None:
            slot.holders.append(holder)
        if known:
            return
        inside = _inside(module)
        for key, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
            if part is not None and key != STORE:
                below = name if key == inside else join(name, key)
                visit(part, below, (module, key), opaque=hidden)

    visit(model, "", None, opaque=False)
    # A wrapper has the name of what it wraps, and no tensors.
    return [slot for slot in found.values() if _inside(slot.module) is None]


def layer_slots(model: nn.Module) -> list[LayerSlot]:
    """Return every module that is not part of what computes a weight."""
    return [slot for slot in every_slot(model) if not slot.opaque]


def _inside(module: nn.Module) -> str | None:
    for cls in type(module).__mro__:
        key = _TRANSPARENT.get(type_name(cls))
        if key is not None:
            return key
    return None


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
                    found.append(AdaptedWeight(WeightSlot(slot, weight), adapter, updates, settled))
                seen.add(id(updates[0]))
    return found


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


def record_of(model: nn.Module) -> Record:
    """Return the record of an adapted model.

    A part of an adapted model gets a record of its own, and parts that were adapted one by one get
    one together.

    Raises
    ------
    AdapterStateError
        If the model is not adapted; if it is a part of a model inside a block of `disabled` or
        `per_sample`, or has parts in different states.
    """
    found = dict(adapted_modules(model))
    if not found:
        raise AdapterStateError(
            f"the model must be adapted; got a {type(model).__name__} without adapters: "
            "call adapt(model, make, targets=...) first"
        )
    records = list({id(x.record): x.record for x in found.values()}.values())
    if len(records) == 1 and all(module in found for module in records[0].modules):
        return records[0]
    record = _joined(records)
    for module, store in found.items():
        store.record.modules.discard(module)
        store.record = record
        record.modules.add(module)
    return record


def _joined(records: Sequence[Record]) -> Record:
    states = [record.state for record in records]
    blocks = {(s.disabled, s.routings) for s in states}
    merged = {s.merged for s in states}
    if blocks != {(0, ())} or len(merged) > 1 or (len(states) > 1 and merged != {None}):
        raise AdapterStateError(
            "adapters of a part of a model change outside of disabled and per_sample blocks, and "
            "parts that were adapted apart must not be merged: act on the model that adapt was "
            "called with"
        )
    first = states[0]
    names = tuple(dict.fromkeys(name for s in states for name in s.names))
    active = dict(pair for s in states for pair in s.active)
    return Record(replace(first, names=names, active=tuple(active.items())))


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of the adapters of a model, in the order they came."""
    return list(record_of(model).state.names)


def active_adapters(model: nn.Module) -> dict[str, float]:
    """Return the adapters that count now, with their weights; of a merged model those in it.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> active_adapters(adapt(nn.Linear(4, 2), lambda s: Factored(s, 1), targets=".*"))
    {'default': 1.0}
    """
    return dict(record_of(model).state.chosen)


def check_known(model: nn.Module, names: Collection[str]) -> None:
    """Raise AdapterStateError unless the model has an adapter of each name."""
    known = adapter_names(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterStateError(f"adapters must exist; got {unknown}: the model has {known}")


def check_not_merged(model: nn.Module, action: str) -> None:
    """Raise AdapterStateError if the model is merged."""
    states = [store.record.state for _, store in adapted_modules(model)]
    merged = next((s.merged for s in states if s.merged is not None), None)
    if merged is not None:
        raise AdapterStateError(
            f"{action} needs a model that is not merged; it holds {[n for n, _ in merged]} "
            "merged: call unmerge(model) first"
        )


def check_not_routed(model: nn.Module, action: str) -> None:
    """Raise AdapterStateError inside a block of `per_sample`."""
    if any(store.record.state.routings for _, store in adapted_modules(model)):
        raise AdapterStateError(
            f"{action} needs a model outside of per_sample blocks: leave the block first"
        )


def join(*parts: str) -> str:
    """Join the nonempty parts of a dotted name."""
    return ".".join(part for part in parts if part)


def owners(slots: Sequence[LayerSlot]) -> dict[int, list[WeightSlot]]:
    """Return all places of each parameter, by its identity."""
    found: dict[int, list[WeightSlot]] = {}
    for slot in slots:
        for key, p in slot.module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if p is not None:
                found.setdefault(id(p), []).append(WeightSlot(slot, key))
    return found


def is_finite(x: Tensor) -> bool:
    """Whether a tensor has no NaN or infinite entry; those on the meta device have none."""
    return x.is_meta or bool(torch.isfinite(x).all())
