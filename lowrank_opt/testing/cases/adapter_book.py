"""What an adapted model must compute, kept in a dictionary: ``F(x; W0 + dW, heads, buffers)``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

Inputs = tuple[Tensor, ...]


@dataclass
class Page:
    """One adapter: dense updates, modules and buffers of its own, by names in the base model.

    Attributes
    ----------
    updates, heads, buffers : dict of Tensor
    lengths : dict of Tensor
        Of the rows or columns of weights plus their updates, shaped to multiply matrices.
    dropout : float
    """

    updates: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    heads: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    buffers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    lengths: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    dropout: float = 0.0

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Page:
        """Return a page with a function applied to all numbers."""
        parts = (self.updates, self.heads, self.buffers, self.lengths)
        updates, heads, buffers, lengths = (
            {key: function(x) for key, x in part.items()} for part in parts
        )
        return Page(updates, heads, buffers, lengths, self.dropout)

    def copied(self) -> Page:
        """Return a page of the same numbers."""
        return self.mapped(torch.Tensor.clone)

    def change(self, key: str, weight: Tensor) -> Tensor:
        """Return what the adapter adds to a weight."""
        total = weight + self.updates[key]
        if key not in self.lengths:
            return self.updates[key]
        lengths = self.lengths[key]
        matrices = total.reshape(
            len(lengths), -1, total[0].numel() if len(lengths) == 1 else total.shape[-1]
        )
        axis = 1 if lengths.shape[1:] == (1, matrices.shape[2]) else 2
        sizes = matrices.square().sum(axis, keepdim=True).sqrt()
        return (lengths * matrices / sizes.where(sizes > 0, 1.0)).reshape(weight.shape) - weight


@dataclass
class Book:
    """A base model, pages of adapters, and which of them count.

    Attributes
    ----------
    base : nn.Module
        Plain and never written to.
    pages : dict of Page
    active, merged : dict of float
        Adapters with their weights; merged is None for a model that is not.
    disabled : int
        Open blocks in which the base model computes.
    routings : list of list of str or None
        Of open blocks in which each sample has an adapter of its own.
    """

    base: nn.Module
    pages: dict[str, Page] = field(default_factory=dict[str, Page])
    active: dict[str, float] = field(default_factory=dict[str, float])
    merged: dict[str, float] | None = None
    disabled: int = 0
    routings: list[list[str | None]] = field(default_factory=list[list[str | None]])

    @property
    def chosen(self) -> dict[str, float]:
        """The adapters that count now."""
        if self.disabled:
            return {}
        return self.active if self.merged is None else self.merged

    def tensors(self, chosen: Mapping[str, float]) -> dict[str, Tensor]:
        """Return all tensors with which the base model computes, by their names."""
        found = {**_tensors(self.base)}
        for name in chosen:
            found |= self.pages[name].heads | self.pages[name].buffers
        changes = [
            (key, weight * self.pages[name].change(key, found[key]))
            for name, weight in chosen.items()
            for key in self.pages[name].updates
        ]
        for key, change in changes:
            found[key] = found[key] + change
        return found

    @torch.no_grad()
    def output(self, inputs: Inputs, chosen: Mapping[str, float] | None = None) -> Tensor:
        """Return what the model must compute, evaluating."""
        if chosen is None and self.routings and not self.disabled:
            return self.of_each(self.routings[-1], inputs)
        used = self.chosen if chosen is None else chosen
        return call(self.base.eval(), self.tensors(used), inputs)

    def of_each(self, names: Sequence[str | None], inputs: Inputs) -> Tensor:
        """Return what the samples must be, each with an adapter of its own."""
        rows = [
            self.output(inputs, {} if name is None else {name: 1.0})[i]
            for i, name in enumerate(names)
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def move_buffers(self, inputs: Inputs) -> None:
        """Move the buffers that count as one call in training mode does."""
        tensors = self.tensors(self.chosen)
        model, names = copy.deepcopy(self.base).train(), [k for k, _ in self.base.named_buffers()]
        for key, buffer in model.named_buffers():
            buffer.copy_(tensors[key])
        call(model, {key: x for key, x in tensors.items() if key not in names}, inputs)
        moved = dict(model.named_buffers())
        lead = next((n for n in reversed(self.chosen) if self.pages[n].buffers), None)
        kept = dict(self.base.named_buffers()) if lead is None else self.pages[lead].buffers
        for key, buffer in kept.items():
            buffer.copy_(moved[key])

    def agree(self, names: Mapping[str, float]) -> bool:
        """Whether it is clear whose heads and buffers count, if these adapters do."""
        heads = [key for name in names for key in self.pages[name].heads]
        buffers = [self.pages[name].buffers for name in names]
        same = all(
            torch.equal(x, buffers[0][key]) for other in buffers[1:] for key, x in other.items()
        )
        return len(heads) == len(set(heads)) and same

    def converted(self, dtype: torch.dtype) -> Book:
        """Return the book with all its numbers in another dtype."""
        pages = {n: page.mapped(lambda x: _to(x, dtype)) for n, page in self.pages.items()}
        base = copy.deepcopy(self.base).to(dtype)
        return Book(base, pages, dict(self.active), self.merged, self.disabled, self.routings)


def call(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the output of a model with other tensors; the first one, if there are several."""
    # Ties are replaced by name, each place with its own value.
    y = functional_call(model, dict(tensors), inputs, tie_weights=False)
    return y[0] if isinstance(y, tuple) else y


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    own = dict(model.named_parameters(remove_duplicate=False))
    return {**{k: p.detach() for k, p in own.items()}, **dict(model.named_buffers())}


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
