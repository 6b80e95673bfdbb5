"""HeteroLoRA: which modules have an update at all, chosen once or again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.training.forgetting import forget
from lowrank_opt.training.ranks.budget import choose_modules
from lowrank_opt.training.ranks.importance import tangent_norm
from lowrank_opt.training.roles import FactorPair, factor_pairs


@final
class ModuleAllocator:
    r"""Switch on `count` of a model's updates, those that score highest on a few batches.

    :math:`y = W_0 x + e_l\, \Delta W_l x` with :math:`e_l \in \{0, 1\}` and exactly `count` ones.
    `reallocate` switches all updates on, scores them by their gradients and keeps the best; called
    once before training it is the static mode, called every so many steps the dynamic one. An
    update that is off adds nothing, keeps its parameters and has no gradient; when it comes back,
    the optimizer has forgotten it. Shortcuts (`lowrank_opt.nn.add_shortcut`) are candidates like
    any other update.

    Parameters
    ----------
    model : nn.Module
        With pairs of factors; all of them are on at first.
    count : int
        At least 1; HeteroLoRA keeps a quarter.
    score : callable
        Of a pair with gradients: `tangent_norm`, `grad_norm` (GRAD-NORM) or `snip_score` (SNIP).
        At a zero start SNIP is zero for every pair, and decides nothing.
    optimizer : Optimizer, optional
        Whose state of an update that comes back is forgotten.
    generator : torch.Generator, optional
        Breaks ties.

    Raises
    ------
    ShapeError
        If `count` is not in 1 to the number of updates.

    References
    ----------
    HeteroLoRA, Unlocking the Global Synergies in Low-Rank Adapters (arXiv 2406.14956), section 3.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> _ = adapt(model, lambda shape: Factored(shape, 1), targets="all-linear")
    >>> allocator = ModuleAllocator(model, 1)
    >>> allocator.reallocate(lambda: model(torch.ones(1, 4)).square().sum())
    >>> sum(allocator.on), allocator.frequency == [int(x) for x in allocator.on]
    (1, True)
    """

    def __init__(
        self,
        model: nn.Module,
        count: int,
        *,
        score: Callable[[FactorPair], float] = tangent_norm,
        optimizer: Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.pairs: list[FactorPair] = factor_pairs(model)
        if not 1 <= count <= len(self.pairs):
            raise ShapeError(
                f"count must be in 1..{len(self.pairs)}, the number of updates; got count={count!r}"
            )
        parts = [x for x in model.modules() if isinstance(x, Parameterization)]
        owners = {id(getattr(x, "left", None)): x for x in parts}
        self._parts = [owners[id(pair.left)] for pair in self.pairs]
        self.count: int
        self.score: Callable[[FactorPair], float]
        self.count, self.score = count, score
        self.optimizer: Optimizer | None
        self.generator: torch.Generator | None
        self.optimizer, self.generator = optimizer, generator
        self.on = [True] * len(self.pairs)
        self.frequency = [0] * len(self.pairs)
        self._hooks: dict[int, RemovableHandle] = {}

    def reallocate(self, loss: Callable[[], Tensor], *, batches: int = 1) -> None:
        """Score every update on the summed gradients of some batches, and keep the best.

        Gradients of the updates are gone afterwards; other parameters keep theirs.

        Parameters
        ----------
        loss : callable
            Evaluates the model on the next batch, and returns a scalar.
        batches : int
        """
        self._switch([True] * len(self.on))
        factors = [x for pair in self.pairs for x in (pair.left, pair.right)]
        for x in factors:
            x.grad = None
        for _ in range(batches):
            gradients = torch.autograd.grad(loss(), factors, allow_unused=True)
            for x, g in zip(factors, gradients, strict=True):
                g = torch.zeros_like(x) if g is None else g
                x.grad = g if x.grad is None else x.grad + g
        scores = [self.score(pair) for pair in self.pairs]
        for x in factors:
            x.grad = None
        self._switch(choose_modules(scores, self.count, generator=self.generator))
        self.frequency: list[int] = [
            n + chosen for n, chosen in zip(self.frequency, self.on, strict=True)
        ]

    def finish(self) -> None:
        """Set updates that are off to their zero start, so that the model no longer needs this."""
        off = [part for part, on in zip(self._parts, self.on, strict=True) if not on]
        self._switch([True] * len(self.on))
        for part in off:
            part.zero_(generator=self.generator)

    def state_dict(self) -> dict[str, list[Any]]:
        """Return which updates are on, and how often each was; the factors are the model's."""
        return {"on": list(self.on), "frequency": list(self.frequency)}

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Go on from a state.

        Raises
        ------
        ShapeError
            If it is of another number of updates. Nothing is changed.
        """
        if not len(state["on"]) == len(state["frequency"]) == len(self.on):
            raise ShapeError(
                f"an allocator's state must fit its {len(self.on)} updates; got one of "
                f"{len(state['on'])}: load that of this model"
            )
        self._switch([bool(x) for x in state["on"]])
        self.frequency = [int(x) for x in state["frequency"]]

    def _switch(self, on: list[bool]) -> None:
        for index, (part, before, now) in enumerate(zip(self._parts, self.on, on, strict=True)):
            if before != now:
                self._turn(index, part, on=now)
        self.on: list[bool] = list(on)

    def _turn(self, index: int, part: Parameterization, *, on: bool) -> None:
        part.requires_grad_(on)
        if not on:
            self._hooks[index] = part.register_forward_hook(_silence)
            return
        self._hooks.pop(index).remove()
        for parameter in part.parameters():
            parameter.grad = None
            if self.optimizer is not None:
                forget(self.optimizer, parameter)


def _silence(module: nn.Module, args: object, op: LowRankOperator) -> LowRankOperator:
    return LowRankOperator(op.left, torch.zeros_like(op.scale), op.right)
