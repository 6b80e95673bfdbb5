"""What PEFT is told of an exported adapter, and of the modules that were trained beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.decomposed import DecomposedModule
from lowrank_opt.nn.places import Place
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
        "lora_dropout": 0.0,
        "target_modules": _targets([site.name for site in sites], names),
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


def _targets(chosen: Sequence[str], names: Sequence[str]) -> Json:
    """Return names for PEFT, which also takes their ends; one pattern where that is too much."""
    ambiguous = any(name.endswith(f".{target}") for target in chosen for name in names)
    return "|".join(re.escape(name) for name in chosen) if ambiguous else [*chosen]


def _integral(value: float) -> int | float:
    return int(value) if value == int(value) else value


def origin(model: nn.Module) -> str | None:
    """Return where a transformers model says that it came from."""
    found = getattr(getattr(model, "config", None), "name_or_path", None)
    return found if isinstance(found, str) and found else None


def trained_modules(everywhere: list[Place]) -> tuple[list[str], dict[str, Tensor]]:
    """Return modules that are trained whole beside the adapters, and their tensors."""
    saved: list[str] = []
    tensors: dict[str, Tensor] = {}
    inside = [f"{p.name}." for p in everywhere if isinstance(p.module, DecomposedModule)]
    for place in everywhere:
        own = dict(place.module.named_parameters(recurse=False))
        wanted = [key for key, p in own.items() if p.requires_grad]
        if not wanted or any(place.name.startswith(prefix) for prefix in inside):
            continue
        alike = [p.name for p in everywhere if p is not place and p.name.endswith(place.name)]
        parts = any(True for _ in place.module.children())
        if len(wanted) < len(own) or parts or alike or place.wrapper is not None:
            raise TargetError(
                f"PEFT saves modules whole and finds them by the ends of names; got {place.name!r} "
                f"with trained {wanted} of {list(own)}, {'with' if parts else 'no'} modules "
                f"inside, and {alike[:3]} of the same end: freeze it, and save it yourself"
            )
        saved.append(place.name)
        state = place.module.state_dict()
        tensors |= {f"{place.name}.{key}": x for key, x in state.items()}
    return saved, tensors
