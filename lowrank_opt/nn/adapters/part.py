"""What one adapter has in one module: parameterizations, magnitudes, tensors of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lowrank_opt.nn.adapters.change import Change, Magnitude, rescaled
from lowrank_opt.nn.adapters.evaluation import Kept, evaluated, kept_or_made
from lowrank_opt.nn.adapters.gradients import awake, delivering
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.basis.cut import cut_as, made_equal
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.nn.basis.kinds import Side
from lowrank_opt.nn.basis.planned import check_can_be_cut
from lowrank_opt.nn.basis.products import Prepared, tensors_of
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization


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
        self.parts: nn.ModuleList
        self.own: Tensors
        self.parts, self.own = nn.ModuleList(), Tensors()
        self.magnitudes: Tensors
        self.sides: dict[str, Side]
        self.magnitudes, self.sides = Tensors(), dict[str, Side]()
        # Of the input of the updates, in training mode.
        self.dropout: float = 0.0
        self.settled_parts = nn.ModuleList()
        # Names of parameters that were frozen on purpose while the rest was trained.
        self.fixed: frozenset[str] = frozenset()
        self._handles: dict[int, RemovableHandle] = {}
        self._kept: dict[tuple[str, int], Kept[Any]] = {}
        for name, members in (updates or {}).items():
            self.add(name, members, linked=name in elsewhere)

    def add(self, weight: str, members: Sequence[Parameterization], *, linked: bool) -> None:
        """Add the update of a weight; `linked` if another module keeps it."""
        self.updates[weight] = list(members)
        if not linked:
            self.parts.append(nn.ModuleList(members))

    def magnify(self, weight: str, magnitude: Magnitude, home: Part, at_home: str) -> None:
        """Give a weight magnitudes, which another part keeps if that is where its update is."""
        self.sides[weight] = magnitude.side
        if home is self and at_home == weight:
            self.magnitudes.add(weight, magnitude.lengths)
        else:
            self.magnitudes.link(weight, home.magnitudes, at_home)

    def magnitude(self, weight: str) -> Magnitude | None:
        """Return the magnitudes of a weight, or None if it has none."""
        lengths = self.magnitudes.get(weight)
        return None if lengths is None else Magnitude(self.sides[weight], lengths)

    def settle(self, weight: str, fixed: Sequence[Frozen], *, linked: bool) -> None:
        """Set the part of a weight's update that is not trained any more."""
        kept = [x for x in self.settled_parts if x is not self._home(weight)]
        new = [] if linked or not fixed else [nn.ModuleList(fixed)]
        self.settled_parts: nn.ModuleList = nn.ModuleList([*kept, *new])
        self.settled[weight] = list(fixed)

    def _home(self, weight: str) -> nn.Module | None:
        old = self.settled.get(weight)
        return next((x for x in self.settled_parts if old and x[0] is old[0]), None)  # pyright: ignore[reportIndexIssue]

    def change(
        self, name: str, base: Tensor | None, record: Record, *, asleep: bool = False
    ) -> Change:
        """Return what is added to a weight, the magnitudes that it gets included.

        Parameters
        ----------
        name : str
        base : Tensor, optional
            The weight, which magnitudes need.
        record : Record
            Of the model.
        asleep : bool
            Whether to compute as when the adapter was active: with its gradients.
        """
        members, settled = self.updates[name], self.settled.get(name, ())
        magnitude = self.magnitude(name)
        if asleep:
            ops = [_repeated(self, x) for x in members]
            if magnitude is not None:
                magnitude = Magnitude(magnitude.side, _awake_of(self, magnitude.lengths))
            return _changed(ops, settled, base, magnitude)
        if not settled and magnitude is None:
            return Change(
                [evaluated(x, self._kept, (name, i), record) for i, x in enumerate(members)]
            )

        def make() -> Change:
            ops = [evaluated(x, {}, (name, i), record) for i, x in enumerate(members)]
            return _changed(ops, settled, base, magnitude)

        if torch.compiler.is_compiling():
            return make()
        given = () if magnitude is None else (*(() if base is None else (base,)), magnitude.lengths)
        return kept_or_made(self._kept, (name, -1), (*members, *settled), given, make, _ready)

    def lone_change(
        self, record: Record, base: Callable[[str], Tensor]
    ) -> LowRankOperator | Change | None:
        """Return what is added to the one matrix that is changed; None if there are more."""
        if len(self.updates) != 1:
            return None
        (name, members), *_ = self.updates.items()
        if len(members) != 1:
            return None
        if name in self.sides or self.settled.get(name):
            return self.change(name, base(name), record)
        return evaluated(members[0], self._kept, (name, 0), record)

    @property
    def names(self) -> set[str]:
        """The tensors of the module that the adapter changes."""
        return {*self.updates, *self.own.homes}

    def check_can_be_cut(self, module: nn.Module) -> None:
        """Raise AdapterStateError if the adapter needs a weight of a module in one piece."""
        for name, members in self.updates.items():
            weight = stored(module, name)
            if weight is not None:
                check_can_be_cut(name, members, weight, self.dropout)

    def follow_plan(self, name: str, value: nn.Parameter) -> None:
        """Have the same numbers for a weight in all processes, and own tensors cut as it is."""
        numbers = [*self.updates.get(name, ()), *self.settled.get(name, ())]
        found = [x for member in numbers for x in (*member.parameters(), *member.buffers())]
        lengths = self.magnitudes.get(name)
        made_equal([*found, *(() if lengths is None else (lengths,))], value)
        own = self.own.get(name)
        if isinstance(own, nn.Parameter) and not is_sharded(own):
            made_equal([own], value)
            cut = nn.Parameter(cut_as(own.detach(), value), own.requires_grad)
            home, key = self.own.homes[name]
            home.register_parameter(key, cut)

    def note_fixed(self) -> None:
        """Note which parameters are frozen now, while others of the adapter are trained."""
        self.fixed = frozenset(k for k, p in self.named_parameters() if not p.requires_grad)

    def train_only_if(self, active: bool) -> None:
        """Let the parameters be trained or not, but for those that were fixed on purpose."""
        for name, p in self.named_parameters():
            if p.is_floating_point() or p.is_complex():
                self._let(p, trained=active and name not in self.fixed)

    def _let(self, parameter: nn.Parameter, *, trained: bool) -> None:
        if parameter.requires_grad and not trained:
            self._handles[id(parameter)] = parameter.register_hook(delivering(parameter))
        elif trained and id(parameter) in self._handles:
            self._handles.pop(id(parameter)).remove()
        parameter.requires_grad_(trained)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}, "_kept": {}}


def _changed(
    ops: Sequence[LowRankOperator],
    settled: Sequence[Frozen],
    base: Tensor | None,
    magnitude: Magnitude | None,
) -> Change:
    if settled:
        pairs = zip(ops, settled, strict=True)
        ops = [op + fixed().to(dtype=op.dtype) for op, fixed in pairs]
    if magnitude is None:
        return Change(ops)
    assert base is not None, "magnitudes are of a weight"
    return rescaled(ops, base, magnitude)


def _ready(change: Change) -> tuple[Change, tuple[Tensor, ...]]:
    lengths = [x for x in (change.rows, change.columns) if x is not None]
    tensors = (*(x for op in change.ops for x in tensors_of(op)), *lengths)
    return Change([Prepared.of(op) for op in change.ops], change.rows, change.columns), tensors


def _repeated(part: Part, member: Parameterization) -> LowRankOperator:
    """Return an update as it was when its adapter was active: with its gradients."""
    fixed = {id(p) for name, p in part.named_parameters() if name in part.fixed}
    own = {k: awake(p) for k, p in member.named_parameters() if id(p) not in fixed}
    return functional_call(member, own, ())


def _awake_of(part: Part, lengths: Tensor) -> Tensor:
    """Return magnitudes as they were when their adapter was active: with their gradients."""
    fixed = any(p is lengths and name in part.fixed for name, p in part.named_parameters())
    return awake(lengths) if isinstance(lengths, nn.Parameter) and not fixed else lengths


def safe_key(module: nn.Module, name: str) -> str:
    """Return a key for a part of a module, which takes no names of its attributes ("half")."""
    return f"{name}_" if hasattr(module, name) else name


def stored(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer of a module as it stands in the module itself."""
    for kept in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
        if name in kept:
            return kept[name]
    return None
