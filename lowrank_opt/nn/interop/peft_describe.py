"""What PEFT is told of an exported adapter, and of the modules that were trained beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
)
from lowrank_opt.nn.adapters.store import STORE
from lowrank_opt.nn.folders.save import own_or_trained
from lowrank_opt.nn.interop.peft_adapter import BASE_BIAS
from lowrank_opt.nn.surgery.own import own_tensors
from lowrank_opt.parameterizations.config import Json, JsonObject

_N = TypeVar("_N", int, float, int | float)


@dataclass(frozen=True)
class ExportedSite:
    r"""What was written for one layer.

    Attributes
    ----------
    name : str
        Of the layer.
    rank : int
        Of the factors.
    scaling : float
        ``alpha / r``.
    spectral_bound : float
        Upper bound on the spectral norm of the exact product of the numbers in the file.
    certified : bool
        Whether that exact product is proved to be in the declared set. False for sets without a
        spectral form (`Offset` and `Inductive` around a bounded map) and for DoRA, whose update
        has no bound.
    """

    name: str
    rank: int
    scaling: float
    spectral_bound: float
    certified: bool


def describe(sites: Sequence[ExportedSite], names: Sequence[str]) -> JsonObject:
    """Return the configuration of LoRA for these layers of a model with modules of these names."""
    # Longer names first: PEFT takes the first pattern that matches the end of a name.
    ordered = sorted(sites, key=lambda site: -len(site.name))
    ranks = {site.name: site.rank for site in ordered}
    alphas = {site.name: _integral(site.scaling * site.rank) for site in ordered}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets([site.name for site in sites], names),
        "rank_pattern": _patterns(ranks),
        "alpha_pattern": _patterns(alphas),
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _most_common(values: Mapping[str, _N]) -> _N:
    return Counter(values.values()).most_common(1)[0][0]


def _patterns(values: Mapping[str, int | float]) -> Json:
    """Return nothing if all are equal, else all of them: names may be ends of other names."""
    if len(set(values.values())) == 1:
        return {}
    return {re.escape(name): value for name, value in values.items()}


def targets(chosen: Sequence[str], names: Sequence[str]) -> Json:
    """Return names for PEFT, which also takes their ends; one pattern where that is too much."""
    ambiguous = any(name.endswith(f".{target}") for target in chosen for name in names)
    return "|".join(re.escape(name) for name in chosen) if ambiguous else [*chosen]


def _integral(value: float) -> int | float:
    return int(value) if value == int(value) else value


def origin(model: nn.Module) -> str | None:
    """Return where a transformers model says that it came from."""
    found = getattr(getattr(model, "config", None), "name_or_path", None)
    return found if isinstance(found, str) and found else None


def trained_modules(
    everywhere: Sequence[LayerSlot], adapter: str, sites: Collection[str]
) -> tuple[list[str], dict[str, Tensor]]:
    """Return the modules that PEFT must save whole, and their tensors.

    Those of which the adapter has tensors of its own, buffers if they differ from the model's. Of
    a layer of `sites`, whose update PEFT holds, that may be the bias.

    Raises
    ------
    TargetError
        If PEFT cannot save such a module.
    """
    saved: list[str] = []
    tensors: dict[str, Tensor] = {}
    for slot in everywhere:
        whole, wanted = _state(slot, adapter)
        if not wanted:
            continue
        if wanted == ["bias"] and slot.name in sites:
            tensors[f"{slot.name}{BASE_BIAS}"] = whole["bias"]
            continue
        alike = [s.name for s in everywhere if s is not slot and s.name.endswith(slot.name)]
        part = None if slot.store is None else slot.store.part(adapter)
        parts = any(key != STORE for key in slot.module._modules)  # pyright: ignore[reportPrivateUsage]
        apart = {key for key, x in whole.items() if isinstance(x, nn.Parameter)} - set(wanted)
        # Buffers alone may differ: then the parameters are the model's own.
        apart = apart if any(isinstance(whole[key], nn.Parameter) for key in wanted) else set()
        if slot.opaque or parts or alike or apart or (part is not None and part.updates):
            raise TargetError(
                f"PEFT saves modules whole and finds them by the ends of names; got {slot.name!r} "
                f"with trained {wanted}, {'with' if parts else 'no'} modules inside, "
                f"and {alike[:3]} of the same end: merge the adapter and save the model"
            )
        saved.append(slot.name)
        tensors |= {f"{slot.name}.{key}": x for key, x in whole.items()}
    return saved, tensors


def _state(slot: LayerSlot, adapter: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a module as the adapter has them, and the names of its own ones."""
    own = own_or_trained(slot, adapter)
    return {**own_tensors(slot), **own}, list(own)
