"""Write an adapter as a checkpoint that PEFT loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_choice
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn.adapters.present import (
    check_known,
)
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    every_slot,
)
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights, dropout_of
from lowrank_opt.nn.basis.sharded import in_whole
from lowrank_opt.nn.folders.described import check_unhooked
from lowrank_opt.nn.folders.save import only_name
from lowrank_opt.nn.interop import peft_folder
from lowrank_opt.nn.interop.peft_adapter import BASE_BIAS, PREFIX
from lowrank_opt.nn.interop.peft_describe import (
    ExportedSite,
    describe,
    origin,
    targets,
    trained_modules,
)
from lowrank_opt.nn.interop.peft_factors import has_bound_proof, peft_factors
from lowrank_opt.nn.interop.peft_layers import Sharing, is_transposed, obstacle, to_tensors
from lowrank_opt.nn.interop.peft_rotations import turned_obstacle
from lowrank_opt.nn.interop.peft_turned_export import Method, describe_turned, pack_turned
from lowrank_opt.nn.surgery.targets import matches
from lowrank_opt.parameterizations.certificate import certify
from lowrank_opt.parameterizations.config import Json, JsonObject
from lowrank_opt.parameterizations.published.peft_rotations import PeftKind

_T = TypeVar("_T")
_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class _Packed:
    """One layer's tensors and what the configuration says of it."""

    site: ExportedSite
    tensors: dict[str, Tensor]
    transposed: bool
    options: JsonObject = field(default_factory=dict[str, Json])


@in_whole
def export_peft(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str | None = None,
    skip: str | Sequence[str] = (),
    dtype: torch.dtype | None = None,
    task_type: str | None = None,
    method: Method = "lora",
) -> list[ExportedSite]:
    r"""Write one adapter as a checkpoint that PEFT loads, in the form of LoRA by default.

    Every parameterization of bounded rank is written, not only `Factored`: its factors are
    LoRA's, and its product is the same to one rounding. Where the declared set has a norm bound,
    the exact product of the written numbers is proved to keep it. An adapter with magnitudes is
    written as DoRA, modules that are trained beside it as ``modules_to_save``, and biases of the
    adapted layers that are its own with ``bias="lora_only"``, or ``oft_only`` and so on; PSOFT has
    none.

    Parameters
    ----------
    model : nn.Module
        Adapted; merged or not.
    path : path
        A folder; made if it does not exist. A checkpoint that is there is replaced.
    name : str, optional
        Of the adapter; may be left out if there is only one.
    skip : str or sequence of str
        Regular expressions for layers to leave out.
    dtype : torch.dtype, optional
        Of the written factors; by default that of the parameters.
    task_type : str, optional
        For PEFT's ``AutoPeftModel``, such as "CAUSAL_LM".
    method : {"lora", "oft", "boft", "hra", "psoft"}
        Rotations also go out as what they are, `Orthogonal` and `ScaledRotation` alone: the numbers
        are their own where the map is PEFT's (Cayley without a radius, reflections), so that
        `import_peft` reads the same bits, and of the same rotation otherwise. PSOFT's frames are
        not in the file: PEFT takes them from the weight.

    Returns
    -------
    list of ExportedSite
        One for each layer.

    Raises
    ------
    OptionError
        If `skip` matches nothing, or leaves nothing.
    TargetError
        If PEFT would compute something else with an update (see `skip`), or an update is not
        finite or not representable in `dtype`, or no rotation of the method. Nothing is written.
    AdapterStateError
        If there is no such adapter, or several and no name.
    DataError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = adapt(model, lambda s: NBLoRA(s, 2, radius=0.5), targets="all-linear")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [(site.name, site.rank, site.certified) for site in export_peft(model, folder)]
    [('0', 2, True), ('2', 2, True)]
    """
    everywhere = every_slot(model)
    name = only_name(model) if name is None else name
    check_choice(method, get_args(Method), "method")
    packed = _pack_adapter(model, everywhere, name, skip, dtype, method)
    adapted = [layer.site.name for layer in packed] if method != "psoft" else []
    saved, trained = trained_modules(everywhere, name, adapted)
    tensors = {f"{PREFIX}{key}": x for key, x in trained.items()}
    for layer in packed:
        tensors |= {f"{PREFIX}{layer.site.name}.{key}": x for key, x in layer.tensors.items()}
    sites, names = [layer.site for layer in packed], [slot.name for slot in everywhere]
    whole: list[Json] = [*saved]
    if method == "lora":
        config = describe(sites, names) | {"lora_dropout": dropout_of(model, name)}
    else:
        config = describe_turned(_kind(method), [layer.options for layer in packed])
        config |= {"target_modules": targets([site.name for site in sites], names)}
    config |= {
        "fan_in_fan_out": any(layer.transposed for layer in packed),
        "modules_to_save": whole or None,
        "task_type": task_type,
        "base_model_name_or_path": origin(model),
    }
    decomposed = any(_MAGNITUDE in layer.tensors for layer in packed)
    config |= {"use_dora": True} if decomposed else {}
    config |= {"bias": f"{method}_only"} if any(key.endswith(BASE_BIAS) for key in trained) else {}
    peft_folder.write(path, config, tensors)
    return sites


def _pack_adapter(
    model: nn.Module,
    everywhere: list[LayerSlot],
    name: str,
    skip: str | Sequence[str],
    dtype: torch.dtype | None,
    method: Method,
) -> list[_Packed]:
    check_known(model, [name])
    held = [(found.slot, found) for found in adapted_weights(model, {name})]
    kept = _without(held, skip)
    for slot, found in kept:
        for member in found.updates:
            check_unhooked(member, slot.name)
    _check_layers([slot for slot, _ in kept], everywhere, method)
    if method != "lora":
        return [_pack_turned(found, method, dtype) for _, found in kept]
    if len({found.magnitude is None for _, found in kept}) > 1:
        raise TargetError(
            "a PEFT checkpoint is DoRA in all layers or in none; got magnitudes in some: leave "
            "the others out with skip=..."
        )
    return [_pack(found, dtype) for _, found in kept]


def _kind(method: Method) -> PeftKind:
    """Return PEFT's name of a method that is not LoRA."""
    return cast("PeftKind", method.upper())


def _pack_turned(found: AdaptedWeight, method: Method, dtype: torch.dtype | None) -> _Packed:
    site, tensors, options = pack_turned(found, _kind(method), dtype)
    return _Packed(site, tensors, False, options)


def _pack(found: AdaptedWeight, dtype: torch.dtype | None) -> _Packed:
    slot, (member,) = found.slot, found.totals_before_rescaling()
    op, scaling = peft_factors(member, dtype, slot.name)
    module, magnitude = slot.layer.module, found.magnitude
    bounds = certify(op, member.feasible_set)
    written = ExportedSite(
        name=slot.layer.name,
        rank=op.rank,
        scaling=scaling,
        spectral_bound=bounds.singular_values[0],
        certified=magnitude is None and has_bound_proof(member) and bounds.exact,
    )
    tensors = to_tensors(module, op)
    if magnitude is not None:
        ones = (1,) * (slot.parameter.ndim - 2)
        lengths = magnitude.lengths.detach().flatten()
        tensors[_MAGNITUDE] = lengths.reshape(1, -1, *ones) if ones else lengths
    return _Packed(written, tensors, is_transposed(module))


def _without(
    held: list[tuple[WeightSlot, _T]], skip: str | Sequence[str]
) -> list[tuple[WeightSlot, _T]]:
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    hit = {p: [s.name for s, _ in held if _named(p, s)] for p in patterns}
    idle = [pattern for pattern, names in hit.items() if not names]
    if idle:
        raise OptionError(
            f"skip must match an adapted layer; got {idle[0]!r}: adapted are "
            f"{', '.join(slot.name for slot, _ in held)[:500]}"
        )
    dropped = {name for names in hit.values() for name in names}
    kept = [(slot, x) for slot, x in held if slot.name not in dropped]
    if not kept:
        raise OptionError(f"skip must leave a layer to export; got skip={skip!r}")
    return kept


def _named(pattern: str, slot: WeightSlot) -> bool:
    return matches(pattern, slot.name) or matches(pattern, slot.layer.name)


def _check_layers(slots: list[WeightSlot], everywhere: list[LayerSlot], method: Method) -> None:
    """Raise TargetError unless PEFT computes the same with every update."""
    sharing = Sharing(everywhere)
    reasons = [(slot.name, _obstacle(slot, sharing, method)) for slot in slots]
    wrong = [f"{name} ({reason})" for name, reason in reasons if reason is not None]
    if wrong:
        raise TargetError(
            "a layer can be exported if PEFT computes the same with it; got "
            f"{'; '.join(wrong)}: leave it out with skip=..., or merge and save the model"
        )


def _obstacle(slot: WeightSlot, sharing: Sharing, method: Method) -> str | None:
    if not slot.layer.name:
        return "PEFT adapts layers inside a model"
    tied = sharing.others(slot)
    return f"it is tied to {tied[0]}, and PEFT unties them" if tied else _other(slot, method)


def _other(slot: WeightSlot, method: Method) -> str | None:
    return obstacle(slot) if method == "lora" else turned_obstacle(slot, _kind(method))
