"""Which adapters are active: one, a stack of several, or another one for each sample."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from torch import nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapted import check_not_merged
from lowrank_opt.nn.sites import type_name
from lowrank_opt.nn.surgery import check_known, wrappers


def switch(model: nn.Module, *names: str) -> None:
    """Make the named adapters the active ones; several are stacked: their updates add.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    *names : str
        None at all gives the base model.

    Raises
    ------
    AdapterStateError
        If the model has no such adapter, or is merged.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> model = adapt(model, lambda shape: Factored(shape, 2), targets=".*", name="b")
    >>> switch(model, "a", "b")
    """
    found = wrappers(model)
    check_not_merged(found, "switch")
    check_known(model, names)
    for wrapper in found:
        wrapper.active = tuple(dict.fromkeys(names))


@contextmanager
def per_sample(model: nn.Module, names: Sequence[str | None]) -> Generator[None]:
    """Use another adapter for each entry of axis 0 of every adapted layer's input.

    Parameters
    ----------
    model : nn.Module
        Adapted in layers whose update is additive: linear, embedding, convolution.
    names : sequence of str or None
        One for each sample; None stands for the base model.

    Raises
    ------
    TargetError
        If an adapted layer needs dense weights (attention, recurrent layers, bare parameters).
    AdapterStateError
        If the model has no such adapter, or is merged.
    ShapeError
        Inside the block, if a layer's input has another number of samples.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> with per_sample(model, ["a", None, "a"]):
    ...     y = model(torch.ones(3, 4))
    """
    found = wrappers(model)
    check_not_merged(found, "per_sample")
    check_known(model, [name for name in names if name is not None])
    dense = {type_name(type(w.base)) for w in found if w.kind.update is None}
    if dense:
        raise TargetError(
            "per_sample needs layers with an additive update; got adapted "
            f"{sorted(dense)}: run the model once for each adapter"
        )
    for wrapper in found:
        wrapper.routing = tuple(names)
    try:
        yield
    finally:
        for wrapper in found:
            wrapper.routing = None
