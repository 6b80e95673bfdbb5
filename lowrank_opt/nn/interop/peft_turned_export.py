"""Rotations as PEFT's own methods: what `export_peft` writes of OFT, BOFT, HRA and PSOFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapters.weights import AdaptedWeight
from lowrank_opt.nn.interop.peft_describe import ExportedSite
from lowrank_opt.parameterizations import Orthogonal, ScaledRotation
from lowrank_opt.parameterizations.config import JsonObject
from lowrank_opt.parameterizations.published.peft_rotations import PeftKind, to_peft_rotation

Method = Literal["lora", "oft", "boft", "hra", "psoft"]


def pack_turned(
    found: AdaptedWeight, kind: PeftKind, dtype: torch.dtype | None
) -> tuple[ExportedSite, dict[str, Tensor], JsonObject]:
    """Return what is written for a layer: the site, tensors, and what the configuration says.

    Raises
    ------
    TargetError
        If the update is no rotation of that kind.
    """
    slot, (member,) = found.slot, found.updates
    name = slot.layer.name
    if found.settled or not isinstance(member, Orthogonal | ScaledRotation):
        what = "an update that is settled" if found.settled else f"a {type(member).__name__}"
        raise TargetError(
            f"PEFT's {kind} turns the base weight and nothing else; {name} has {what}: export it "
            "as LoRA, or leave it out with skip=..."
        )
    if found.magnitude is not None and (kind != "BOFT" or found.magnitude.side != "rows"):
        raise TargetError(
            f"PEFT's {kind} has no magnitudes; {name} has: export it as BOFT, which scales rows"
        )
    try:
        tensors = to_peft_rotation(member, kind)
    except TargetError as error:
        raise TargetError(f"{name}: {error}") from error
    if found.magnitude is not None:
        rows = torch.linalg.vector_norm(member.weight.double(), dim=1, keepdim=True)
        lengths = found.magnitude.lengths.detach().double().view(-1, 1)
        tensors["boft_s"] = (lengths / rows).to(tensors["boft_s"])
    if dtype is not None:
        tensors = {key: x.to(dtype) for key, x in tensors.items()}
    bound = float(member.feasible_set.size or torch.inf)
    site = ExportedSite(name, member.rank, 1.0, bound, certified=False)
    return site, tensors, _options(member, kind, tensors)


def describe_turned(kind: PeftKind, options: Sequence[JsonObject]) -> JsonObject:
    """Return the configuration of a method for layers of these options.

    Raises
    ------
    TargetError
        If layers differ in what PEFT says once for all.
    """
    shared = {key: x for key, x in options[0].items() if all(o[key] == x for o in options)}
    missing = sorted(set(options[0]) - set(shared))
    # Blocks are of one size, or as many in each layer: PEFT takes one of both, and a 0.
    sizes = _BLOCKS.get(kind, ())
    for given, other in (sizes, sizes[::-1]) if sizes else ():
        if given in shared:
            shared[other], missing = 0, [key for key in missing if key != other]
            break
    if missing:
        raise TargetError(
            f"a PEFT checkpoint of {kind} has one {' or '.join(missing)} for all layers; got "
            "several: export the others apart, with skip=..."
        )
    return {
        "peft_type": kind,
        "bias": "none",
        "init_weights": True,
        "inference_mode": True,
        **_FIXED[kind],
        **shared,
    }


# What PEFT must be told to compute what we do; its defaults are others, or may become others.
_FIXED: dict[PeftKind, JsonObject] = {
    "OFT": {"use_cayley_neumann": False, "coft": False, "block_share": False},
    "BOFT": {},
    "HRA": {"apply_GS": False},
    "PSOFT": {"psoft_orth": True, "psoft_svd": "full", "use_cayley_neumann": False},
}


_BLOCKS: dict[PeftKind, tuple[str, str]] = {
    "OFT": ("oft_block_size", "r"),
    "BOFT": ("boft_block_size", "boft_block_num"),
}


def _options(
    member: Orthogonal | ScaledRotation, kind: PeftKind, tensors: dict[str, Tensor]
) -> JsonObject:
    if kind == "PSOFT":
        balanced = isinstance(member, ScaledRotation) and member.frame == "balanced"
        return {
            "r": member.rank,
            # Of no effect: PEFT divides the frame by the scaling, and multiplies by it.
            "psoft_alpha": member.rank,
            "ab_svd_init": "pissa_init" if balanced else "psoft_init",
            "psoft_mag_a": "psoft_R.vector_a" in tensors,
            "psoft_mag_b": "psoft_R.vector_b" in tensors,
        }
    assert isinstance(member, Orthogonal), "written as another kind"
    if kind == "HRA":
        return {"r": member.rank}
    if kind == "OFT":
        return {"r": member.blocks, "oft_block_size": member.block_size}
    return {
        "boft_block_size": member.block_size,
        "boft_block_num": member.blocks,
        "boft_n_butterfly_factor": member.stages,
    }
