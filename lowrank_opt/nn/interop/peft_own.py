"""What a PEFT checkpoint has besides updates: whole modules, biases, single rows of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, ShapeError
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import LayerSlot, join, owners
from lowrank_opt.nn.interop import peft_config
from lowrank_opt.nn.interop.peft_adapter import PeftAdapter
from lowrank_opt.nn.surgery.own import Own, own_buffers, own_tensors, trainable_copy
from lowrank_opt.parameterizations.config import JsonObject

_Place = tuple[LayerSlot, str]

# What PEFT takes for the embedding of a model, or for what is tied to it.
_EMBEDDINGS = ("embed_tokens", "lm_head")


def imported_own(adapter: PeftAdapter, everywhere: Sequence[LayerSlot]) -> list[Own]:
    """Return what the adapter has of its own.

    Whole modules stand apart from what they are tied to, as in PEFT, unless the checkpoint says
    ``ensure_weight_tying``; rows of an embedding are those of the weights tied to it, too. Both
    where PEFT knows of the tie: it asks the model, as those of transformers tell.

    Raises
    ------
    DataError, ShapeError
        If a tensor has no place, is missing, or has another shape.
    """
    places = {join(slot.name, key): (slot, key) for slot in everywhere for key in own_tensors(slot)}
    model = everywhere[0].module
    tied = tie_is_ensured(adapter.config, model)
    trained = _checked(adapter, places, tied=tied)
    buffers = {k: x for k, x in trained.items() if not isinstance(_stored(places[k]), nn.Parameter)}
    own = own_buffers(everywhere, buffers)
    for key, x in trained.items():
        if key not in buffers:
            at = _tied(places[key], everywhere) if tied else [places[key]]
            own.append(Own(at, trainable_copy(_stored(places[key]), x)))
    return _each_place_once([*own, *_biases(adapter, places), *_rows(adapter, places, everywhere)])


def tie_is_ensured(config: JsonObject, model: nn.Module) -> bool:
    """Whether PEFT keeps the whole modules of a checkpoint tied in this model."""
    saved = peft_config.modules_to_save(config)
    known = any(name.rpartition(".")[2] in _EMBEDDINGS for name in saved)
    return bool(config.get("ensure_weight_tying")) and known and _tells_ties(model)


def _tells_ties(model: nn.Module, *, unless_said: bool = True) -> bool:
    """Whether a model tells which weights are tied to its embedding; plain ones do not."""
    config = getattr(model, "config", None)
    said = getattr(config, "tie_word_embeddings", unless_said)
    return bool(getattr(model, "_tied_weights_keys", None)) and bool(said)


def _checked(adapter: PeftAdapter, places: dict[str, _Place], *, tied: bool) -> dict[str, Tensor]:
    """Return the tensors of whole modules and biases, each of which has a place."""
    saved = peft_config.modules_to_save(adapter.config)
    biases = adapter.config.get("bias", "none") != "none"
    whole = {key for key in places if any(_is_part(key, module) for module in saved)}
    if tied:
        shared = {id(_stored(places[key])) for key in whole}
        whole |= {k for k in adapter.trained if k in places and id(_stored(places[k])) in shared}
    strange = [
        key
        for key in adapter.trained
        if key not in whole and not (biases and key.endswith("bias") and key in places)
    ]
    if strange:
        raise DataError(
            f"every tensor must belong to the adapter or to modules_to_save={saved}; got "
            f"{strange[:5]}: save it without (save_embedding_layers=False, bias='none')"
        )
    wrong = sorted(whole - set(adapter.trained))
    if wrong:
        raise DataError(
            f"modules_to_save={saved} must have the same tensors in the checkpoint and in the "
            f"model; got {wrong[:5]} in one of them: load the base model that PEFT had"
        )
    for key, x in adapter.trained.items():
        own = _stored(places[key])
        if x.shape != own.shape or own.is_meta:
            raise ShapeError(f"{key} must have shape {tuple(own.shape)}; got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()) and isinstance(own, nn.Parameter):
            raise DataError(f"a checkpoint must be finite; {key} is not: fetch it again")
    return adapter.trained


def _biases(adapter: PeftAdapter, places: dict[str, _Place]) -> list[Own]:
    """Return biases of layers to which the update adds one: ``lora_bias``."""
    found: list[Own] = []
    for name, held in adapter.sites.items():
        added = held.tensors.get("bias")
        if added is None:
            continue
        slot, key = places[f"{name}.weight"][0], f"{name}.bias"
        if key not in places or _stored(places[key]).is_meta:
            raise DataError(
                f"a layer must have a bias for one to be added; {name} has none: merge the adapter "
                "with PEFT instead"
            )
        base = _stored(places[key])
        if added.shape != base.shape:
            raise ShapeError(f"{key} must have shape {tuple(base.shape)}; got {tuple(added.shape)}")
        total = base.detach().double().cpu() + held.scaling * added.double()
        found.append(Own([(slot, "bias")], trainable_copy(base, total)))
    return found


def _rows(
    adapter: PeftAdapter, places: dict[str, _Place], everywhere: Sequence[LayerSlot]
) -> list[Own]:
    """Return embeddings of which single rows were trained."""
    found: list[Own] = []
    for name, rows in adapter.tokens.items():
        key, chosen = f"{name}.weight", peft_config.token_rows(adapter.config, name)
        if key not in places or _stored(places[key]).is_meta:
            raise DataError(f"rows were trained of a layer that the model has not; got {name}")
        base = _stored(places[key])
        fits = rows.ndim == 2 and rows.shape == (len(chosen), base.shape[1])
        if not fits or max(chosen, default=0) >= base.shape[0]:
            raise ShapeError(
                f"rows {chosen} of {name}, {tuple(base.shape)}, must be in the checkpoint; got "
                f"{tuple(rows.shape)}: fetch it again"
            )
        whole = base.detach().clone()
        whole[torch.tensor(chosen, device=whole.device)] = rows.to(whole)
        told = _tells_ties(everywhere[0].module, unless_said=False)
        at = _tied(places[key], everywhere) if told else [places[key]]
        found.append(Own(at, trainable_copy(base, whole)))
    return found


def _tied(place: _Place, everywhere: Sequence[LayerSlot]) -> list[_Place]:
    slots = owners(everywhere)[id(_stored(place))]
    first = [place, *((x.layer, x.weight) for x in slots)]
    return list({(id(slot), key): (slot, key) for slot, key in first}.values())


def _each_place_once(own: Sequence[Own]) -> list[Own]:
    """Return the tensors without those whose place another one has; later ones count."""
    last = {(id(slot.module), key): x for x in own for slot, key in x.places}
    kept: list[Own] = []
    for x in own:
        places = [(slot, key) for slot, key in x.places if last[id(slot.module), key] is x]
        if places:
            kept.append(Own(places, x.tensor))
    return kept


def _stored(place: _Place) -> Tensor:
    slot, key = place
    found = stored(slot.module, key)
    assert found is not None, "places hold tensors"
    return found


def _is_part(key: str, module: str) -> bool:
    """Whether a tensor's name is one in a module, given by name or the end of it after a dot."""
    return f".{module}." in f".{key}"
