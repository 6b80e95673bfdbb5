"""The record of an adapted model: which adapters it has, and which of them count now.

Everything else - what a layer computes, which parameters are trained, what is written to a folder -
is derived from it. A transition prepares all that may fail and then replaces the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeAlias
from weakref import WeakSet

from torch import nn

from lowrank_opt.errors import OptionError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization

Weights: TypeAlias = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Routing:
    """Which adapter each sample uses, and along which axis of a layer's input the samples are."""

    names: tuple[str | None, ...]
    axis: int | None = None
    # Shapes of what the model was called with last.
    inputs: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]], compare=False)


@dataclass(frozen=True)
class State:
    """What is true of the adapters of a model at one moment.

    Attributes
    ----------
    names : tuple of str
        All adapters, in the order they came.
    active : pairs of an adapter and its weight
        Their updates are added to the base weights; none gives the base model.
    merged : pairs of an adapter and its weight, or None
        Adapters whose updates stand summed in the layers; the active ones do not count then.
    lead, merged_lead : str, optional
        The only adapter whose own modules and buffers count, where several are active or merged.
    disabled : int
        How many blocks of `disabled` are open; in one of them the base model computes.
    routings : tuple of Routing
        Of the open blocks of `per_sample`; the innermost counts.
    """

    names: tuple[str, ...] = ()
    active: Weights = ()
    merged: Weights | None = None
    lead: str | None = None
    merged_lead: str | None = None
    disabled: int = 0
    routings: tuple[Routing, ...] = ()

    @property
    def chosen(self) -> Weights:
        """The adapters that count, whether their updates are summed already or not."""
        if self.disabled:
            return ()
        return self.active if self.merged is None else self.merged

    @property
    def leading(self) -> str | None:
        """The lead that counts."""
        return self.lead if self.merged is None else self.merged_lead

    @property
    def routing(self) -> Routing | None:
        """The routing that counts."""
        return self.routings[-1] if self.routings and not self.disabled else None

    def outside_blocks(self) -> State:
        """Return the state as it is when every open block has ended."""
        return replace(self, disabled=0, routings=())


class Evaluator(Protocol):
    """What may have the factors of an update, evaluated with those of others."""

    def factors(self, update: Parameterization) -> LowRankOperator | None:
        """Return factors, or None if the update is to be evaluated by itself."""
        ...

    def finish(self) -> None:
        """Note the end of the pass."""
        ...


class Forgettable(Protocol):
    """What was found out about a model in some state."""

    def forget(self) -> None:
        """Find it out again, when it is needed."""
        ...


class Record:
    """The state that all layers of one adapted model share.

    A copy, by `copy.deepcopy` or `pickle`, is outside of the blocks that are open for the original.
    """

    def __init__(self, state: State | None = None) -> None:
        self.state = State() if state is None else state
        self.modules: WeakSet[nn.Module] = WeakSet()
        # While the model that was adapted is called.
        self.passing: Evaluator | None = None
        # What is evaluated together in it.
        self.alike: Forgettable | None = None
        self._seen: list[State] = []
        self._repeated = False

    def see(self, state: State) -> None:
        """Note a state in which layers were called, forwards."""
        if self._repeated:
            self._seen, self._repeated = [], False
        if not self._seen or self._seen[-1] is not state:
            self._seen.append(state)

    def only_seen(self, ambiguous: Callable[[], Exception]) -> State:
        """Return the one state that was seen since the last backward pass, or raise."""
        self._repeated = True
        states = set(self._seen)
        if len(states) > 1:
            raise ambiguous()
        return states.pop() if states else self.state

    def set(self, **changes: object) -> None:
        """Replace parts of the state, at once."""
        if self.alike is not None:
            self.alike.forget()
        self.state: State = replace(self.state, **changes)  # pyright: ignore[reportArgumentType]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(self.state.outside_blocks())

    def __getstate__(self) -> State:
        return self.state.outside_blocks()

    def __setstate__(self, state: State) -> None:
        self.__init__(state)


def as_weights(chosen: Iterable[str] | Mapping[str, float]) -> Weights:
    """Return adapters with their weights, each once; names without weights count as 1.

    Raises
    ------
    OptionError
        If a weight is not a finite number.

    Examples
    --------
    >>> as_weights(["a", "b", "a"]), as_weights({"a": 0.5})
    ((('a', 1.0), ('b', 1.0)), (('a', 0.5),))
    """
    if not isinstance(chosen, Mapping):
        return tuple((name, 1.0) for name in dict.fromkeys(chosen))
    for name, weight in chosen.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise OptionError(f"an adapter's weight must be a number; got {weight!r} for {name!r}")
        if not math.isfinite(weight):
            raise OptionError(f"an adapter's weight must be finite; got {weight!r} for {name!r}")
    return tuple((name, float(weight)) for name, weight in chosen.items())


def names_of(weights: Weights) -> Sequence[str]:
    """Return the adapters without their weights."""
    return [name for name, _ in weights]
