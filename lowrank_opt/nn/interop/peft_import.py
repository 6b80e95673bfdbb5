"""Put an adapter that PEFT has trained into a model."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, ShapeError, TargetError
from lowrank_opt.nn.adapters.change import Magnitude
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    every_slot,
)
from lowrank_opt.nn.interop import peft_config
from lowrank_opt.nn.interop.peft_adapter import PeftAdapter, PeftSite, read_adapter
from lowrank_opt.nn.interop.peft_layers import Sharing, in_model, is_embedding, obstacle
from lowrank_opt.nn.interop.peft_members import imported
from lowrank_opt.nn.interop.peft_own import imported_own
from lowrank_opt.nn.interop.peft_rotations import import_rotations
from lowrank_opt.nn.interop.peft_turned import rotates
from lowrank_opt.nn.surgery.extras import magnitude_of, outputs_of
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.nn.surgery.targets import candidates, describe
from lowrank_opt.parameterizations import Parameterization


def import_peft(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str = "default",
    make: Make | None = None,
    project: bool = False,
) -> nn.Module:
    r"""Add the adapter of a PEFT checkpoint to a model, in place.

    Reads LoRA, rsLoRA, DoRA, AdaLoRA, DeLoRA, OFT, BOFT and HRA from safetensors; nothing is
    unpickled. Biases,
    single rows of embeddings and whole modules that were trained beside them become the adapter's
    own, apart from what they are tied to if PEFT keeps them apart. The
    imported update is the one that PEFT computes, to one rounding of the factors' dtype (the base
    weight's, at least float32). LoRA becomes `Factored` with the factors and the scaling of the
    file, with magnitudes if it is DoRA, AdaLoRA `AdaLoRA`, DeLoRA ``DeLoRA(variant="peft")`` with
    its strength as a fixed radius, and rotations `Orthogonal`, with magnitudes where BOFT scales
    rows. PEFT's default OFT is a truncated series and no rotation: `project` takes the nearest one.
    ``lora_dropout`` becomes the adapter's dropout; that of whole modules (``module_dropout``) is
    not imported. After any error the model is what it was.

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
        With `make`, take the nearest member of its set where the update is outside; of OFT's
        series, the nearest rotation.
        `peft_residuals` tells how far that is.

    Returns
    -------
    nn.Module
        The model itself.

    Raises
    ------
    DataError
        If a file is missing, damaged or pickled; if the checkpoint has a field that is not
        understood, or base weights of its own; if it does not fit the model.
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
    >>> _ = [nn.init.normal_(p) for p in model.parameters() if p.requires_grad]
    >>> again = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = again.load_state_dict(weights)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_peft(model, folder)
    ...     again = import_peft(again, folder)
    >>> torch.equal(model(torch.ones(4)), again(torch.ones(4)))
    True
    """
    if rotates(path):
        return import_rotations(model, path, name=name, make=make, project=project)
    adapter = read_adapter(path)
    peft_config.check(adapter.config)
    check_new_name(model, name)
    everywhere = every_slot(model)
    slots = _slots(adapter, everywhere)
    own = imported_own(adapter, everywhere)
    if adapter.config.get("use_dora") and make is not None:
        raise TargetError(
            "DoRA rescales rows and is no low-rank update, so make= cannot take it; got a "
            "checkpoint with use_dora: import it without make"
        )
    made: dict[int, list[Parameterization]] = {}
    for slot in slots:
        if id(slot.parameter) not in made:
            held = adapter.sites[slot.layer.name]
            made[id(slot.parameter)] = [imported(held, slot, make, project)]
    updates: Updates = [(slot, made[id(slot.parameter)]) for slot in slots]
    magnitudes = _magnitudes(adapter, slots)
    dropout = peft_config.dropout(adapter.config)
    return install(model, Plan(name, updates, own, magnitudes, dropout))


def _magnitudes(adapter: PeftAdapter, slots: Sequence[WeightSlot]) -> dict[str, Magnitude]:
    found: dict[str, Magnitude] = {}
    made: dict[int, Magnitude] = {}
    for slot in slots:
        lengths = adapter.sites[slot.layer.name].tensors.get("magnitude")
        side = outputs_of(slot)
        if lengths is None:
            continue
        assert side is not None, "PEFT has no layers of other kinds"
        new = magnitude_of(slot, side, lengths.reshape(1, -1))
        found[slot.name] = made.setdefault(id(slot.parameter), new)
    return found


def _slots(adapter: PeftAdapter, everywhere: list[LayerSlot]) -> list[WeightSlot]:
    """Return the weights that a checkpoint adapts; they take its updates as PEFT would."""
    known = {slot.name: slot for slot in everywhere if not slot.opaque}
    missing = [name for name in (*adapter.sites, *adapter.bases) if name not in known]
    if missing or not adapter.sites:
        raise DataError(
            f"a checkpoint must fit the model; it adapts {missing[:5] or 'nothing'}, and "
            f"{describe(candidates(known.values()), (missing or [''])[0])}: load the base model "
            "that PEFT had"
        )
    for name, held in adapter.sites.items():
        if not isinstance(stored(known[name].module, "weight"), nn.Parameter):
            kind = type(known[name].module).__name__
            raise TargetError(f"{held.name} cannot be imported: a {kind} has no weight there")
    slots = [WeightSlot(known[name], "weight") for name in adapter.sites]
    sharing, names = Sharing(everywhere), {slot.name for slot in slots}
    for slot in slots:
        _check_slot(slot, adapter.sites[slot.layer.name])
        twice = [other for other in sharing.others(slot) if other in names]
        if twice and not _same_update(adapter, slot, twice, known):
            raise TargetError(
                f"a weight has one update; {slot.name} is {twice[0]} too, and PEFT adapts them "
                "apart: untie them first"
            )
    for key, weight in adapter.bases.items():
        _check_base(key, weight, known)
    return slots


def _same_update(
    adapter: PeftAdapter, slot: WeightSlot, others: Sequence[str], known: dict[str, LayerSlot]
) -> bool:
    """Whether tied weights have one update in the checkpoint, as ``ensure_weight_tying`` makes."""
    if not adapter.config.get("ensure_weight_tying"):
        return False
    mine = in_model(slot.layer.module, adapter.sites[slot.layer.name].operator())
    for other in others:
        layer = other.rpartition(".")[0]
        theirs = in_model(known[layer].module, adapter.sites[layer].operator())
        difference = (mine - theirs).schatten_norm(2)
        if not float(difference) <= 1e-6 * float(mine.schatten_norm(2)):
            return False
    return True


def _check_slot(slot: WeightSlot, held: PeftSite) -> None:
    module = slot.layer.module
    reason = obstacle(slot)
    if reason is None and held.embedding != is_embedding(module):
        reason = f"the file has the factors of {'an' if held.embedding else 'no'} embedding"
    if reason is not None:
        raise TargetError(
            f"{held.name} cannot be imported: {reason}; merge the adapter with PEFT instead"
        )
    shape = in_model(module, held.operator()).shape
    if shape != slot.shapes[0]:
        raise ShapeError(
            f"the update of {held.name} must have the weight's shape {slot.shapes[0]}; got {shape} "
            "in the checkpoint: load the base model that PEFT had"
        )
    magnitude, side = held.tensors.get("magnitude"), outputs_of(slot)
    count = shape[1] if side == "columns" else shape[0]
    if magnitude is not None and magnitude.numel() != count:
        raise ShapeError(
            f"the magnitude of {held.name} must have {count} numbers; got {magnitude.numel()}: "
            "load the base model that PEFT had"
        )


def _check_base(key: str, weight: Tensor, known: dict[str, LayerSlot]) -> None:
    own = stored(known[key].module, "weight")
    same = own is not None and own.shape == weight.shape
    if own is not None and same and not own.is_meta:
        same = torch.equal(own.detach().cpu().to(weight.dtype), weight)
    if not same:
        raise DataError(
            f"a checkpoint must belong to the model's own weights; it brings another {key}.weight "
            "(save_embedding_layers): load that into the base model first"
        )
