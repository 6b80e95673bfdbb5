"""Chain of LoRA: merge the update into the weight, start a new one, go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowrank_opt.errors import OptionError, RankError, ShapeError
from lowrank_opt.nn.adapters.present import (
    active_adapters,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    adapted_weights,
    settle,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.config import plain, unplain
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.training.forgetting import Reset, check_reset, forget
from lowrank_opt.training.ranks.step_down import step_down_


@dataclass(eq=False)
class Link:
    """A weight, the parameterization that updates it, and the updates merged so far.

    Parameters
    ----------
    weight : Tensor, shape (m, n) or (m, ...)
        Merged into in place; not trained. Taken as ``weight.flatten(1)``.
    parameterization : Parameterization, m x n
    within : (nn.Module, str), optional
        The adapted model and the name of the weight in it: then the weight is left as it is, and
        what is tied becomes the settled part of the adapter, which is saved and exported with it.
    """

    weight: Tensor
    parameterization: Parameterization
    merged: list[LowRankOperator] = field(default_factory=list[LowRankOperator])
    sets: list[FeasibleSet] = field(default_factory=list[FeasibleSet])
    within: tuple[nn.Module, str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        shape = tuple(self.weight.flatten(1).shape)
        if shape != self.parameterization.shape:
            raise ShapeError(
                f"weight and parameterization must have one shape; got {shape} and "
                f"{self.parameterization.shape}"
            )
        if not self.weight.is_floating_point():
            raise ShapeError(
                f"a weight must be floating-point to be merged into; got {self.weight.dtype}: "
                "dequantise it first"
            )
        half = torch.finfo(self.weight.dtype).bits < 32 and self.within is None
        # Deltas much smaller than the weight vanish in half precision: sum them in float32.
        self._sum = self.weight.detach().float() if half else None

    @torch.no_grad()
    def tie(self, generator: torch.Generator | None, rank: int | None = None) -> None:
        """Merge the present update and set the parameterization to its zero start.

        With a `rank`, the next link has that one.
        """
        op = self.parameterization.factors().detach().clone()
        self.merged.append(op)
        self.sets.append(self.parameterization.feasible_set)
        self._keep(op)
        if rank is None or rank == self.parameterization.rank:
            self.parameterization.zero_(generator=generator)
        else:
            step_down_(self.parameterization, rank, generator=generator)

    def _keep(self, op: LowRankOperator) -> None:
        """Add an update for good: to the weight, or to what the adapter has settled."""
        if self.within is not None:
            settle(self.within[0], self._adapted(), [op])
            return
        delta = op.to_dense().reshape(self.weight.shape)
        if self._sum is None:
            self.weight.add_(delta.to(self.weight.dtype))
        else:
            self.weight.copy_(self._sum.add_(delta))

    def _adapted(self) -> AdaptedWeight:
        assert self.within is not None, "a link outside of an adapted model has no adapter"
        model, name = self.within
        return next(
            found
            for found in adapted_weights(model)
            if found.name == name and found.updates[0] is self.parameterization
        )

    def total(self) -> LowRankOperator:
        """Return all merged updates and the present one as one operator."""
        op = self.parameterization.factors().detach()
        for previous in reversed(self.merged):
            op = previous + op
        return op

    def state(self) -> dict[str, Any]:
        """Return what was tied so far, as plain data and tensors."""
        return {
            "shape": [*self.parameterization.shape],
            "merged": [tuple(op) for op in self.merged],
            "sets": [_written(declared) for declared in self.sets],
            "sum": self._sum,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what was tied so far."""
        like = self.parameterization.factors().left.device
        merged = [LowRankOperator(*parts) for parts in state["merged"]]
        self.merged = [op.to(device=like) for op in merged]
        own = self.parameterization.feasible_set
        self.sets = [
            own if declared is None else cast("FeasibleSet", unplain(json.loads(declared)))
            for declared in state["sets"]
        ]
        if self._sum is not None and state["sum"] is not None:
            self._sum = state["sum"].to(self._sum)

    def norm_bound(self, p: float) -> float:
        """Return the sum of the links' Schatten-p norms, which bounds the norm of their sum."""
        ops = [*self.merged, self.parameterization.factors().detach()]
        return sum(float(op.schatten_norm(p)) for op in ops)


@final
class ChainOfLowRank:
    r"""Train :math:`W_0 + \sum_i \Delta W_i`, one low-rank link at a time.

    At a knot the present update is merged into the weight and the parameterization goes back to
    its zero start: the function stays the same, to the rounding of one sum in the weight's dtype
    (half-precision weights are summed in a float32 copy). The rank of the total is at most the sum
    of the ranks. If the links are bounded, so is the total: :math:`\|\sum_i \Delta W_i\| \le
    \sum_i \delta_i`, which makes a chain of unit balls a Frank-Wolfe method whose inner problem is
    solved by training instead of linearised, without its convex combination.

    Earlier links are never revised. With few observed entries, links of rank 1 fit worse than one
    of rank 3.

    Parameters
    ----------
    links : nn.Module or iterable of Link
        Of a model: all active adapters of `lowrank_opt.nn.adapt` on layers with one matrix.
    optimizer : Optimizer, optional
        Its state for the links' parameters is handled by `reset`.
    every : int, optional
        Tie a knot at every so many calls of `step`.
    knots : iterable of int
        Further numbers of calls after which to tie one.
    reset : {"all", "none"} or float
        What to forget of the optimizer's state: everything, so that step counts restart, nothing,
        or the share in (0, 1) of smallest entries of each moment, as ReLoRA does.
    ranks : iterable of int
        Of the links after each knot, never increasing; the last one stays. The paper's step-down
        goes from 8 to 2, 4 or 6. Needs ``reset="all"``: moments of other shapes have no meaning.
    generator : torch.Generator, optional
        For the new starts.

    References
    ----------
    Xia, Qin and Hazan, Chain of LoRA (arXiv 2401.04151), Algorithm 1. Pruned moments: Lialin et
    al., ReLoRA (arXiv 2307.05695), section 3.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> weight = torch.zeros(4, 3)
    >>> update = Factored((4, 3), 1)
    >>> chain = ChainOfLowRank([Link(weight, update)], every=10)
    >>> _ = update.assign(torch.ones(4, 3))
    >>> chain.tie()
    >>> round(float(weight.sum()), 4), float(update().schatten_norm(2))
    (12.0, 0.0)
    """

    def __init__(
        self,
        links: nn.Module | Iterable[Link],
        optimizer: Optimizer | None = None,
        *,
        every: int | None = None,
        knots: Iterable[int] = (),
        reset: Reset = "all",
        ranks: Iterable[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self.links: list[Link] = _links_of(links) if isinstance(links, nn.Module) else list(links)
        if not self.links:
            raise ShapeError("a chain needs at least one weight with an update; got none")
        if every is not None and every < 1:
            raise ValueError(f"every must be >= 1; got every={every!r}")
        self.optimizer: Optimizer | None
        self.every: int | None
        self.knots: frozenset[int]
        self.optimizer, self.every, self.knots = optimizer, every, frozenset(knots)
        self.reset: Reset = check_reset(reset)
        self.ranks: list[int] = _checked_ranks(list(ranks), self.links, reset)
        self.ties = 0
        self.generator = generator
        self.steps = self.last_knot = 0

    def step(self) -> bool:
        """Count an optimizer step; tie a knot if the schedule says so, and return whether it did.

        Call it after the optimizer's step, never inside a window of accumulated gradients.
        """
        self.steps += 1
        due = self.every is not None and self.steps % self.every == 0
        if due or self.steps in self.knots:
            self.tie()
            return True
        return False

    def tie(self) -> None:
        """Merge every link, start anew, and reset the optimizer's state."""
        rank = self.ranks[min(self.ties, len(self.ranks) - 1)] if self.ranks else None
        self.ties += 1
        for link in self.links:
            link.tie(self.generator, rank)
            for parameter in link.parameterization.parameters():
                parameter.grad = None
                if self.optimizer is not None:
                    forget(self.optimizer, parameter, self.reset)
        self.last_knot = self.steps

    def state_dict(self) -> dict[str, object]:
        """Return counts, what was tied, and the generator's state, for `torch.save`.

        Parameters and weights are the model's, moments the optimizer's: save those with it.
        """
        return {
            "steps": self.steps,
            "last_knot": self.last_knot,
            "ties": self.ties,
            "generator": None if self.generator is None else self.generator.get_state(),
            "links": [link.state() for link in self.links],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, on a model that has the weights and parameters of that moment.

        Raises
        ------
        ShapeError
            If the state is of other links. Nothing is changed.
        """
        shapes = [tuple(held["shape"]) for held in state["links"]]
        own = [link.parameterization.shape for link in self.links]
        if shapes != own:
            raise ShapeError(f"a chain's state must be of its links, {own}; got {shapes}")
        self.steps: int
        self.last_knot: int
        self.steps, self.last_knot = int(state["steps"]), int(state["last_knot"])
        self.ties: int = int(state["ties"])
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        for link, held in zip(self.links, state["links"], strict=True):
            link.load(held)

    def warmup(self, steps: int) -> float:
        """Return a factor for the learning rate: up to 1 over `steps` steps from the last knot."""
        return min(1.0, (self.steps - self.last_knot + 1) / max(steps, 1))


def _written(declared: FeasibleSet) -> str | None:
    """Return a set as text, or None if it has tensors, which are those of the parameterization."""
    try:
        text = json.dumps(plain(declared))
    except OptionError:
        return None
    return None if '"tensor"' in text or '"operator"' in text else text


def _checked_ranks(ranks: list[int], links: list[Link], reset: Reset) -> list[int]:
    if not ranks:
        return ranks
    least = min(link.parameterization.rank for link in links)
    if ranks != sorted(ranks, reverse=True) or not 1 <= ranks[-1] <= ranks[0] <= least:
        raise RankError(
            f"ranks of a chain must not increase, from at most {least}; got ranks={ranks}"
        )
    if reset != "all":
        raise RankError(f"ranks need reset='all'; got reset={reset!r}")
    return ranks


def _links_of(model: nn.Module) -> list[Link]:
    found: list[Link] = []
    active = active_adapters(model) if adapted_weights(model) else {}
    for adapted in adapted_weights(model, active, tied=False):
        if len(adapted.updates) != 1:
            raise ShapeError(
                f"a chain ties one matrix for each weight; {adapted.name!r} has "
                f"{len(adapted.updates)}: pass its parts as Link objects"
            )
        found.append(Link(adapted.slot.parameter, adapted.updates[0], within=(model, adapted.name)))
    return found
