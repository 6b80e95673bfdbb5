"""What is in an adapter file, without the model: ours, and checkpoints in PEFT's format."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path

from lowrank_opt.nn.folders import files
from lowrank_opt.nn.folders.built import build, magnitude_of
from lowrank_opt.nn.folders.stored import Stored, StoredWeight, read
from lowrank_opt.nn.interop import peft_folder
from lowrank_opt.nn.interop.peft_adapter import PeftSite, read_adapter
from lowrank_opt.nn.reports.report import SiteReport, report_member

_METHODS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "DELORA": "DeLoRA"}


def inspect_adapter(path: str | PathLike[str]) -> list[SiteReport]:
    """Return norms, bounds and certificates of the updates in an adapter folder.

    Parameters
    ----------
    path : path
        A folder written by `save_adapter`, or a PEFT checkpoint of LoRA,
        AdaLoRA or DeLoRA (``adapter_config.json`` and ``adapter_model.safetensors``), whose
        updates have no declared bound. Of DoRA the update before its rows are rescaled.

    Returns
    -------
    list of SiteReport
        One for each matrix, in the order of the file; the drift is NaN, since the base weights
        are not in the file. Of an update that is made of the base weight (`ETHER`, `Orthogonal`)
        the Frobenius norm is the recorded one and the others NaN: only loading it tells.

    Raises
    ------
    DataError
        If a file is missing, foreign, damaged or incomplete, or of a PEFT method that is no
        low-rank update.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt, save_adapter
    >>> model = adapt(torch.nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, folder)
    ...     [(site.name, site.bound) for site in inspect_adapter(folder)]
    [('weight', 'spectral <= 0.5')]
    """
    folder = Path(path)
    if (folder / peft_folder.CONFIG).exists() and not (folder / files.DESCRIPTION).exists():
        return _inspect_peft(folder)
    stored = read(folder)
    made = build(stored, None, folder)
    for weight in stored.weights.values():
        magnitude_of(stored, weight)
    reports: list[SiteReport] = []
    for name, weight in stored.weights.items():
        if weight.tied_to != name:
            continue
        for i, norm in enumerate(weight.norms):
            site = f"{name}/{i}" if len(weight.norms) > 1 else name
            known = name in made
            reports.append(
                report_member(
                    site,
                    stored.name,
                    made[name][i],
                    math.nan,
                    rescaled=weight.magnitude is not None,
                )
                if known
                else _turned(site, stored, weight, i, norm)
            )
    return reports


def _turned(site: str, stored: Stored, weight: StoredWeight, i: int, norm: float) -> SiteReport:
    """Return what a folder says of an update that is made of the base weight."""
    recipe, prefix = weight.recipes[i], f"{weight.name}/{i}/"
    rank = recipe["rank"]
    assert isinstance(rank, int)
    return SiteReport(
        name=site,
        adapter=stored.name,
        kind=str(recipe["class"]).rpartition(".")[2],
        shape=weight.matrix,
        rank=rank,
        bound="needs the base weight",
        spectral=math.nan,
        frobenius=norm,
        nuclear=math.nan,
        stable_rank=math.nan,
        drift=math.nan,
        holds=None,
        excess=math.nan,
        trainable=sum(x.numel() for k, x in stored.tensors.items() if k.startswith(prefix)),
    )


def _inspect_peft(folder: Path) -> list[SiteReport]:
    return [_peft_site(site) for site in read_adapter(folder).sites.values() if site.rank]


def _peft_site(site: PeftSite) -> SiteReport:
    op = site.operator()
    spectral, frobenius, nuclear = (float(op.schatten_norm(p)) for p in (math.inf, 2, 1))
    return SiteReport(
        name=site.name,
        adapter="default",
        kind=f"PEFT {_METHODS[site.method]}",
        shape=op.shape,
        rank=site.rank,
        bound="none",
        spectral=spectral,
        frobenius=frobenius,
        nuclear=nuclear,
        stable_rank=(frobenius / spectral) ** 2 if spectral else 0.0,
        drift=math.nan,
        holds=None,
        excess=math.nan,
        trainable=site.numbers,
    )
