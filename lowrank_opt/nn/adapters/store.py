"""What adapters have in one module of a model: updates of its weights, tensors of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_opt.nn.adapters.change import Change
from lowrank_opt.nn.adapters.checkpointing import in_transform, is_plain, marked, present_state
from lowrank_opt.nn.adapters.gradients import awake
from lowrank_opt.nn.adapters.part import Part, safe_key, stored
from lowrank_opt.nn.adapters.reading import (
    facts_of,
    is_of,
    standing_for,
    sum_standing_for,
    without_numbers,
)
from lowrank_opt.nn.adapters.record import Record, State, Weights
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.originals import STORE as STORE
from lowrank_opt.nn.basis.originals import modules_of as modules_of
from lowrank_opt.nn.basis.planned import check_is_matrix
from lowrank_opt.nn.basis.sealed import SealedWeight
from lowrank_opt.nn.basis.sharded import is_same_sharded, is_sharded
from lowrank_opt.operator import LowRankOperator


class Store(nn.Module):
    """The adapters of one module, and the record of the model that it is part of."""

    # The module itself, read without updates: made when it is adapted or copied, and not saved.
    view: nn.Module
    bare: nn.Module

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.keys: dict[str, str] = {}
        self.sums = nn.Module()
        self.stamps: dict[str, tuple[int, ...]] = {}
        self.changed: frozenset[str] = frozenset()
        self.only_updates: bool = True
        self._sealed: dict[str, tuple[SealedWeight, bool]] = {}

    def add(self, adapter: str, part: Part) -> None:
        """Add what an adapter has in this module."""
        self.keys[adapter] = safe_key(self, adapter)
        self.add_module(self.keys[adapter], part)
        self.refresh()

    def remove(self, adapter: str) -> None:
        """Forget an adapter."""
        if adapter in self.keys:
            delattr(self, self.keys.pop(adapter))
            self.refresh()

    def refresh(self) -> None:
        """Note which tensors of the module some adapter changes."""
        parts = self.parts().values()
        self.changed = frozenset(n for part in parts for n in part.names)
        self._sealed = {}
        # Whether adapters do nothing here but add updates.
        self.only_updates = not any(part.own.homes for part in parts)

    def part(self, adapter: str) -> Part | None:
        """Return what an adapter has here, or None."""
        key = self.keys.get(adapter)
        found = None if key is None else self._modules[key]
        assert found is None or isinstance(found, Part)
        return found

    def parts(self) -> dict[str, Part]:
        """Return what each adapter has here."""
        found = {name: self.part(name) for name in self.keys}
        return {name: part for name, part in found.items() if part is not None}

    def own(self, name: str, chosen: Weights, lead: str | None) -> Tensor | None:
        """Return the chosen adapters' own tensor of that name, or None."""
        for adapter, _ in reversed(chosen):
            part = self.part(adapter) if lead is None or adapter == lead else None
            found = None if part is None else part.own.get(name)
            if found is not None:
                return found
        return None

    def change(self, module: nn.Module, name: str, chosen: Weights, state: State) -> Change | None:
        """Return what the chosen adapters, weighted, add to one weight; None if that is nothing."""
        total: Change | None = None
        asleep = state is not self.record.state
        for adapter, factor in chosen:
            part = self.part(adapter)
            if part is None or name not in part.updates:
                continue
            base = self.base(module, name, state) if part.sides else None
            one = part.change(name, base, self.record, asleep=asleep).times(factor)
            total = one if total is None else total + one
        if total is None or is_plain():
            return total
        return total.marked(lambda x: marked(x, state))

    def lone_change(self, module: nn.Module, state: State) -> LowRankOperator | Change | None:
        """Return the change, if it is all that adapters do here: one adapter's, as it is.

        What `change` would return, and nothing to mark or drop; None asks for that. An update
        without anything else is an operator.
        """
        if state.routings or state.disabled or len(state.active) != 1 or not is_plain():
            return None
        (name, factor), *_ = state.active
        part = self.part(name) if factor == 1.0 and state is self.record.state else None
        if part is None or (module.training and part.dropout):
            return None
        return part.lone_change(self.record, lambda name: self.base(module, name, state))

    def groups(self, chosen: Weights, training: bool) -> list[tuple[Weights, float]]:
        """Return the chosen adapters in groups that have one input, and its dropout."""
        if not training:
            return [(chosen, 0.0)]
        rates: dict[str, float] = {}
        for name, _ in chosen:
            part = self.part(name)
            rates[name] = 0.0 if part is None else part.dropout
        rest = tuple(pair for pair in chosen if not rates[pair[0]])
        apart = [((pair,), rates[pair[0]]) for pair in chosen if rates[pair[0]]]
        return [(rest, 0.0), *apart] if rest else apart

    def base(self, module: nn.Module, name: str, state: State) -> Tensor:
        """Return what updates of a weight are added to: the module's own, or an adapter's."""
        own = None if self.only_updates else self.own(name, state.chosen, state.leading)
        return self.base_of(module, name) if own is None else own

    def base_of(self, module: nn.Module, name: str) -> Tensor:
        """Return a weight of the module, which exists, as what is added to; it may be sealed."""
        found = stored(module, name)
        if found is not None and torch.compiler.is_compiling():
            return found
        if storage.is_plain(found) or not self._seals(module, name):
            assert found is not None, "only weights that exist are adapted"
            return found
        return self._sealed_of(module, name)[0]

    def _seals(self, module: nn.Module, name: str) -> bool:
        return self._is_updated(name) and (name in self._sealed or storage.is_sealed(module, name))

    def is_coded(self, module: nn.Module) -> bool:
        """Whether the forward of the module's class alone knows its weight."""
        if torch.compiler.is_compiling():
            # What is merged is known.
            return "weight" in self._sealed and self._sealed["weight"][1]
        plain = storage.is_plain(module._parameters.get("weight"))  # pyright: ignore[reportPrivateUsage]
        return not plain and self._seals(module, "weight") and self._sealed_of(module, "weight")[1]

    def _sealed_of(self, module: nn.Module, name: str) -> tuple[SealedWeight, bool]:
        known = self._sealed.get(name)
        if known is None or known[0].layer is not module:
            sealed = SealedWeight(module, name)
            known = self._sealed[name] = (sealed, storage.is_coded(module, name))
        return known

    def dense_sum(self, module: nn.Module, name: str, state: State) -> Tensor | None:
        """Return a weight with its updates, dense; None if there are none."""
        if state.merged is not None:
            return self.sum(module, name, state)
        change = self.change(module, name, state.active, state)
        return None if change is None else change.add_dense(self.base(module, name, state))

    def inside(self, module: nn.Module, name: str) -> Tensor | None:
        """Return what the forward of the module's own class reads where updates are added to it."""
        state = present_state(self.record)
        if state.merged is not None and not state.disabled:
            total = self.sum(module, name, state)
            if total is not None:
                return total
        return self._without_updates(module, name, state)

    def _without_updates(self, module: nn.Module, name: str, state: State) -> Tensor | None:
        """Return a tensor of the module as the adapters that count have it, updates left out."""
        base = stored(module, name)
        if base is None:
            base = getattr(self.bare, name, None)
        if state.disabled:
            return base
        if state.routing is not None:
            self._check_routed(module, name)
            return base
        own = self.own(name, state.chosen, state.leading)
        if isinstance(own, nn.Parameter) and state is not self.record.state:
            return marked(awake(own), state)
        return base if own is None else marked(own, state)

    def effective(self, module: nn.Module, name: str, *, facts: bool = False) -> Tensor | None:
        """Return a tensor of the module as the adapters that count make it, updates and all.

        Where it is certain that nothing but `facts` is asked, its dtype or its class, no sum.
        """
        state = present_state(self.record)
        value = self._without_updates(module, name, state)
        if state.disabled or (value is None and not self._is_updated(name)):
            return value
        if value is None:
            value = self.base_of(module, name)
        if state.routing is not None:
            return without_numbers(value) if self._is_routed(name, state) else value
        plain = torch.compiler.is_compiling() or in_transform()
        held = stored(module, name)
        if state.merged is not None:
            total = self.sum(module, name, state)
            if total is None or plain:
                return value if total is None else total
            return sum_standing_for(total, value if held is None else held)
        if facts and not plain and type(value) is nn.Parameter:
            return facts_of(value)
        if facts and value is held and isinstance(self.base_of(module, name), SealedWeight):
            return self.base_of(module, name)
        change = self.change(module, name, state.active, state)
        if change is None:
            return value
        base = self.base_of(module, name) if value is held or held is None else value
        total = as_trainable(change.add_dense(base))
        return total if plain else standing_for(total, value if held is None else held)

    def sum(self, module: nn.Module, name: str, state: State) -> Tensor | None:
        """Return the merged weight, summed again if what it was made of has been written to."""
        total = self.sums._buffers.get(sum_key(name))  # pyright: ignore[reportPrivateUsage]
        if total is None or torch.compiler.is_compiling():
            return total
        base = self.base(module, name, state)
        if self.stamps.get(name) != stamp(base):
            with torch.no_grad():
                change = self.change(module, name, state.chosen, state)
                assert change is not None, "what is merged has an update"
                total = nn.Parameter(change.add_dense(base), requires_grad=False)
            self.sums._buffers[sum_key(name)] = total  # pyright: ignore[reportPrivateUsage]
            self.stamps[name] = stamp(base)
        return total

    def _check_routed(self, module: nn.Module, name: str) -> None:
        moving = module.training and name in module._buffers  # pyright: ignore[reportPrivateUsage]
        if moving and any(name in part.own.homes for part in self.parts().values()):
            raise AdapterStateError(
                f"per_sample leaves buffers alone; got {name!r} of a {type(module).__name__} in "
                "training mode, of which each adapter has its own: call model.eval() first"
            )
        routing, base = self.record.state.routing, stored(module, name)
        used = {n for n in routing.names if n is not None} if routing is not None else set[str]()
        for own in (self.parts()[n].own.get(name) for n in used if n in self.keys):
            if own is None or base is None or torch.compiler.is_compiling():
                continue
            if not torch.equal(own, base):
                raise AdapterStateError(
                    f"per_sample needs buffers that are the base model's; {name!r} of a "
                    f"{type(module).__name__} was changed inside the block: leave it first"
                )

    def _is_routed(self, name: str, state: State) -> bool:
        """Whether a weight is another one for each sample."""
        routing = state.routing
        used = {n for n in routing.names if n is not None} if routing is not None else set()
        return any(name in part.updates for key, part in self.parts().items() if key in used)

    def assign(self, module: nn.Module, name: str, value: object) -> bool:
        """Set an own tensor of the adapters that count; whether there was one.

        Raises
        ------
        AdapterStateError
            If the tensor is an adapted weight.
        """
        state, updated = self.record.state, self._is_updated(name)
        if is_of(value, stored(module, name)):
            return True
        if name in module.__dict__ and updated:
            # A hook computes it before each call: what it sets is the base weight.
            return False
        if is_same_sharded(value, stored(module, name)):
            module._parameters[name] = value  # pyright: ignore[reportPrivateUsage, reportArgumentType]
            return True
        if updated and not (state.disabled and isinstance(value, Tensor)):
            raise AdapterStateError(
                f"an adapted weight cannot be replaced; got a new {name!r}: assign it before "
                "adapting (tie weights before, too), or within disabled(model)"
            )
        for adapter, _ in () if state.disabled else reversed(state.chosen):
            part = self.part(adapter) if state.leading in (None, adapter) else None
            if part is None or name not in part.own.homes:
                continue
            if not isinstance(value, Tensor):
                raise AdapterStateError(
                    f"a tensor that an adapter has of its own stays one; got {value!r} for "
                    f"{name!r}: call remove_adapter(model, {adapter!r}) first"
                )
            part.own.put(name, value)
            return True
        return False

    def is_in_shards(self) -> bool:
        """Whether updates lie in parts in several processes, as `fully_shard` leaves them."""
        every = (p for part in self.parts().values() for p in part.parts.parameters())
        return any(is_sharded(p) for p in every)

    def follow_plan(self, module: nn.Module, name: str, value: nn.Parameter) -> None:
        """Have of each adapter what goes with a parameter that a plan is about to cut.

        Raises
        ------
        AdapterStateError
            If an adapter of the model cannot be under such a plan: nothing has been cut then.
        """
        stores = [(m, x) for m in self.record.modules if isinstance(x := m._modules[STORE], Store)]  # pyright: ignore[reportPrivateUsage]
        if not any(is_sharded(stored(m, key)) for m, x in stores for key in x.changed):
            check_can_plan(self.record.state)
            for other, store in stores:
                for part in store.parts().values():
                    part.check_can_be_cut(other)
        if name in self.changed:
            check_is_matrix(name, value)
        before = stored(module, name)
        if before is not None:
            value.requires_grad_(before.requires_grad)
        for part in self.parts().values():
            part.follow_plan(name, value)

    def check_deletion(self, name: str) -> None:
        """Raise AdapterStateError if some adapter changes the tensor of that name."""
        if name in self.changed:
            raise AdapterStateError(
                f"what an adapter changes cannot be deleted; got {name!r}: unload(model), or "
                "prune and parametrize before adapting"
            )

    def _is_updated(self, name: str) -> bool:
        return any(name in part.updates for part in self.parts().values())

    def keep_sums(self, sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Hold merged weights, which the module reads instead of its own; with what they are of."""
        self.sums: nn.Module
        self.sums, self.stamps = nn.Module(), {}
        for name, (tensor, base) in sums.items():
            self.sums.register_buffer(sum_key(name), tensor, persistent=False)
            self.stamps[name] = stamp(base)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # Adapters may become others, and their sums with them.
        self.stamps = {}
        super()._load_from_state_dict(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    def __getstate__(self) -> dict[str, object]:
        remade = ("view", "bare", "_sealed")
        kept: dict[str, object] = {k: x for k, x in self.__dict__.items() if k not in remade}
        return {**kept, "_sealed": {}}


def check_can_plan(state: State) -> None:
    """Raise AdapterStateError if adapters are summed, or differ between samples."""
    if state.merged is not None or state.routings:
        what = "a merged model" if state.routings == () else "an open block of per_sample"
        raise AdapterStateError(
            "a plan of tensor parallelism cuts base weights, from which sums would be made again; "
            f"got {what}: unmerge(model), or leave the block, first"
        )


def sum_key(name: str) -> str:
    """Return the name under which a merged weight is held."""
    return f"sum_of_{name}"


def stamp(x: Tensor) -> tuple[int, ...]:
    """Return what another tensor, or one that was written to in place, does not have."""
    if isinstance(x, SealedWeight):
        parts = list(modules_of(x.layer))
        made_of = [p for m in parts for p in m.parameters(recurse=False) if p is not None]
        made_of += [p for m in parts for p in m.buffers(recurse=False)]
        return tuple(n for p in made_of for n in stamp(p))
    return id(x), 0 if x.is_inference() else x._version


def as_trainable(total: Tensor) -> Tensor:
    """Return a weight that asks for gradients, whether something in it does or not."""
    # torch's matmul folds its input by this flag of the weight, with grad or without: as trainable
    # weights have it, the zero start gives what they gave, to the last bit.
    plain = total.requires_grad or torch.compiler.is_compiling() or in_transform()
    return total if plain else total.requires_grad_()
