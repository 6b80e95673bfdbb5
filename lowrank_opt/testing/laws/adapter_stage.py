"""What is played with: the operations on adapters, and the kinds of models."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from lowrank_opt import nn as adapters
from lowrank_opt.testing.cases.adapter_book import Inputs


@dataclass(frozen=True)
class Operations:
    """What is done to models; those of `lowrank_opt.nn`, or others to be checked against them."""

    adapt: Callable[..., nn.Module] = adapters.adapt
    switch: Callable[..., None] = adapters.switch
    combine: Callable[..., None] = adapters.combine
    remove: Callable[..., nn.Module] = adapters.remove_adapter
    merge: Callable[..., None] = adapters.merge
    unmerge: Callable[..., None] = adapters.unmerge
    disabled: Callable[..., AbstractContextManager[None]] = adapters.disabled
    per_sample: Callable[..., AbstractContextManager[None]] = adapters.per_sample
    save: Callable[..., None] = adapters.save_adapter
    load: Callable[..., nn.Module] = adapters.load_adapter
    export_peft: Callable[..., object] = adapters.export_peft
    import_peft: Callable[..., nn.Module] = adapters.import_peft


@dataclass(frozen=True)
class Stage:
    """A kind of model that is played with.

    Attributes
    ----------
    build : callable
        Returns a new base model, always the same.
    inputs : tuple of Tensor
    targets : str
        What is adapted.
    heads : str
        What an adapter may train as it is; "" for nothing.
    has_inputs : bool
        Whether each adapted layer adds its update to its output, so that the update's input may
        have dropout.
    cut : callable, optional
        Cuts a model among the processes that play it together.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    targets: str
    heads: str = ""
    has_inputs: bool = False
    cut: Callable[[nn.Module], nn.Module] | None = None

    def enter(self) -> nn.Module:
        """Return a new base model, cut among processes if that is how it is played with."""
        model = self.build()
        return model if self.cut is None else self.cut(model)


def whole(x: Tensor) -> Tensor:
    """Return a tensor in one piece; all processes that have parts of it take part."""
    full = getattr(x, "full_tensor", None)
    return x if full is None else full()


def can_be_pickled(model: nn.Module) -> bool:
    """Whether torch pickles a model of this kind, which it refuses under parametrizations."""
    try:
        pickle.dumps(model)
    except RuntimeError:
        return False
    return True
