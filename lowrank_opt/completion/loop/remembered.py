"""Generators of iterates that go on from a checkpoint, because they write down where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeAlias, TypeVar

from lowrank_opt.completion.loop.checkpoint import State

T = TypeVar("T")

# What a generator goes on from, by name: a `State`, whole at every iterate.
Memory: TypeAlias = dict[str, Any]


class Remembered(Iterator[T], Generic[T]):
    """Iterates of a generator that can begin again at any of them.

    Parameters
    ----------
    make : callable
        From a memory to iterates. It begins where the memory says, or at its start if that is
        empty, and writes into it before each iterate what it needs to make this one again.

    Examples
    --------
    >>> def halved(memory):
    ...     x = memory.get("x", 8.0)
    ...     while True:
    ...         memory["x"] = x
    ...         yield x
    ...         x = x / 2
    >>> first, again = Remembered(halved), Remembered(halved)
    >>> next(first), next(first)
    (8.0, 4.0)
    >>> again.resume(first.state())
    >>> next(first), next(again)
    (2.0, 2.0)
    """

    def __init__(self, make: Callable[[Memory], Iterator[T]]) -> None:
        self.make: Callable[[Memory], Iterator[T]] = make
        self.memory: Memory = {}
        self.iterates: Iterator[T] = make(self.memory)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self.iterates)

    def state(self) -> State:
        """Return the memory, for a `Checkpoint`."""
        return dict(self.memory)

    def resume(self, state: State) -> None:
        """Go on after the iterate of a state."""
        assert isinstance(state, dict), "as `state` returned it"
        self.memory = dict(state)
        self.iterates = self.make(self.memory)
        # The one that was seen already.
        _ = next(self.iterates)
