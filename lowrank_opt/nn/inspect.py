"""What is in an adapter file, without the model: ours, and LoRA checkpoints in PEFT's format."""

from __future__ import annotations

import json
import math
import re
from os import PathLike
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lowrank_opt.errors import DataError
from lowrank_opt.nn import files
from lowrank_opt.nn.recipes import JsonObject
from lowrank_opt.nn.report import SiteReport, report_member
from lowrank_opt.nn.state import Entry, build_members
from lowrank_opt.operator import LowRankOperator

_PEFT_TENSORS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PEFT_PAIR = re.compile(r"(?P<site>.+)\.lora_(?P<embedding>embedding_)?A(\.weight)?")


def inspect_adapter(path: str | PathLike[str]) -> list[SiteReport]:
    """Return norms, bounds and certificates of the updates in an adapter folder.

    Parameters
    ----------
    path : path
        A folder written by `save_adapter`, or a PEFT checkpoint of LoRA
        (``adapter_config.json`` and ``adapter_model.safetensors``), whose updates have no declared
        bound.

    Returns
    -------
    list of SiteReport
        One for each matrix, in the order of the file; the drift is NaN, since the base weights
        are not in the file.

    Raises
    ------
    DataError
        If a file is missing, foreign, damaged, or of a PEFT method other than LoRA.

    Examples
    --------
    >>> import tempfile
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt, save_adapter
    >>> model = adapt(torch.nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, folder)
    ...     [(site.name, site.bound) for site in inspect_adapter(folder)]
    [('weight', 'spectral <= 0.5')]
    """
    folder = Path(path)
    if (folder / _PEFT_CONFIG).exists() and not (folder / files.DESCRIPTION).exists():
        return _inspect_peft(folder)
    description, tensors = files.read(folder)
    reports: list[SiteReport] = []
    for entry in cast("list[Entry]", description["sites"]):
        if entry["tied_to"] != entry["site"]:
            continue
        members = build_members(entry, tensors, set(), None)
        name = str(entry["site"])
        for i, member in enumerate(members):
            label = f"{name}[{i}]" if len(members) > 1 else name
            reports.append(report_member(label, str(description["adapter"]), member, math.nan))
    return reports


def _inspect_peft(folder: Path) -> list[SiteReport]:
    config, tensors = _read_peft(folder)
    if config.get("peft_type") != "LORA":
        raise DataError(
            f"PEFT checkpoints of LoRA can be inspected; got {config.get('peft_type')!r} in "
            f"{str(folder)!r}: convert it to LoRA with PEFT first"
        )
    pairs = [(key, m) for key in tensors if (m := _PEFT_PAIR.fullmatch(key))]
    return [_peft_site(key, match, tensors, config) for key, match in pairs]


def _read_peft(folder: Path) -> tuple[JsonObject, dict[str, Tensor]]:
    try:
        config = json.loads((folder / _PEFT_CONFIG).read_bytes())
        tensors = safetensors.torch.load((folder / _PEFT_TENSORS).read_bytes())
    except OSError as error:
        raise DataError(
            f"a PEFT checkpoint has {_PEFT_CONFIG} and {_PEFT_TENSORS}; got {str(folder)!r}: "
            f"{error.strerror or error}: check the path"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise DataError(
            f"a PEFT checkpoint must be whole; {str(folder)!r} is damaged: {error}: fetch it again"
        ) from error
    return config, tensors


def _peft_site(
    key: str, match: re.Match[str], tensors: dict[str, Tensor], config: JsonObject
) -> SiteReport:
    """Report ``scaling B A``; convolutions are matrices of their flattened kernels."""
    other = key.replace("lora_embedding_A", "lora_embedding_B").replace(".lora_A", ".lora_B")
    if other not in tensors:
        raise DataError(f"a LoRA checkpoint has A and B for each weight; {other} is missing")
    name = match["site"].removeprefix(_PEFT_PREFIX)
    A, B = tensors[key].flatten(1).double(), tensors[other].flatten(1).double()
    if match["embedding"]:
        A, B = B.mT, A.mT
    rank = A.shape[0]
    scaling = _peft_scaling(name, rank, config)
    op = LowRankOperator(B, torch.full((rank,), scaling, dtype=torch.float64), A.mT)
    spectral, frobenius, nuclear = (float(op.schatten_norm(p)) for p in (math.inf, 2, 1))
    return SiteReport(
        name=name,
        adapter="default",
        kind="PEFT LoRA",
        shape=op.shape,
        rank=rank,
        bound="none",
        spectral=spectral,
        frobenius=frobenius,
        nuclear=nuclear,
        drift=math.nan,
        holds=True,
        excess=0.0,
        trainable=tensors[key].numel() + tensors[other].numel(),
    )


def _peft_scaling(name: str, rank: int, config: JsonObject) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rsLoRA; patterns match the end of names."""
    alpha = cast("float", config.get("lora_alpha", rank))
    for pattern, value in cast("JsonObject", config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = cast("float", value)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
