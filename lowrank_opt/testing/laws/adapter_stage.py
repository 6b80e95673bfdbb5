"""What is played with: the operations on adapters, and the kinds of models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

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
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    targets: str
    heads: str = ""
    has_inputs: bool = False
