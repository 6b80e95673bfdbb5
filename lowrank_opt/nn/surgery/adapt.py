"""Put adapters into a model; all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    every_slot,
    is_finite,
    layer_slots,
    owners,
)
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.cut import made_equal
from lowrank_opt.nn.basis.planned import check_can_be_cut, check_is_matrix
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.nn.surgery.extras import check_extras, first_magnitudes
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make, Options, Radius
from lowrank_opt.nn.surgery.own import check_apart, own_buffers, own_modules, own_parameters
from lowrank_opt.nn.surgery.targets import Targets, candidates, matches, select
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Offset, Parameterization


def adapt(
    model: nn.Module,
    make: Make,
    *,
    targets: Targets,
    exclude: str | Sequence[str] = (),
    name: str = "default",
    radius: Radius | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    radius_pattern: Mapping[str, Radius] | None = None,
    modules_to_train: str | Sequence[str] = (),
    magnitude: bool = False,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Add a low-rank update to chosen weights of a model, in place.

    Every adapted weight computes with :math:`W_0 + \Delta W`. The layers stay what they are: the
    same objects, under the same names, with the base weights in them, which are frozen and never
    written to. The start is :math:`\Delta W = 0` exactly: a parameterization that starts
    elsewhere is wrapped in `Offset`, except for `ETHER`, which would be no reflection then. Weights
    that are tied stay tied: every place that uses an adapted weight gets the same update, from one
    parameterization. Buffers, such as the running
    statistics of a normalisation, are the adapter's own from here on. After any error the model
    is what it was.

    Parameters
    ----------
    model : nn.Module
    make : function of a shape
        Returns a new parameterization for a weight of that shape: ``weight.flatten(1)`` for the
        layers that torch registers, one for each matrix of a bare parameter of more axes.
        Converted to the device of the weight, and to float32 or better. If it has arguments of
        these names besides, it gets ``weight=``, the matrix, ``name=`` of the weight in the model,
        and ``generator=``.
    targets : str, sequence of str, or function of (name, module or parameter)
        Regular expressions for names or for the end of names after a dot; ``"all-linear"``: every
        linear layer and attention, but for the output layer that a model of transformers tells and
        for `modules_to_train`; or a predicate. Names are those of layers, and of parameters for
        layers that need dense weights. A layer of a known kind that is named, and cannot be
        adapted, is an error, unless it is excluded.
    exclude : str or sequence of str
        Regular expressions for what is left alone.
    name : str
        Of the adapter; it becomes the active one. A second name adds a second adapter. Those
        that are not active are not trained.
    radius : float or RelativeRadius, optional
        Passed to `make` as ``radius=``.
    rank_pattern, radius_pattern : mapping, optional
        Regular expressions to values passed to `make` as ``rank=`` or ``radius=``; the first
        that matches counts.
    modules_to_train : str or sequence of str
        Regular expressions for modules of which this adapter gets a copy of its own to train, a
        head for example: with another adapter, or `disabled`, the model has its own again.
    magnitude : bool
        Whether to train the lengths of the rows of :math:`W_0 + \Delta W` too, one for each
        output of a layer: weight-decomposed adaptation, DoRA [1]_ if `make` returns `Factored`.
        They start at what they are, so that nothing changes, and their gradients take the lengths
        of the sum for constants, as the paper does. The change of the weight is not of low rank
        then: what needs that raises TargetError.
    dropout : float
        In [0, 1). In training mode, entries of the input of an update are set to zero with this
        probability, and the others divided by the rest: ``lora_dropout`` in PEFT. As there, the
        base layer's own input is whole, and embeddings, whose inputs are indices, have none.
    generator : torch.Generator, optional
        Passed to `make` as ``generator=``.

    Returns
    -------
    nn.Module
        The model itself.

    Raises
    ------
    OptionError
        If a pattern matches nothing, a target is not adaptable, or `make` returns one object twice;
        if there is to be dropout and a layer is called with dense weights, or magnitudes of a
        layer whose outputs are no side of its weight.
    TargetError
        If a weight is not finite; on the meta device, and there are to be magnitudes.
    RankError, RadiusError
        From `make`, if a rank or radius does not fit; the error names the weight.
    AdapterStateError
        If the name is taken, the model is merged, or inside a `per_sample` block.

    References
    ----------
    .. [1] Liu et al., DoRA (ICML 2024, arXiv 2402.09353), equation 5.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = adapt(model, lambda shape: NBLoRA(shape, rank=2, radius=0.5), targets="all-linear")
    >>> isinstance(model[0], nn.Linear), [name for name, _ in model[0].named_parameters()][:2]
    (True, ['weight', 'bias'])
    """
    check_new_name(model, name)
    everywhere = layer_slots(model)
    options = Options(radius, rank_pattern or {}, radius_pattern or {}, generator)
    options.check(make, candidates(everywhere))
    whole = every_slot(model)
    trained = own_modules(modules_to_train, whole)
    chosen = select(targets, everywhere, exclude, trained)
    groups = _tied_groups(chosen, everywhere, exclude)
    check_apart(trained, whole, [slot for group in groups for slot in group])
    check_extras(groups, magnitude=magnitude, dropout=dropout)
    updates: Updates = []
    for group in groups:
        _check_weight(group[0])
        members = [_started(p, group[0].parameter) for p in options.build(make, group[0])]
        _fit_plan(members, group[0], dropout)
        updates += [(slot, members) for slot in group]
    _check_distinct([members for _, members in updates])
    own = [*own_parameters(trained, whole), *own_buffers(whole)]
    magnitudes = first_magnitudes(updates) if magnitude else {}
    return install(model, Plan(name, updates, own, magnitudes, dropout))


def _tied_groups(
    slots: list[WeightSlot], everywhere: list[LayerSlot], exclude: str | Sequence[str]
) -> list[list[WeightSlot]]:
    """Return the weights grouped by parameter, completed by all others that share it."""
    every = owners(everywhere)
    groups = {id(slot.parameter): every[id(slot.parameter)] for slot in slots}
    chosen = {slot.name for slot in slots}
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    for tied in (slot for group in groups.values() for slot in group if slot.name not in chosen):
        if any(matches(x, tied.name) or matches(x, tied.layer.name) for x in patterns):
            raise OptionError(
                f"tied weights are adapted together; {tied.name} is excluded, but shares its "
                "weight with a target: exclude both or none, or untie them first"
            )
    return list(groups.values())


def _check_weight(slot: WeightSlot) -> None:
    module, weight = slot.layer.module, slot.parameter
    fault = storage.fault_of(module) if storage.is_coded(module, slot.weight) else None
    if fault is not None:
        raise OptionError(
            "what is targeted must be adaptable; got "
            f"{slot.layer.name} ({type(module).__name__}: {fault}): exclude it"
        )
    if not is_finite(weight):
        raise TargetError(
            f"a weight to adapt must be finite; {slot.name} has NaN or infinite entries: "
            "repair the checkpoint"
        )


def _check_distinct(plans: list[list[Parameterization]]) -> None:
    groups = {id(members): members for members in plans}.values()
    every = [id(member) for members in groups for member in members]
    if len(set(every)) < len(every):
        raise OptionError(
            "make(shape) must return a new parameterization at each call; got one twice: "
            "construct it inside the function"
        )


def _started(parameterization: Parameterization, weight: nn.Parameter) -> Parameterization:
    """Return it at an exact zero start, in the precision and on the device of the weight."""
    started = parameterization
    if not any(x.is_meta for x in parameterization.parameters()):
        op = parameterization.factors().detach()
        begun = parameterization.keeps_its_start or _vanishes(op)
        started = parameterization if begun else Offset(parameterization)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    started.requires_grad_(True)
    return started.to(device=weight.device, dtype=dtype)


def _fit_plan(members: Sequence[Parameterization], slot: WeightSlot, dropout: float) -> None:
    """Under a plan of tensor parallelism, have the same numbers in all processes, or raise."""
    weight = slot.parameter
    if is_sharded(weight):
        check_is_matrix(slot.name, weight)
        made_equal([x for p in members for x in (*p.parameters(), *p.buffers())], weight)
        check_can_be_cut(slot.name, members, weight.detach(), dropout)


def _vanishes(op: LowRankOperator) -> bool:
    """Whether each rank-one term is zero, so that every product with x is an exact zero."""
    left, scale, right = op
    terms = left.any(dim=-2) & right.any(dim=-2) & (scale != 0)
    return not bool(terms.any())
