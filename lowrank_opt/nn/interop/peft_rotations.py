"""Adapters of PEFT that turn weights: OFT, BOFT and HRA."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, LowRankError, NotInSetError, ShapeError, TargetError
from lowrank_opt.nn.adapters.change import Magnitude
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import LayerSlot, WeightSlot, every_slot
from lowrank_opt.nn.interop import peft_folder
from lowrank_opt.nn.interop.peft_adapter import PREFIX, PeftAdapter
from lowrank_opt.nn.interop.peft_layers import obstacle
from lowrank_opt.nn.interop.peft_members import assigned, made_for
from lowrank_opt.nn.interop.peft_own import imported_own
from lowrank_opt.nn.surgery.extras import magnitude_of
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.nn.surgery.targets import candidates, describe
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Orthogonal, Parameterization, from_peft_rotation
from lowrank_opt.parameterizations.config import JsonObject
from lowrank_opt.parameterizations.published.peft_rotations import PeftKind, peft_rotation_dense

_PARTS = {"OFT": {"oft_R.weight"}, "BOFT": {"boft_R", "boft_s"}, "HRA": {"hra_u"}}
_SITE = re.compile(r"(?P<site>.+)\.(?P<part>oft_R\.weight|boft_R|boft_s|hra_u)")
_READ = {
    "peft_type", "bias", "modules_to_save", "use_cayley_neumann", "num_cayley_neumann_terms",
    "coft", "eps", "apply_GS",
}  # fmt: skip
# How it was trained, or what the tensors' names and shapes say as well.
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "module_dropout", "boft_dropout", "init_weights", "r", "oft_block_size",
    "block_share", "boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "rank_pattern",
}  # fmt: skip


@dataclass(frozen=True)
class _Site:
    """What a checkpoint holds of one layer, and how PEFT reads it."""

    kind: PeftKind
    tensors: dict[str, Tensor]
    series_terms: int | None
    constraint: float | None
    gram_schmidt: bool

    @property
    def scale(self) -> Tensor:
        """What BOFT multiplies rows by; one number for all others."""
        return self.tensors.get("boft_s", torch.ones(1)).detach().double().flatten()

    def nearest(self, weight: Tensor) -> tuple[Orthogonal, float]:
        """Return the rotation, and how far it is from what PEFT computes."""
        tensors = {key: x for key, x in self.tensors.items() if key != "boft_s"}
        return from_peft_rotation(
            weight,
            self.kind,
            tensors,
            series_terms=self.series_terms,
            gram_schmidt=self.gram_schmidt,
            constraint=self.constraint,
        )

    def target(self, weight: Tensor) -> LowRankOperator:
        """Return the update as PEFT computes it, orthogonal or not, with its scales."""
        D = peft_rotation_dense(
            self.kind,
            self.tensors,
            weight,
            series_terms=self.series_terms,
            gram_schmidt=self.gram_schmidt,
            constraint=self.constraint,
        )
        W0, eye = weight.detach().double(), torch.eye(len(D), dtype=D.dtype)
        update = self.scale.unsqueeze(1) * (W0 @ (eye + D)) - W0
        one = torch.ones(len(D), dtype=D.dtype)
        if bool((self.scale == 1).all()):
            return LowRankOperator(W0, one, D.mT)
        return LowRankOperator(update, one, eye)


def rotates(path: str | PathLike[str]) -> bool:
    """Whether a folder has a readable configuration of OFT, BOFT or HRA."""
    try:
        config = json.loads((Path(path) / peft_folder.CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and cast("JsonObject", config).get("peft_type") in _PARTS


def import_rotations(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str,
    make: Make | None,
    project: bool,
) -> nn.Module:
    """Add the rotations of a checkpoint to a model: see `import_peft`."""
    adapter, sites = _read(path)
    check_new_name(model, name)
    everywhere = every_slot(model)
    slots = _slots(sites, everywhere)
    own = imported_own(adapter, everywhere)
    scaled = make is None and any(not bool((x.scale == 1).all()) for x in sites.values())
    members = [_member(sites[slot.layer.name], slot, make, project) for slot in slots]
    updates: Updates = [(slot, [x]) for slot, x in zip(slots, members, strict=True)]
    scales = {slot.name: sites[slot.layer.name].scale for slot in slots} if scaled else {}
    magnitudes = {slot.name: _magnitude(slot, scales[slot.name]) for slot in slots if scaled}
    return install(model, Plan(name, updates, own, magnitudes))


def rotation_targets(
    model: nn.Module, path: str | PathLike[str]
) -> dict[str, LowRankOperator | None]:
    """Return the updates that PEFT computes, by layer; None for those that the model has not."""
    _, sites = _read(path)
    known = {slot.name: WeightSlot(slot, "weight") for slot in every_slot(model)}
    return {
        name: held.target(known[name].parameter.detach().flatten(1)) if name in known else None
        for name, held in sites.items()
    }


def _read(path: str | PathLike[str]) -> tuple[PeftAdapter, dict[str, _Site]]:
    config, tensors = peft_folder.read(path)
    _check(config)
    kind = cast("PeftKind", config["peft_type"])
    found: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, Tensor] = {}
    for key, x in tensors.items():
        name = key.removeprefix(PREFIX)
        match = _SITE.fullmatch(name)
        if not bool(torch.isfinite(x).all()):
            raise peft_folder.damaged(path, f"{name} has NaN or infinite numbers")
        if match is not None:
            found.setdefault(match["site"], {})[match["part"]] = x
        elif "oft_embedding_R" in name:
            raise TargetError(
                f"rotations of embeddings are not imported; got {name}: merge the adapter with PEFT"
            )
        else:
            trained[name.replace(".base_layer.bias", ".bias")] = x
    wrong = [n for n, parts in found.items() if set(parts) != _PARTS[kind]]
    if wrong or not found:
        raise peft_folder.damaged(path, f"{wrong or 'no layer'} has the tensors of {kind}")
    terms = cast("int", config.get("num_cayley_neumann_terms", 5))
    series = terms if kind == "OFT" and config.get("use_cayley_neumann") else None
    constraint = float(cast("float", config["eps"])) if config.get("coft") else None
    exact = bool(config.get("apply_GS"))
    sites = {n: _Site(kind, parts, series, constraint, exact) for n, parts in found.items()}
    bias = "all" if config.get("bias", "none") != "none" else "none"
    return PeftAdapter({**config, "bias": bias}, {}, trained, {}), sites


def _check(config: JsonObject) -> None:
    for name, value in config.items():
        if name not in _READ | _WITHOUT_EFFECT and value:
            raise DataError(
                f"a PEFT configuration must be understood whole; got {name}={value!r}: its meaning "
                "is not known here; merge the adapter with PEFT, or train it without"
            )


def _slots(sites: dict[str, _Site], everywhere: list[LayerSlot]) -> list[WeightSlot]:
    known = {slot.name: slot for slot in everywhere if not slot.opaque}
    missing = [name for name in sites if name not in known]
    if missing:
        raise DataError(
            f"a checkpoint must fit the model; it adapts {missing[:5]}, and "
            f"{describe(candidates(known.values()), missing[0])}: load the base model that PEFT had"
        )
    slots: list[WeightSlot] = []
    for name, held in sites.items():
        weighted = isinstance(stored(known[name].module, "weight"), nn.Parameter)
        slot = WeightSlot(known[name], "weight")
        kind = type(known[name].module).__name__
        reason = _obstacle(slot, held) if weighted else f"a {kind} has no weight there"
        if reason is not None:
            raise TargetError(
                f"{name} cannot be imported: {reason}; merge the adapter with PEFT instead"
            )
        slots.append(slot)
    shared = {id(slot.parameter) for slot in slots}
    if len(shared) != len(slots):
        raise TargetError(
            "a weight has one update; got layers that share one and are turned apart: untie them "
            "first"
        )
    return slots


def _obstacle(slot: WeightSlot, held: _Site) -> str | None:
    """Return why PEFT computes something else than a turned weight, or why it is not known."""
    module, kind = slot.layer.module, held.kind
    reason = obstacle(slot)
    if reason is not None:
        return reason
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"PEFT's {kind} of a {type(module).__name__} turns another side of the stored weight"
    if slot.parameter.is_meta:
        return "its weight is on the meta device, and a rotation needs it"
    if isinstance(module, nn.Conv2d):
        size = module.kernel_size
        if kind == "OFT" and size != (1, 1):
            return f"PEFT's OFT adds overlapping patches of {size} up, and turns no weight"
        even = len(set(size)) == len(set(module.stride)) == 1
        if not even or isinstance(module.padding, str) or len(set(module.padding)) > 1:
            return f"PEFT's {kind} takes the first of the two sizes, strides and paddings for both"
    n = slot.parameter.detach().flatten(1).shape[1]
    sizes = {key: x.shape for key, x in held.tensors.items()}
    if not _fits(held, n, slot.parameter.shape[0]):
        raise ShapeError(
            f"the rotation of {slot.layer.name} must turn {n} inputs; got {sizes} in the "
            "checkpoint: load the base model that PEFT had"
        )
    return None


def _fits(held: _Site, n: int, m: int) -> bool:
    if held.kind == "HRA":
        return held.tensors["hra_u"].ndim == 2 and len(held.tensors["hra_u"]) == n
    if held.kind == "OFT":
        count, entries = held.tensors["oft_R.weight"].shape
        b = int((1 + (1 + 8 * entries) ** 0.5) / 2)
        return b * (b - 1) // 2 == entries and n % b == 0 and count in (1, n // b)
    _, blocks, b, c = held.tensors["boft_R"].shape
    return b == c and blocks * b == n and held.scale.numel() == m


@torch.no_grad()
def _member(held: _Site, slot: WeightSlot, make: Make | None, project: bool) -> Parameterization:
    weight, name = slot.parameter.detach().flatten(1), slot.layer.name
    if make is not None:
        op = held.target(weight)
        return assigned(made_for(make, op, slot, name), op, project, name)
    try:
        member, distance = held.nearest(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    except LowRankError as error:
        raise TargetError(f"{name} cannot be imported: {error}") from error
    # What PEFT's own arithmetic, in single precision, leaves open.
    if distance > 8 * torch.finfo(torch.float32).eps * member.block_size and not project:
        raise NotInSetError(
            f"a rotation must be orthogonal; {name} is {distance:.1e} away from the nearest one, "
            "for PEFT sums a truncated series (use_cayley_neumann): pass project=True to take it",
            excess=distance,
        )
    return member


def _magnitude(slot: WeightSlot, scale: Tensor) -> Magnitude:
    """Rows keep their lengths under a rotation: times the scales they are DoRA's magnitudes."""
    rows = slot.parameter.detach().flatten(1).double()
    return magnitude_of(slot, "rows", (scale * torch.linalg.vector_norm(rows, dim=1)).unsqueeze(0))
