"""Vectors of which each process has some numbers of its own: products, and states of minimizers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_opt.completion.loop.checkpoint import State, own_lines
from lowrank_opt.observations.part import Part

_DOT, _SUM, _LARGEST = (
    torch.ops.aten.dot.default,
    torch.ops.aten.sum.default,
    torch.ops.aten.max.default,
)
_PARTS = "parts"


class SpreadVector:
    """How variables lie in one vector, and which are rows of this process.

    Parameters
    ----------
    variables : sequence of Tensor
    own : sequence of bool
        Which of them other processes have other lines of.
    part : Part or None

    Examples
    --------
    >>> vector = SpreadVector([torch.ones(2, 1), torch.ones(3)], [False, False], None)
    >>> x = torch.arange(5.0)
    >>> float(vector.dot(x, x)), float(vector.largest(x))
    (30.0, 4.0)
    """

    def __init__(
        self, variables: Sequence[Tensor], own: Sequence[bool], part: Part[Any] | None
    ) -> None:
        self.shapes: list[torch.Size] = [x.shape for x in variables]
        self.own: list[bool] = list(own)
        self.part: Part[Any] | None = part if any(self.own) else None
        ends = [0, *accumulate(shape.numel() for shape in self.shapes)]
        self.size: int = ends[-1]
        self.spans: list[slice] = [slice(a, b) for a, b in pairwise(ends)]

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inner product of two vectors, float64."""
        return self.total(x * y)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of all numbers of a vector."""
        if self.part is None:
            return x.sum()
        own, all_have = self._by_owner(x)
        return self.part.total(own.sum()) + all_have.sum()

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest number of a vector."""
        return x.max() if self.part is None else self.part.largest(x.max())

    def agreed(self, *, here: bool) -> bool:
        """Return whether something is so in all processes."""
        if self.part is None:
            return here
        return not bool(self.part.largest(torch.tensor(float(not here))))

    @contextmanager
    def reducing(self) -> Generator[_Reducing | None]:
        """Let inner products, sums and maxima of whole vectors be those over all processes."""
        if self.part is None:
            yield None
            return
        with _Reducing(self) as mode:
            yield mode

    def apart(self, state: State) -> State:
        """Return a state with its vectors cut into variables, rows of this process marked."""
        if self.part is None:
            return state
        if isinstance(state, Tensor) and state.shape == (self.size,):
            pieces = zip(self.shapes, self.spans, self.own, strict=True)
            parts = [(state[span].reshape(shape), own) for shape, span, own in pieces]
            return {_PARTS: [own_lines(x) if own else x for x, own in parts]}
        if isinstance(state, dict):
            return {k: self.apart(x) for k, x in state.items()}
        if isinstance(state, list | tuple):
            return [self.apart(x) for x in state]
        return state

    def joined(self, state: State) -> State:
        """Return a state with its vectors whole again."""
        if isinstance(state, dict):
            if [*state] == [_PARTS]:
                return torch.cat([x.reshape(-1) for x in state[_PARTS]])
            return {k: self.joined(x) for k, x in state.items()}
        return [self.joined(x) for x in state] if isinstance(state, list) else state

    def _by_owner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        none = x[:0]
        pieces = list(zip(self.spans, self.own, strict=True))
        own, all_have = (
            torch.cat([none, *(x[span] for span, of in pieces if of is wanted)])
            for wanted in (True, False)
        )
        return own, all_have


class _Reducing(TorchDispatchMode):
    """What torch's L-BFGS computes of its vectors, over all processes."""

    def __init__(self, vector: SpreadVector) -> None:
        super().__init__()
        self.vector, self.paused = vector, False

    def __torch_dispatch__(
        self,
        func: object,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        vector = self.vector
        whole = not self.paused and func in (_DOT, _SUM, _LARGEST)
        if whole and args[0].shape == (vector.size,):
            if func is _DOT:
                return vector.dot(*args)
            return vector.total(*args) if func is _SUM else vector.largest(*args)
        assert callable(func), "an operation"
        return func(*args, **(kwargs or {}))
