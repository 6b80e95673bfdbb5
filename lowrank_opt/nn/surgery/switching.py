"""Which adapters are active: one, a stack of several, or another one for each sample."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.change import fits
from lowrank_opt.nn.adapters.part import Part, stored
from lowrank_opt.nn.adapters.present import (
    check_known,
    check_not_merged,
    record_of,
)
from lowrank_opt.nn.adapters.record import Routing, as_weights
from lowrank_opt.nn.adapters.slots import (
    every_slot,
    join,
)
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.kinds import kind_of, original_type, type_name
from lowrank_opt.nn.basis.sharded import is_fully_sharded, is_sharded
from lowrank_opt.nn.surgery.install import follow
from lowrank_opt.nn.surgery.own import differs


def switch(model: nn.Module, *names: str | Mapping[str, float], lead: str | None = None) -> None:
    r"""Make the named adapters the active ones; several are stacked: their updates add.

    The base model gets :math:`W_0 + \sum_a w_a \Delta W_a`. Modules and buffers that an adapter
    has of its own come from one adapter alone, whole, whatever its weight.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    *names : str, or one mapping from names to weights
        None at all gives the base model.
    lead : str, optional
        The active adapter whose own modules and buffers count, where several have other ones.

    Raises
    ------
    AdapterStateError
        If the model has no such adapter, or is merged; if two of the adapters have modules or
        buffers of their own that differ, and there is no `lead`.
    OptionError
        If a weight is not finite, or a mapping is not the only argument.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> model = adapt(model, lambda shape: Factored(shape, 2), targets=".*", name="b")
    >>> switch(model, "a", "b")
    >>> switch(model, {"a": 0.7, "b": 0.3})
    """
    chosen = names[0] if len(names) == 1 and isinstance(names[0], Mapping) else names
    if not isinstance(chosen, Mapping) and not all(isinstance(name, str) for name in chosen):
        raise OptionError(f"switch takes names, or one mapping to weights; got {names!r}")
    weights = as_weights(chosen)  # pyright: ignore[reportArgumentType]
    check_known(model, [name for name, _ in weights])
    check_not_merged(model, "switch")
    check_lead(model, [name for name, _ in weights], lead)
    record_of(model).set(active=weights, lead=lead)
    follow(model)


def check_lead(model: nn.Module, names: Sequence[str], lead: str | None) -> None:
    """Raise AdapterStateError unless it is clear whose own tensors count."""
    if lead is not None:
        if lead not in names:
            raise AdapterStateError(
                f"the lead must be one of the adapters; got lead={lead!r} for {list(names)}"
            )
        return
    for slot in every_slot(model):
        parts = [] if slot.store is None else [slot.store.part(name) for name in names]
        several = [part for part in parts if part is not None]
        for key in dict.fromkeys(key for part in several for key in part.own.homes):
            if not _agree(slot.module, key, several):
                raise AdapterStateError(
                    f"one adapter's own modules and buffers can count; {join(slot.name, key)} "
                    f"differs between {list(names)}: pass lead=, the name of the one"
                )


def _agree(module: nn.Module, key: str, parts: Sequence[Part]) -> bool:
    own = [found for part in parts if (found := part.own.get(key)) is not None]
    if not own:
        return True
    if isinstance(own[0], nn.Parameter):
        return len(own) == 1
    return not any(differs(x, own[0]) for x in own[1:])


@contextmanager
def per_sample(
    model: nn.Module, names: Sequence[str | None], *, axis: int | None = None
) -> Generator[None]:
    """Use another adapter for each sample of a batch.

    Blocks may be nested: the innermost counts.

    Parameters
    ----------
    model : nn.Module
        Adapted in layers whose update is additive: linear, embedding, convolution.
    names : sequence of str or None
        One for each sample; None stands for the base model.
    axis : int, optional
        Of the samples in the inputs of all adapted layers. By default 0, provided that no other
        axis has as many entries.

    Raises
    ------
    TargetError
        If an adapted layer needs dense weights (attention, recurrent layers, bare parameters,
        magnitudes of a weight that is tied to one with outputs on the other side).
    AdapterStateError
        If the model has no such adapter, or is merged; if one of them has modules of its own, or
        buffers that differ from the base model's. Inside the block, if a module reads the weight
        of an adapted layer instead of calling it.
    ShapeError
        Inside the block, if a layer's input has another number of samples, or two axes of it
        have as many.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> with per_sample(model, ["a", None, "a"]):
    ...     y = model(torch.ones(3, 4))
    """
    record = record_of(model)
    check_not_merged(model, "per_sample")
    _check_no_plan(model)
    used = list(dict.fromkeys(name for name in names if name is not None))
    check_known(model, used)
    if axis is not None and (isinstance(axis, bool) or axis < 0):
        raise OptionError(f"axis must be a nonnegative integer; got {axis!r}")
    dense = {
        type_name(original_type(found.slot.layer.module))
        for found in adapted_weights(model)
        if not _adds(found, found.adapter in used)
    }
    if dense:
        raise TargetError(
            "per_sample needs layers with an additive update; got adapted "
            f"{sorted(dense)}: run the model once for each adapter"
        )
    _check_no_own(model, used)
    routing = Routing(tuple(names), axis)
    record.set(routings=(*record.state.routings, routing))
    hook = model.register_forward_pre_hook(_noting(routing), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        record.set(routings=tuple(r for r in record.state.routings if r is not routing))


def _check_no_plan(model: nn.Module) -> None:
    """Raise AdapterStateError if a plan of tensor parallelism has cut adapted weights."""
    cut = [x.name for x in adapted_weights(model) if is_sharded(x.slot.parameter)]
    if cut and not is_fully_sharded(model):
        raise AdapterStateError(
            "per_sample takes rows of whole activations; a plan of tensor parallelism has cut "
            f"{cut[0]!r}: run the model once for each adapter"
        )


def _adds(found: AdaptedWeight, used: bool) -> bool:
    """Whether a layer adds what an adapter changes to its output, magnitudes too if it is used."""
    side = found.magnitude.side if used and found.magnitude is not None else None
    return fits(kind_of(found.slot.layer.module), side)


def _noting(routing: Routing):  # noqa: ANN202
    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = (*args, *kwargs.values())
        routing.inputs[:] = [tuple(x.shape) for x in given if isinstance(x, Tensor)]

    return note


def _check_no_own(model: nn.Module, names: Sequence[str]) -> None:
    for module, store in adapted_modules(model):
        for part in (store.part(name) for name in names):
            for key in () if part is None else part.own.homes:
                own, base = part.own.get(key), stored(module, key)  # pyright: ignore[reportOptionalMemberAccess]
                assert own is not None
                if isinstance(own, nn.Parameter) or base is None or differs(own, base):
                    raise AdapterStateError(
                        f"per_sample needs adapters of updates alone; one of {list(names)} has a "
                        f"{key!r} of its own in a {type(module).__name__}: run the model once "
                        "for each adapter"
                    )
