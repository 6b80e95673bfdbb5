"""Put an adapter that PEFT has trained into a model."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, ShapeError, TargetError
from lowrank_opt.nn.decomposed import DecomposedModule
from lowrank_opt.nn.interop import peft_config
from lowrank_opt.nn.interop.peft_adapter import PeftAdapter, PeftSite, read_adapter
from lowrank_opt.nn.interop.peft_layers import Sharing, in_model, is_embedding, obstacle
from lowrank_opt.nn.interop.peft_members import imported
from lowrank_opt.nn.places import Place, Site, candidates, describe, join, places
from lowrank_opt.nn.radius import Make
from lowrank_opt.nn.surgery import Plan, check_new_name, install

Trained = list[tuple[Tensor, Tensor]]


def import_peft(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str = "default",
    make: Make | None = None,
    project: bool = False,
) -> nn.Module:
    r"""Add the adapter of a PEFT checkpoint to a model, in place.

    Reads LoRA, rsLoRA, DoRA, AdaLoRA and DeLoRA from safetensors; nothing is unpickled. The
    imported update is the one that PEFT computes, to one rounding of the factors' dtype (the base
    weight's, at least float32). LoRA becomes `Factored` with the factors and the scaling of the
    file, AdaLoRA `AdaLoRA`, DeLoRA ``DeLoRA(variant="peft")`` with its strength as a fixed radius,
    and the layers of DoRA `DecomposedModule`. Dropout is training's and not imported. After any
    error the model is what it was.

    Parameters
    ----------
    model : nn.Module
        The base model, with the names that it had for PEFT; may have other adapters.
    path : path
        A folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
    name : str
        Of the new adapter; it becomes the active one.
    make : function of a shape, optional
        Returns the parameterization to take the update of a weight of that shape instead; its
        right inverse is used. Not for DoRA.
    project : bool
        With `make`, take the nearest member of its set where the update is outside.
        `peft_residuals` tells how far that is.

    Returns
    -------
    nn.Module
        The model; if the model itself is the adapted layer, its wrapper.

    Raises
    ------
    DataError
        If a file is missing, damaged or pickled; if the checkpoint has a field that is not
        understood, biases, or base weights of its own; if it does not fit the model.
    ShapeError, TargetError
        If a weight has another shape, or PEFT's layer computes something else with it.
    NotInSetError
        If an update is outside the set of what `make` returned, and `project` is false.
    AdapterStateError
        If the name is taken, or the model is merged.

    Examples
    --------
    >>> import tempfile
    >>> from lowrank_opt import Factored, NBLoRA
    >>> from lowrank_opt.nn import adapt, export_peft
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> weights = {key: x.clone() for key, x in model.state_dict().items()}
    >>> model = adapt(model, lambda shape: Factored(shape, rank=2), targets="0")
    >>> _ = nn.init.normal_(model[0].adapter("default").parts[0][0].left)
    >>> again = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = again.load_state_dict(weights)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_peft(model, folder)
    ...     again = import_peft(again, folder)
    >>> torch.equal(model(torch.ones(4)), again(torch.ones(4)))
    True
    """
    adapter = read_adapter(path)
    peft_config.check(adapter.config)
    everywhere = places(model)
    check_new_name(name, everywhere)
    sites = _sites(adapter, everywhere)
    trained = _trained(adapter, everywhere)
    if adapter.config.get("use_dora"):
        return _install_decomposed(model, adapter, sites, trained, make)
    plan: Plan = [
        (site, [imported(adapter.sites[site.place.name], site, make, project)]) for site in sites
    ]
    model = install(model, everywhere, plan, name, [])
    _copy(trained)
    return model


def _sites(adapter: PeftAdapter, everywhere: list[Place]) -> list[Site]:
    """Return the weights that a checkpoint adapts; they take its updates as PEFT would."""
    known = {place.name: place for place in everywhere}
    missing = [name for name in (*adapter.sites, *adapter.bases) if name not in known]
    if missing or not adapter.sites:
        raise DataError(
            f"a checkpoint must fit the model; it adapts {missing[:5] or 'nothing'}, and "
            f"{describe(candidates(everywhere), (missing or [''])[0])}: load the base model that "
            "PEFT had"
        )
    sites = [Site(known[name], "weight") for name in adapter.sites]
    sharing, names = Sharing(everywhere), {site.name for site in sites}
    for site in sites:
        _check_site(site, adapter.sites[site.place.name])
        twice = [other for other in sharing.others(site) if other in names]
        if twice:
            raise TargetError(
                f"a weight has one update; {site.name} is {twice[0]} too, and PEFT adapts them "
                "apart: untie them first"
            )
    for key, weight in adapter.bases.items():
        _check_base(key, weight, known)
    return sites


def _check_site(site: Site, held: PeftSite) -> None:
    module = site.place.module
    reason = obstacle(site)
    if reason is None and held.embedding != is_embedding(module):
        reason = f"the file has the factors of {'an' if held.embedding else 'no'} embedding"
    if reason is not None:
        raise TargetError(
            f"{held.name} cannot be imported: {reason}; merge the adapter with PEFT instead"
        )
    shape = in_model(module, held.operator()).shape
    if shape != site.shapes[0]:
        raise ShapeError(
            f"the update of {held.name} must have the weight's shape {site.shapes[0]}; got {shape} "
            "in the checkpoint: load the base model that PEFT had"
        )
    magnitude = held.tensors.get("magnitude")
    if magnitude is not None and magnitude.numel() != shape[0]:
        raise ShapeError(
            f"the magnitude of {held.name} must have {shape[0]} numbers; got {magnitude.numel()}: "
            "load the base model that PEFT had"
        )
    if magnitude is not None and not isinstance(module, DecomposedModule.LAYERS):
        raise TargetError(
            f"DoRA is imported for linear layers and convolutions; got {type(module).__name__} for "
            f"{held.name}: merge the adapter with PEFT instead"
        )


def _check_base(key: str, weight: Tensor, known: dict[str, Place]) -> None:
    own = dict(known[key].module.named_parameters(recurse=False)).get("weight")
    same = own is not None and own.shape == weight.shape
    if own is not None and same and not own.is_meta:
        same = torch.equal(own.detach().cpu().to(weight.dtype), weight)
    if not same:
        raise DataError(
            f"a checkpoint must belong to the model's own weights; it brings another {key}.weight "
            "(save_embedding_layers): load that into the base model first"
        )


def _install_decomposed(
    model: nn.Module,
    adapter: PeftAdapter,
    sites: Sequence[Site],
    trained: Trained,
    make: Make | None,
) -> nn.Module:
    if make is not None:
        raise TargetError(
            "DoRA rescales rows and is no low-rank update, so make= cannot take it; got a "
            "checkpoint with use_dora: import it without make"
        )
    layers: list[tuple[Site, DecomposedModule]] = []
    for site in sites:
        if site.place.wrapper is not None or site.parameter.is_meta:
            fault = "is on the meta device" if site.parameter.is_meta else "has adapters"
            raise TargetError(
                f"DoRA needs a real weight and no adapters beside it; {site.place.name} {fault}: "
                "load the weights first, and unload(model)"
            )
        held = adapter.sites[site.place.name]
        layers.append((site, _decomposed(held, site)))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for site, layer in layers:
        for holder, key in site.place.holders:
            setattr(holder, key, layer)
        layer.decomposed.requires_grad_(True)
    _copy(trained)
    return layers[0][1] if not layers[0][0].place.holders else model


@torch.no_grad()
def _decomposed(held: PeftSite, site: Site) -> DecomposedModule:
    member = imported(held, site, None, project=False)
    layer = DecomposedModule(site.place.module, member)
    layer.train(site.place.module.training)
    layer.decomposed.magnitude.copy_(held.tensors["magnitude"].flatten())
    return layer


def _trained(adapter: PeftAdapter, everywhere: list[Place]) -> Trained:
    """Return the tensors of modules that were trained whole, beside those of the model."""
    own = {
        join(place.name, key): x
        for place in everywhere
        for key, x in place.module.state_dict(keep_vars=True).items()
        if "." not in key
    }
    saved = peft_config.modules_to_save(adapter.config)
    strange = [key for key in adapter.trained if not any(_is_part(key, m) for m in saved)]
    if strange:
        raise DataError(
            f"every tensor must belong to the adapter or to modules_to_save={saved}; got "
            f"{strange[:5]}: save it without (save_embedding_layers=False, bias='none')"
        )
    expected = {key for key in own if any(_is_part(key, module) for module in saved)}
    wrong = sorted(expected ^ set(adapter.trained))
    if wrong:
        raise DataError(
            f"modules_to_save={saved} must have the same tensors in the checkpoint and in the "
            f"model; got {wrong[:5]} in one of them: load the base model that PEFT had"
        )
    for key, x in adapter.trained.items():
        if x.shape != own[key].shape or own[key].is_meta:
            raise ShapeError(f"{key} must have shape {tuple(own[key].shape)}; got {tuple(x.shape)}")
    return [(own[key], x) for key, x in adapter.trained.items()]


@torch.no_grad()
def _copy(trained: Trained) -> None:
    for target, x in trained:
        target.copy_(x)
        target.requires_grad_(isinstance(target, nn.Parameter))


def _is_part(key: str, module: str) -> bool:
    """Whether a tensor's name is one in a module, given by name or the end of it after a dot."""
    return f".{module}." in f".{key}"
