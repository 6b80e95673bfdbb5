"""Adapters of PEFT that turn weights: OFT, BOFT, HRA and PSOFT."""

from __future__ import annotations

from os import PathLike

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, LowRankError, NotInSetError, ShapeError, TargetError
from lowrank_opt.nn.adapters.change import Magnitude
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import LayerSlot, WeightSlot, every_slot
from lowrank_opt.nn.interop.peft_layers import obstacle
from lowrank_opt.nn.interop.peft_members import assigned, made_for
from lowrank_opt.nn.interop.peft_own import imported_own
from lowrank_opt.nn.interop.peft_turned import TurnedSite, read_rotations
from lowrank_opt.nn.surgery.extras import magnitude_of
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.nn.surgery.targets import candidates, describe
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.published.peft_rotations import PeftKind


def import_rotations(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str,
    make: Make | None,
    project: bool,
) -> nn.Module:
    """Add the rotations of a checkpoint to a model: see `import_peft`."""
    adapter, sites = read_rotations(path)
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
    _, sites = read_rotations(path)
    known = {slot.name: WeightSlot(slot, "weight") for slot in every_slot(model)}
    return {
        name: held.target(known[name].parameter.detach().flatten(1)) if name in known else None
        for name, held in sites.items()
    }


def _slots(sites: dict[str, TurnedSite], everywhere: list[LayerSlot]) -> list[WeightSlot]:
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


def _obstacle(slot: WeightSlot, held: TurnedSite) -> str | None:
    """Return why PEFT computes something else than a turned weight, or why it is not known."""
    reason = turned_obstacle(slot, held.kind)
    if reason is not None:
        return reason
    if held.kind == "PSOFT" and held.config.get("psoft_orth") is False:
        return "its matrix is free (psoft_orth=False), and no rotation"
    n = slot.parameter.detach().flatten(1).shape[1]
    sizes = {key: x.shape for key, x in held.tensors.items()}
    if not _fits(held, n, slot.parameter.shape[0]):
        raise ShapeError(
            f"the rotation of {slot.layer.name} must turn {n} inputs; got {sizes} in the "
            "checkpoint: load the base model that PEFT had"
        )
    return None


def turned_obstacle(slot: WeightSlot, kind: PeftKind) -> str | None:
    """Return why PEFT's layer of a kind computes something else than a turned weight, or None."""
    module, reason = slot.layer.module, obstacle(slot)
    if reason is not None:
        return reason
    linear = isinstance(module, nn.Linear)
    if not linear and (kind == "PSOFT" or not isinstance(module, nn.Conv2d)):
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
    return None


def _fits(held: TurnedSite, n: int, m: int) -> bool:
    if held.kind == "PSOFT":
        r, vectors = held.size, [held.tensors[key] for key in held.tensors if "vector" in key]
        whole = r * (r - 1) // 2 == held.tensors["psoft_R.weight"].numel()
        return whole and 2 <= r <= min(m, n) and all(len(x) == r for x in vectors)
    if held.kind == "HRA":
        return held.tensors["hra_u"].ndim == 2 and len(held.tensors["hra_u"]) == n
    if held.kind == "OFT":
        count, entries = held.tensors["oft_R.weight"].shape
        b = int((1 + (1 + 8 * entries) ** 0.5) / 2)
        return b * (b - 1) // 2 == entries and n % b == 0 and count in (1, n // b)
    _, blocks, b, c = held.tensors["boft_R"].shape
    return b == c and blocks * b == n and held.scale.numel() == m


@torch.no_grad()
def _member(
    held: TurnedSite, slot: WeightSlot, make: Make | None, project: bool
) -> Parameterization:
    weight, name = slot.parameter.detach().flatten(1), slot.layer.name
    if make is not None:
        op = held.target(weight)
        return assigned(made_for(make, op, slot, name), op, project, name)
    try:
        member, distance = held.nearest(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    except LowRankError as error:
        raise TargetError(f"{name} cannot be imported: {error}") from error
    # What PEFT's own arithmetic, in single precision, leaves open.
    if distance > 8 * torch.finfo(torch.float32).eps * held.size and not project:
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
