"""What adapters have in one module of a model: updates of its weights, tensors of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lowrank_opt.nn.adapters.checkpointing import (
    in_transform,
    marked,
    marked_operator,
    present_state,
)
from lowrank_opt.nn.adapters.gradients import awake, delivering
from lowrank_opt.nn.adapters.reading import is_of, standing_for, sum_standing_for, without_numbers
from lowrank_opt.nn.adapters.record import Record, State, Weights
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization

# The one name that an adapted module has besides those of its author.
STORE = "lowrank_adapters"


class Tensors(nn.Module):
    """Parameters and buffers by names of any kind; some are kept elsewhere and only known here."""

    def __init__(self) -> None:
        super().__init__()
        self.homes: dict[str, tuple[Tensors, str]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor: a parameter if it is one, else a buffer."""
        key = safe_key(self, name)
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(key, tensor)
        else:
            self.register_buffer(key, tensor)
        self.homes[name] = (self, key)

    def link(self, name: str, home: Tensors, other: str) -> None:
        """Know a tensor that is kept by others, for weights that are tied."""
        self.homes[name] = home.homes[other]

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of a name, or None."""
        if name not in self.homes:
            return None
        home, key = self.homes[name]
        return stored(home, key)

    def put(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor, as a module does that assigns to its buffers."""
        home, key = self.homes[name]
        setattr(home, key, tensor)

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that are kept here."""
        for name, (home, key) in self.homes.items():
            tensor = stored(home, key)
            if home is self and tensor is not None:
                yield name, tensor


class Part(nn.Module):
    """What one adapter has in one module.

    Parameters
    ----------
    updates : mapping from weights to sequences of Parameterization
        One for each matrix of the weight.
    elsewhere : collection of str
        Weights that are tied to one of another module, which keeps their parameterizations.
    """

    def __init__(
        self,
        updates: Mapping[str, Sequence[Parameterization]] | None = None,
        elsewhere: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.updates: dict[str, Sequence[Parameterization]] = {}
        self.settled: dict[str, Sequence[Frozen]] = {}
        self.parts, self.own = nn.ModuleList(), Tensors()
        self.settled_parts = nn.ModuleList()
        # Names of parameters that were frozen on purpose while the rest was trained.
        self.fixed: frozenset[str] = frozenset()
        self._handles: dict[int, RemovableHandle] = {}
        for name, members in (updates or {}).items():
            self.add(name, members, linked=name in elsewhere)

    def add(self, weight: str, members: Sequence[Parameterization], *, linked: bool) -> None:
        """Add the update of a weight; `linked` if another module keeps it."""
        self.updates[weight] = list(members)
        if not linked:
            self.parts.append(nn.ModuleList(members))

    def settle(self, weight: str, fixed: Sequence[Frozen], *, linked: bool) -> None:
        """Set the part of a weight's update that is not trained any more."""
        kept = [x for x in self.settled_parts if x is not self._home(weight)]
        new = [] if linked or not fixed else [nn.ModuleList(fixed)]
        self.settled_parts = nn.ModuleList([*kept, *new])
        self.settled[weight] = list(fixed)

    def _home(self, weight: str) -> nn.Module | None:
        old = self.settled.get(weight)
        return next((x for x in self.settled_parts if old and x[0] is old[0]), None)  # pyright: ignore[reportIndexIssue]

    @property
    def names(self) -> set[str]:
        """The tensors of the module that the adapter changes."""
        return {*self.updates, *self.own.homes}

    def train_only_if(self, active: bool) -> None:
        """Let the parameters be trained or not, but for those that were fixed on purpose."""
        own = dict(self.named_parameters())
        if not active and any(p.requires_grad for p in own.values()):
            self.fixed = frozenset(k for k, p in own.items() if not p.requires_grad)
        for name, p in own.items():
            if p.is_floating_point() or p.is_complex():
                self._let(p, trained=active and name not in self.fixed)

    def _let(self, parameter: nn.Parameter, *, trained: bool) -> None:
        if parameter.requires_grad and not trained:
            self._handles[id(parameter)] = parameter.register_hook(delivering(parameter))
        elif trained and id(parameter) in self._handles:
            self._handles.pop(id(parameter)).remove()
        parameter.requires_grad_(trained)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}}


class Store(nn.Module):
    """The adapters of one module, and the record of the model that it is part of."""

    # The module itself, read without updates: made when it is adapted or copied, and not saved.
    view: nn.Module

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.keys: dict[str, str] = {}
        self.sums = nn.Module()
        self.stamps: dict[str, tuple[int, int]] = {}
        self.changed: frozenset[str] = frozenset()

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
        self.changed = frozenset(n for part in self.parts().values() for n in part.names)

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

    def operators(self, name: str, chosen: Weights, state: State) -> list[LowRankOperator] | None:
        """Return the weighted sum of the chosen adapters' updates of one weight, or None."""
        total: list[LowRankOperator] | None = None
        for adapter, factor in chosen:
            part = self.part(adapter)
            if part is None or name not in part.updates:
                continue
            asleep, members = state is not self.record.state, part.updates[name]
            ops = [_repeated(part, member) if asleep else member() for member in members]
            fixed = [x().to(dtype=op.dtype) for x, op in zip(part.settled.get(name, ()), ops)]  # noqa: B905
            ops = [op + more for op, more in zip(ops, fixed, strict=True)] if fixed else ops
            if factor != 1.0:
                ops = [factor * op for op in ops]
            total = ops if total is None else [a + b for a, b in zip(total, ops, strict=True)]
        return None if total is None else [marked_operator(op, state) for op in total]

    def inside(self, module: nn.Module, name: str) -> Tensor | None:
        """Return what the forward of the module's own class reads where updates are added to it."""
        state = present_state(self.record)
        if state.merged is not None and not state.disabled:
            total = self.sum(module, name, state)
            if total is not None:
                return total
        return self.without_updates(module, name)

    def without_updates(self, module: nn.Module, name: str) -> Tensor | None:
        """Return a tensor of the module as the adapters that count have it, updates left out."""
        state, base = present_state(self.record), stored(module, name)
        if state.disabled:
            return base
        if state.routing is not None:
            self._check_routed(module, name)
            return base
        own = self.own(name, state.chosen, state.leading)
        if isinstance(own, nn.Parameter) and state is not self.record.state:
            return marked(awake(own), state)
        return base if own is None else marked(own, state)

    def effective(self, module: nn.Module, name: str) -> Tensor | None:
        """Return a tensor of the module as the adapters that count make it, updates and all."""
        state, value = present_state(self.record), self.without_updates(module, name)
        if state.disabled or value is None:
            return value
        if state.routing is not None:
            return without_numbers(value) if self._is_routed(name, state) else value
        plain = torch.compiler.is_compiling() or in_transform()
        if state.merged is not None:
            total = self.sum(module, name, state)
            if total is None or plain:
                return value if total is None else total
            return sum_standing_for(total, base_of(module, name))
        ops = self.operators(name, state.active, state)
        if ops is None:
            return value
        total = add_dense(value, ops)
        return total if plain else standing_for(total, base_of(module, name))

    def sum(self, module: nn.Module, name: str, state: State) -> Tensor | None:
        """Return the merged weight, summed again if what it was made of has been written to."""
        total = self.sums._buffers.get(sum_key(name))  # pyright: ignore[reportPrivateUsage]
        if total is None or torch.compiler.is_compiling():
            return total
        base = self.own(name, state.chosen, state.leading)
        base = base_of(module, name) if base is None else base
        if self.stamps.get(name) != stamp(base):
            ops = self.operators(name, state.chosen, state)
            assert ops is not None, "what is merged has an update"
            with torch.no_grad():
                total = nn.Parameter(add_dense(base, ops), requires_grad=False)
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
        self.sums, self.stamps = nn.Module(), {}
        for name, (tensor, base) in sums.items():
            self.sums.register_buffer(sum_key(name), tensor, persistent=False)
            self.stamps[name] = stamp(base)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # Adapters may become others, and their sums with them.
        self.stamps = {}
        super()._load_from_state_dict(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "view"}


def _repeated(part: Part, member: Parameterization) -> LowRankOperator:
    """Return an update as it was when its adapter was active: with its gradients."""
    fixed = {id(p) for name, p in part.named_parameters() if name in part.fixed}
    own = {k: awake(p) for k, p in member.named_parameters() if id(p) not in fixed}
    return functional_call(member, own, ())


def sum_key(name: str) -> str:
    """Return the name under which a merged weight is held."""
    return f"sum_of_{name}"


def safe_key(module: nn.Module, name: str) -> str:
    """Return a key for a part of a module, which takes no names of its attributes ("half")."""
    return f"{name}_" if hasattr(module, name) else name


def stored(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer of a module as it stands in the module itself."""
    for kept in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
        if name in kept:
            return kept[name]
    return None


def base_of(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of a module, which exists."""
    found = stored(module, name)
    assert found is not None, "only weights that exist are adapted"
    return found


def stamp(x: Tensor) -> tuple[int, int]:
    """Return what another tensor, or one that was written to in place, does not have."""
    return id(x), 0 if x.is_inference() else x._version


def add_dense(weight: Tensor, ops: Sequence[LowRankOperator]) -> Tensor:
    r"""Return the dense :math:`W_0 + \Delta W`, rounded once to the dtype of `weight`."""
    dense = [op.to_dense() for op in ops]
    update = dense[0] if len(dense) == 1 else torch.stack(dense)
    total = (weight + update.reshape(weight.shape)).to(weight.dtype)
    # torch's matmul folds its input by this flag of the weight, with grad or without: as trainable
    # weights have it, the zero start gives what they gave, to the last bit.
    plain = total.requires_grad or torch.compiler.is_compiling() or in_transform()
    return total if plain else total.requires_grad_()
