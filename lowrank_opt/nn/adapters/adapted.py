r"""Layers that compute with :math:`W_0 + \Delta W` and stay what they are.

An adapted module is the author's own object, under its own names: only its class becomes a subclass
that reads tensors through the record of the model. Its parameters and buffers stay as they are in
the module; what adapters have stands beside them, in a submodule. So names, ``isinstance``, ties,
hooks, attributes and sharding plans hold, and nothing is written when adapters change.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_opt.nn.adapters.change import Change, added, all_fits, is_turned, with_update
from lowrank_opt.nn.adapters.checkpointing import present_state
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.reading import check_reader
from lowrank_opt.nn.adapters.record import Record, State, Weights
from lowrank_opt.nn.adapters.routing import dropped, routed
from lowrank_opt.nn.adapters.store import STORE, Store, modules_of
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.callers import asks_only_facts
from lowrank_opt.nn.basis.kinds import LayerKind, kind_of
from lowrank_opt.nn.basis.originals import ORIGINAL, original_type, seen_as
from lowrank_opt.nn.basis.planned import settled
from lowrank_opt.nn.basis.sharded import is_planning, is_sharded, is_sharding, reads_shards
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.turned.rotated_weight import RotatedWeight


class _Adapted(nn.Module):
    """Reads what adapters change through the store; the first base of every adapted class."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        found = store_of(self)
        if found is None or name not in found.changed:
            return super().__getattr__(name)
        if torch.compiler.is_compiling():
            return found.effective(self, name)  # pyright: ignore[reportReturnType]
        reader = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        value = _effective(self, found, name, reader)
        # What the author's class has not, it has not either where adapters do not count.
        return super().__getattr__(name) if value is None else value

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        found = store_of(self)
        if found is None or name not in found.changed or not found.assign(self, name, value):
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        found = store_of(self)
        if found is not None:
            found.check_deletion(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, unless it would take the place of what adapters change."""
        found = store_of(self)
        planned = is_sharded(param) and is_planning(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        if found is not None and param is not None and planned:
            found.follow_plan(self, name, param)
            super().register_parameter(name, param)
        elif found is None or name not in found.changed or not found.assign(self, name, param):
            super().register_parameter(name, param)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[tuple[str, nn.Module]]:
        """Yield the modules; to a plan of tensor parallelism, those of the author."""
        found = super().named_modules(memo, prefix, remove_duplicate)
        return _of_author(found, is_planning(sys._getframe(1)), prefix)  # pyright: ignore[reportPrivateUsage]

    def named_children(self) -> Generator[tuple[str, nn.Module]]:
        """Yield the children; to a plan of tensor parallelism, those of the author."""
        return _of_author(super().named_children(), is_planning(sys._getframe(1)))  # pyright: ignore[reportPrivateUsage]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # A state dict holds what stands in the module itself, whatever is active.
        found = store_of(self)
        plain = self if found is None else _view(self, found)
        original_type(self)._load_from_state_dict(plain, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        _, _, *rest = super().__reduce_ex__(protocol)
        original = original_type(self)
        return (_blank, (original, storage.is_coded(self, "weight"), _computed(self)), *rest)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        join_record(self)


class _Plain(nn.Module):
    """The same module as an adapted one, read without the updates of its weights."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        found = store_of(self)
        if found is None or name not in found.changed:
            return super().__getattr__(name)
        return found.inside(self, name)  # pyright: ignore[reportReturnType]


class _Recurrent(nn.Module):
    """Recurrent layers keep a list of their weights, which is made anew at each call."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        names: list[str] = self.__dict__["_flat_weights_names"]
        return [getattr(self, name, None) for name in names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        self.__dict__.pop("_flat_weights", None)

    def _update_flat_weights(self) -> None:
        pass

    def flatten_parameters(self) -> None:
        """Do nothing: the weights are not lasting."""


def _of_author(
    found: Iterator[tuple[str, nn.Module]], planning: bool, prefix: str = ""
) -> Generator[tuple[str, nn.Module]]:
    start = f"{prefix}.{STORE}" if prefix else STORE
    return (x for x in found if not (planning and x[0].startswith(start)))


def _effective(module: nn.Module, found: Store, name: str, reader: FrameType) -> Tensor | None:
    check_reader(reader)
    held = stored(module, name)
    if held is not None and (is_planning(reader) or (is_sharded(held) and is_sharding(reader))):
        return held
    if is_sharded(held) and not found.record.state.disabled and found.is_in_shards():
        raise reads_shards(name)
    return found.effective(module, name, facts=asks_only_facts(reader, name))


def _read_adapted(module: nn.Module, name: str) -> Tensor | None:
    found = store_of(module)
    if found is None:
        return getattr(seen_as(original_type(module), module), name)
    if torch.compiler.is_compiling():
        return found.effective(module, name)
    return _effective(module, found, name, sys._getframe(2))  # pyright: ignore[reportPrivateUsage]


def _read_plain(module: nn.Module, name: str) -> Tensor | None:
    found = store_of(module)
    assert found is not None, "only adapted modules have views"
    return found.inside(module, name)


def _property(name: str, read: Callable[[nn.Module, str], Tensor | None]) -> property:
    """Return the attribute of a weight that is no tensor of its module, but computed."""

    def write(module: nn.Module, value: object) -> None:
        own = inspect.getattr_static(original_type(module), name, None)
        if isinstance(own, property) and own.fset is not None:
            own.fset(module, value)
        else:
            module.__dict__[name] = value

    return property(lambda module: read(module, name), write)


def _computed(module: nn.Module) -> tuple[str, ...]:
    """Return the weights of a module that are computed: by a parametrization, or by hooks."""
    names = kind_of(module).weights(module)
    return tuple(name for name in names if storage.is_computed(module, name))


@functools.cache
def adapted_type(
    original: type[nn.Module], kind: LayerKind, computed: tuple[str, ...] = ()
) -> type[nn.Module]:
    """Return the class that modules of a class become when they are adapted."""
    bases = _bases(_Adapted, original)
    members: dict[str, object] = {
        "__module__": original.__module__,
        "__qualname__": f"{original.__qualname__}.<adapted>",
        "__doc__": original.__doc__,
        ORIGINAL: original,
    }
    members |= {name: _property(name, _read_adapted) for name in computed}
    if kind.update is not None:
        members["forward"] = _forward(original, kind)
    if "__deepcopy__" in vars(original):
        # Parametrized layers have one, and no `__reduce_ex__`.
        members["__deepcopy__"] = _copied
    return types.new_class(original.__name__, bases, exec_body=lambda ns: ns.update(members))


def _copied(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    made = original_type(module).__deepcopy__(module, memo)  # pyright: ignore[reportAttributeAccessIssue]
    join_record(made)
    return made


@functools.cache
def plain_type(original: type[nn.Module], computed: tuple[str, ...] = ()) -> type[nn.Module]:
    """Return the class through which the forward of a class reads weights without updates."""
    qualname = f"{original.__qualname__}.<plain>"
    members: dict[str, object] = {"__module__": original.__module__, "__qualname__": qualname}
    members[ORIGINAL] = original
    members |= {name: _property(name, _read_plain) for name in computed}
    bases = _bases(_Plain, original)
    return types.new_class(original.__name__, bases, exec_body=lambda ns: ns.update(members))


def _bases(first: type[nn.Module], original: type[nn.Module]) -> tuple[type, ...]:
    recurrent = issubclass(original, nn.RNNBase)
    return (first, _Recurrent, original) if recurrent else (first, original)


def _forward(original: type[nn.Module], kind: LayerKind) -> Callable[..., Tensor]:
    """Return a forward that adds the update, from its factors, to what the class computes."""

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        found = store_of(self)
        assert found is not None, "an adapted module has a store"
        state = present_state(found.record)
        if state.merged is not None and not state.disabled:
            if found.is_coded(self):
                return _with_sum(self, found, state, *args, **kwargs)
            return original.forward(_view(self, found), *args, **kwargs)
        layer = _without_updates(self, found)
        lone = found.lone_change(self, state)
        if isinstance(lone, LowRankOperator):
            x = args[0] if args else next(iter(kwargs.values()))
            if type(lone) is RotatedWeight and is_turned(kind, self, lone, x):
                return original.forward(layer, x + lone.rotation.moved(x))
            y = original.forward(layer, *args, **kwargs)
            y = y if type(y) is Tensor else settled(y)
            return with_update(kind, layer, lone, None, x, y)
        if lone is not None and all_fits(kind, lone):
            y = original.forward(layer, *args, **kwargs)
            y = y if type(y) is Tensor else settled(y)
            x = args[0] if args else next(iter(kwargs.values()))
            return with_update(kind, layer, lone.ops[0], lone.of_outputs(kind), x, y)
        groups = () if state.routing is not None else found.groups(state.chosen, self.training)
        changes = [
            (change, p) for chosen, p in groups for change in _change(found, self, chosen, state)
        ]
        if not all(all_fits(kind, change) for change, _ in changes):
            # Lengths of inputs, as a tied weight may have them: with the dense weight.
            if found.is_coded(self):
                return _with_sum(self, found, state, *args, **kwargs)
            return original.forward(self, *args, **kwargs)
        y = original.forward(layer, *args, **kwargs)
        y = y if type(y) is Tensor else settled(y)
        x = args[0] if args else next(iter(kwargs.values()))
        if state.routing is not None:
            return routed(found, kind, self, layer, state.routing, x, y)
        total = y
        for change, p in changes:
            total = total + added(kind, layer, change, dropped(x, p), y)
        return total

    return forward


def _change(found: Store, module: nn.Module, chosen: Weights, state: State) -> list[Change]:
    for name in found.changed:
        change = found.change(module, name, chosen, state)
        if change is not None:
            return [change]
    return []


def _with_sum(module: nn.Module, found: Store, state: State, x: Tensor) -> Tensor:
    """Return what a layer whose forward cannot take another weight would compute with the sum."""
    total = found.dense_sum(module, "weight", state)
    if total is None:
        return original_type(module).forward(_without_updates(module, found), x)
    y = F.linear(x.to(total.dtype), total).to(x.dtype)
    return y + storage.constant_part(module, x).to(y.dtype)


def _view(module: nn.Module, found: Store) -> nn.Module:
    """Return the module, read without updates; both are one object but for their class."""
    if torch.compiler.is_compiling():
        return found.view
    view = found.__dict__.get("view")
    if view is None or view.__dict__ is not module.__dict__:
        view = _make_view(module, found)
    return view


def _make_view(module: nn.Module, found: Store) -> nn.Module:
    original = original_type(module)
    view = found.__dict__["view"] = seen_as(plain_type(original, _computed(module)), module)
    found.__dict__["bare"] = seen_as(original, module)
    return view


def _without_updates(module: nn.Module, found: Store) -> nn.Module:
    """Return the module as its class computes with it where updates are added to what it returns.

    Where adapters have nothing else here, that is the base layer: as its author's own class, which
    asks nobody for its weights.
    """
    view = _view(module, found)
    return found.bare if found.only_updates and not torch.compiler.is_compiling() else view


def _blank(
    original: type[nn.Module], coded: bool = False, computed: tuple[str, ...] = ()
) -> nn.Module:
    """Return an adapted module without content, for `copy` and `pickle`."""
    cls = adapted_type(original, kind_of(original, coded=coded), computed)
    return cls.__new__(cls)


def store_of(module: nn.Module) -> Store | None:
    """Return what adapters have in a module, or None if it is not adapted."""
    found = module.__dict__.get("_modules", {}).get(STORE)
    return found if isinstance(found, Store) else None


def present_updates(module: nn.Module, name: str) -> list[LowRankOperator]:
    """Return what is added to a weight of a module now: an operator for each of its matrices.

    Raises
    ------
    TargetError
        If that is not of low rank: adapters have magnitudes.
    """
    found = store_of(module)
    state = None if found is None else found.record.state
    if found is None or state is None or state.merged is not None:
        return []
    change = found.change(module, name, state.chosen, state)
    return [] if change is None else [*change.low_rank]


def read_by_forward(module: nn.Module, name: str) -> Tensor | nn.Module:
    """Return the tensor that the forward of a module's own class reads under a name.

    Of an adapted layer that adds its update to what its class computes, the base weight.
    """
    found = store_of(module)
    if found is None or kind_of(module).update is None or found.record.state.merged is not None:
        return getattr(module, name)
    return getattr(_view(module, found), name)


def attach(module: nn.Module, record: Record) -> Store:
    """Return the store of a module, which becomes an adapted one if it was none."""
    found = store_of(module)
    if found is None:
        cls = adapted_type(type(module), kind_of(module), _computed(module))
        module.__class__ = cls
        found = Store(record)
        found.train(module.training)
        module.add_module(STORE, found)
        join_record(module)
    return found


def join_record(module: nn.Module) -> None:
    """Let the record of an adapted module know it."""
    found = store_of(module)
    if found is not None:
        found.record.modules.add(module)
        _make_view(module, found)


def detach(module: nn.Module) -> None:
    """Give an adapted module its class back, and forget its adapters."""
    found = store_of(module)
    assert found is not None, "only adapted modules are detached"
    found.record.modules.discard(module)
    del module._modules[STORE]  # pyright: ignore[reportPrivateUsage]
    module.__class__ = original_type(module)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # pyright: ignore[reportPrivateUsage]


def adapted_modules(model: nn.Module) -> Iterator[tuple[nn.Module, Store]]:
    """Yield every adapted module of a model once, with its store."""
    for module in modules_of(model):
        found = store_of(module)
        if found is not None:
            yield module, found
