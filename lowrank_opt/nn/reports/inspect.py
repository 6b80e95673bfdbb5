"""What is in an adapter file, without the model: ours, and checkpoints in PEFT's format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lowrank_opt.nn.folders import files
from lowrank_opt.nn.folders.built import build, magnitude_of
from lowrank_opt.nn.folders.stored import Stored, StoredWeight, damaged, read
from lowrank_opt.nn.interop import peft_folder
from lowrank_opt.nn.interop.peft_adapter import PeftSite, read_adapter
from lowrank_opt.nn.interop.peft_turned import TurnedSite, read_rotations, rotates
from lowrank_opt.nn.reports.report import Site, SiteReport, report_sites
from lowrank_opt.parameterizations import Orthogonal
from lowrank_opt.parameterizations.config import JsonObject

_METHODS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "DELORA": "DeLoRA"}


def inspect_adapter(path: str | PathLike[str]) -> list[SiteReport]:
    """Return norms, bounds and certificates of the updates in an adapter folder.

    Parameters
    ----------
    path : path
        A folder written by `save_adapter`, or a PEFT checkpoint (``adapter_config.json`` and
        ``adapter_model.safetensors``) of LoRA, AdaLoRA, DeLoRA, OFT, BOFT, HRA or PSOFT, whose
        updates have no declared bound. Of DoRA the update before its rows are rescaled.

    Returns
    -------
    list of SiteReport
        One for each matrix, in the order of the file; the drift is NaN, since the base weights
        are not in the file. Of an update that is made of the base weight (`ETHER`, `Orthogonal`)
        the Frobenius norm is the recorded one and the others NaN: only loading it tells. How far a
        rotation is from the identity stands in place of the bound; sizes that a folder does not
        say are 0.

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
    reports: list[Site | SiteReport] = []
    for name, weight in stored.weights.items():
        if weight.tied_to != name:
            continue
        for i, norm in enumerate(weight.norms):
            site = f"{name}/{i}" if len(weight.norms) > 1 else name
            reports.append(
                Site(site, stored.name, made[name][i], math.nan, weight.magnitude is not None)
                if name in made
                else _turned(folder, site, stored, weight, i, norm)
            )
    known = iter(report_sites([x for x in reports if isinstance(x, Site)]))
    return [next(known) if isinstance(x, Site) else x for x in reports]


def _turned(
    path: Path, site: str, stored: Stored, weight: StoredWeight, i: int, norm: float
) -> SiteReport:
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
        bound=_known_distance(path, weight, i, stored.tensors),
        spectral=math.nan,
        frobenius=norm,
        nuclear=math.nan,
        stable_rank=math.nan,
        drift=math.nan,
        holds=None,
        excess=math.nan,
        trainable=sum(x.numel() for k, x in stored.tensors.items() if k.startswith(prefix)),
    )


def _known_distance(path: Path, weight: StoredWeight, i: int, tensors: Mapping[str, Tensor]) -> str:
    prefix = f"{weight.name}/{i}/"
    own = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
    try:
        return _distance(weight, i, own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error


def _distance(weight: StoredWeight, i: int, own: Mapping[str, Tensor]) -> str:
    """Return how far a rotation is from the identity: its parameters say so without the weight."""
    recipe = weight.recipes[i]
    if not str(recipe["class"]).endswith(".Orthogonal"):
        return "needs the base weight"
    options = {k: x for k, x in cast("JsonObject", recipe["options"]).items() if k != "weight"}
    rows = cast("int | None", options["rank"]) or 1
    make = cast("Callable[..., Orthogonal]", Orthogonal)
    module = make(torch.eye(rows, weight.matrix[1], dtype=torch.float64), **options)
    with torch.no_grad():
        for key, x in module.named_parameters():
            x.copy_(own[key])
    limit = f" <= {module.bound:g}" if module.radius is not None else ""
    return f"|R - I| = {module.distance():.3g}{limit}"


def _inspect_peft(folder: Path) -> list[SiteReport]:
    if rotates(folder):
        return [_turned_peft(name, x) for name, x in read_rotations(folder)[1].items()]
    return [_peft_site(site) for site in read_adapter(folder).sites.values() if site.rank]


def _turned_peft(name: str, held: TurnedSite) -> SiteReport:
    """Return what a folder of PEFT says of a rotation."""
    return SiteReport(
        name=name,
        adapter="default",
        kind=f"PEFT {held.kind}",
        shape=held.shape,
        rank=held.size if held.kind in ("HRA", "PSOFT") else held.shape[1],
        bound=f"|R - I| = {held.distance():.3g}",
        spectral=math.nan,
        frobenius=math.nan,
        nuclear=math.nan,
        stable_rank=math.nan,
        drift=math.nan,
        holds=None,
        excess=math.nan,
        trainable=sum(x.numel() for x in held.tensors.values()),
    )


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
