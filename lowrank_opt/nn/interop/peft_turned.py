"""Folders of PEFT's rotations before any model is there: OFT, BOFT, HRA and PSOFT."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lowrank_opt.errors import DataError, TargetError
from lowrank_opt.nn.interop import peft_folder
from lowrank_opt.nn.interop.peft_adapter import PREFIX, PeftAdapter
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Orthogonal, ScaledRotation, from_peft_rotation
from lowrank_opt.parameterizations.config import JsonObject
from lowrank_opt.parameterizations.published.peft_psoft import peft_psoft_update, psoft_frames
from lowrank_opt.parameterizations.published.peft_rotations import (
    PeftKind,
    peft_distance,
    peft_rotation_dense,
)

_PARTS = {
    "OFT": {"oft_R.weight"},
    "BOFT": {"boft_R", "boft_s"},
    "HRA": {"hra_u"},
    "PSOFT": {"psoft_R.weight"},
}
_OPTIONAL = {"psoft_R.vector_a", "psoft_R.vector_b"}
_SITE = re.compile(
    r"(?P<site>.+)\.(?P<part>oft_R\.weight|boft_R|boft_s|hra_u|psoft_R\.(?:weight|vector_[ab]))"
)
_READ = {
    "peft_type", "bias", "modules_to_save", "use_cayley_neumann", "num_cayley_neumann_terms",
    "coft", "eps", "apply_GS", "psoft_orth", "ab_svd_init", "psoft_svd",
    "psoft_svd_lowrank_niter", "random_seed", "cayley_neumann_eps",
}  # fmt: skip
# How it was trained, or what the tensors' names and shapes say as well.
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "module_dropout", "boft_dropout", "init_weights", "r", "oft_block_size",
    "block_share", "boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "rank_pattern",
    "psoft_alpha", "psoft_dropout", "psoft_mag_a", "psoft_mag_b",
}  # fmt: skip


@dataclass(frozen=True)
class TurnedSite:
    """What a checkpoint holds of one layer, and how PEFT reads it."""

    kind: PeftKind
    tensors: dict[str, Tensor]
    config: JsonObject

    @property
    def series_terms(self) -> int | None:
        """How many terms PEFT sums instead of an inverse; None if it inverts."""
        sums = self.kind in ("OFT", "PSOFT") and self.config.get("use_cayley_neumann")
        return cast("int", self.config.get("num_cayley_neumann_terms", 5)) if sums else None

    @property
    def constraint(self) -> float | None:
        """The bound on skew matrices, where there is one."""
        name = "cayley_neumann_eps" if self.kind == "PSOFT" else "eps"
        given = self.config.get(name) if self.kind == "PSOFT" or self.config.get("coft") else None
        return None if given is None else float(cast("float", given))

    @property
    def gram_schmidt(self) -> bool:
        """Whether reflections are made orthogonal to each other."""
        return bool(self.config.get("apply_GS"))

    def frames(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the frames of PSOFT, as PEFT computes them."""
        if self.kind != "PSOFT":
            return None
        low = self.config.get("psoft_svd", "full") == "lowrank"
        return psoft_frames(
            weight,
            self.size,
            "balanced" if self.config.get("ab_svd_init") == "pissa_init" else "right",
            steps=cast("int", self.config.get("psoft_svd_lowrank_niter", 10)) if low else None,
            seed=cast("int", self.config.get("random_seed", 0)),
        )

    @property
    def size(self) -> int:
        """How many coordinates are turned together; the number of reflections of HRA."""
        if self.kind in ("OFT", "PSOFT"):
            (entries,) = (x for key, x in self.tensors.items() if key.endswith(".weight"))
            return int((1 + (1 + 8 * entries.shape[-1]) ** 0.5) / 2)
        return self.tensors["hra_u" if self.kind == "HRA" else "boft_R"].shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, as far as the tensors say it; 0 where they do not."""
        if self.kind == "PSOFT":
            return 0, 0
        if self.kind == "HRA":
            return 0, len(self.tensors["hra_u"])
        if self.kind == "BOFT":
            return len(self.tensors["boft_s"]), self.tensors["boft_R"].shape[1] * self.size
        shared = self.config.get("block_share")
        return 0, 0 if shared else len(self.tensors["oft_R.weight"]) * self.size

    def distance(self) -> float:
        """Return the distance of what PEFT computes from the identity; of factors, the sum."""
        if self.kind == "PSOFT":
            frame, terms = torch.eye(self.size, dtype=torch.float64), self.series_terms
            core = peft_psoft_update(
                self.tensors, (frame, frame), series_terms=terms, constraint=self.constraint
            )
            return float(core.schatten_norm(torch.inf))
        return peft_distance(
            self.kind,
            self.tensors,
            series_terms=self.series_terms,
            gram_schmidt=self.gram_schmidt,
            constraint=self.constraint,
        )

    @property
    def scale(self) -> Tensor:
        """What BOFT multiplies rows by; one number for all others."""
        return self.tensors.get("boft_s", torch.ones(1)).detach().double().flatten()

    def nearest(self, weight: Tensor) -> tuple[Orthogonal | ScaledRotation, float]:
        """Return the rotation, and how far it is from what PEFT computes."""
        tensors = {key: x for key, x in self.tensors.items() if key != "boft_s"}
        return from_peft_rotation(
            weight,
            self.kind,
            tensors,
            series_terms=self.series_terms,
            gram_schmidt=self.gram_schmidt,
            constraint=self.constraint,
            frames=self.frames(weight),
        )

    def target(self, weight: Tensor) -> LowRankOperator:
        """Return the update as PEFT computes it, orthogonal or not, with its scales."""
        frames = self.frames(weight)
        if frames is not None:
            return peft_psoft_update(
                self.tensors, frames, series_terms=self.series_terms, constraint=self.constraint
            )
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
    """Whether a folder has a readable configuration of OFT, BOFT, HRA or PSOFT."""
    try:
        config = json.loads((Path(path) / peft_folder.CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and cast("JsonObject", config).get("peft_type") in _PARTS


def read_rotations(path: str | PathLike[str]) -> tuple[PeftAdapter, dict[str, TurnedSite]]:
    """Return what a folder of rotations holds, before any model is there."""
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
    wrong = [n for n, parts in found.items() if set(parts) - _OPTIONAL != _PARTS[kind]]
    if wrong or not found:
        raise peft_folder.damaged(path, f"{wrong or 'no layer'} has the tensors of {kind}")
    sites = {n: TurnedSite(kind, parts, config) for n, parts in found.items()}
    bias = "all" if config.get("bias", "none") != "none" else "none"
    return PeftAdapter({**config, "bias": bias}, {}, trained, {}), sites


def _check(config: JsonObject) -> None:
    for name, value in config.items():
        if name not in _READ | _WITHOUT_EFFECT and value:
            raise DataError(
                f"a PEFT configuration must be understood whole; got {name}={value!r}: its meaning "
                "is not known here; merge the adapter with PEFT, or train it without"
            )
