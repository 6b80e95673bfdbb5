"""Where things are in a model: modules and weights under their authors' names, and one walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lowrank_opt.nn.adapters.adapted import store_of
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.store import STORE, Store, modules_of
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.cut import as_dtensor, everywhere
from lowrank_opt.nn.basis.kinds import kind_of, matrix_shapes, type_name
from lowrank_opt.nn.basis.sealed import SealedWeight
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.parameterizations import Parameterization

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
    "lowrank_opt.nn.low_rank.shortcut.Shortcut": "base",
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
    # The weights that are not plain, of all modules of the walk: what is tied has one.
    sealed: dict[int, SealedWeight] = field(default_factory=dict[int, SealedWeight])
    # Whether it holds, or is part of what computes, a weight that is not plain.
    holds_sealed: bool = False

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
        """The base weight; what stands for it, if it is stored in another way than as numbers."""
        module = self.layer.module
        found = stored(module, self.weight)
        if isinstance(found, nn.Parameter) and not storage.is_sealed(module, self.weight):
            return found
        held = module if found is None else found
        return self.layer.sealed.setdefault(id(held), SealedWeight(module, self.weight))  # pyright: ignore[reportReturnType]

    @property
    def held(self) -> list[nn.Parameter]:
        """The parameters that the base weight is made of."""
        found = stored(self.layer.module, self.weight)
        return [found] if isinstance(found, nn.Parameter) else list(_own_parameters(self.layer))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes of its matrices."""
        return matrix_shapes(self.parameter, kind_of(self.layer.module))


def every_slot(model: nn.Module) -> list[LayerSlot]:
    """Return every module once, in order, without those of adapters; wrappers are transparent."""
    found: dict[int, LayerSlot] = {}
    sealed: dict[int, SealedWeight] = {}

    def visit(
        module: nn.Module,
        name: str,
        holder: tuple[nn.Module, str] | None,
        *,
        opaque: bool,
        below_sealed: bool = False,
    ) -> None:
        hidden = opaque or isinstance(module, _OPAQUE)
        known = id(module) in found
        slot = found.setdefault(id(module), LayerSlot(name, module, opaque=hidden, sealed=sealed))
        if holder is not None:
            slot.holders.append(holder)
        if known:
            return
        slot.holds_sealed = below_sealed or bool(sealed_weights(slot))
        inside = _inside(module)
        for key, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
            if part is not None and key != STORE:
                below = name if key == inside else join(name, key)
                visit(part, below, (module, key), opaque=hidden, below_sealed=slot.holds_sealed)

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
        for own in sealed_weights(slot):
            found.setdefault(id(own.parameter), []).append(own)
    return found


def sealed_weights(slot: LayerSlot) -> list[WeightSlot]:
    """Return the weights of a layer that are not plain."""
    if storage.is_ordinary(slot.module):
        return []
    names = kind_of(slot.module).weights(slot.module)
    return [WeightSlot(slot, name) for name in names if storage.is_sealed(slot.module, name)]


def _own_parameters(slot: LayerSlot) -> Iterator[nn.Parameter]:
    for module in modules_of(slot.module):
        yield from (p for p in module._parameters.values() if p is not None)  # pyright: ignore[reportPrivateUsage]


def is_finite(x: Tensor) -> bool:
    """Whether a tensor has no NaN or infinite entry; those on the meta device have none."""
    if is_sharded(x) and not x.is_meta:
        return everywhere(is_finite(as_dtensor(x.detach()).to_local()), x)
    return x.is_meta or bool(torch.isfinite(x).all())
