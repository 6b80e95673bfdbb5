"""How far the adapter of a model is from a PEFT checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn

from lowrank_opt.errors import DataError
from lowrank_opt.nn.adapters.slots import every_slot
from lowrank_opt.nn.adapters.weights import (
    adapted_weights,
)
from lowrank_opt.nn.interop.peft_adapter import read_adapter
from lowrank_opt.nn.interop.peft_layers import in_model
from lowrank_opt.nn.interop.peft_rotations import rotation_targets
from lowrank_opt.nn.interop.peft_turned import rotates
from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True)
class PeftResidual:
    r"""One layer: what is in the model, and what is in the checkpoint.

    Attributes
    ----------
    name : str
        Of the layer.
    norm : float
        :math:`\|\Delta W\|_F` of the checkpoint.
    residual : float
        The Frobenius norm of the difference.
    """

    name: str
    norm: float
    residual: float

    @property
    def relative(self) -> float:
        """The residual as a part of the norm; 0 where both are zero."""
        if self.norm:
            return self.residual / self.norm
        return float("inf") if self.residual else 0.0


@torch.no_grad()
def peft_residuals(
    model: nn.Module, path: str | PathLike[str], *, name: str = "default"
) -> list[PeftResidual]:
    r"""Return, layer by layer, how far an adapter's update is from a checkpoint's.

    Tells what ``import_peft(..., make=..., project=True)`` has left out, and how exact
    `export_peft` was. Computed in float64 from the factors; no update is formed.

    Parameters
    ----------
    model : nn.Module
        Adapted.
    path : path
        A PEFT checkpoint of LoRA, AdaLoRA, DeLoRA, OFT or HRA, or of BOFT without scales.
    name : str
        Of the model's adapter.

    Raises
    ------
    DataError
        If the checkpoint cannot be read, is DoRA, or has a layer that the adapter has not.

    Examples
    --------
    >>> import tempfile
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt, export_peft
    >>> model = nn.Sequential(nn.Linear(4, 8))
    >>> model = adapt(model, lambda s: NBLoRA(s, 2, radius=0.5), targets="0")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_peft(model, folder)
    ...     [site.relative for site in peft_residuals(model, folder)]
    [0.0]
    """
    if rotates(path):
        return _compared(model, rotation_targets(model, path), name)
    adapter = read_adapter(path)
    if adapter.config.get("use_dora"):
        raise DataError(
            "DoRA is no low-rank update; got a checkpoint with use_dora: compare weights"
        )
    layers = {slot.name: slot.module for slot in every_slot(model)}
    targets = {
        held.name: in_model(layers[held.name], held.operator())
        for held in adapter.sites.values()
        if held.name in layers
    }
    return _compared(model, targets | {n: None for n in adapter.sites if n not in layers}, name)


def _compared(
    model: nn.Module, targets: Mapping[str, LowRankOperator | None], name: str
) -> list[PeftResidual]:
    known = {found.slot.layer.name: found for found in adapted_weights(model, {name})}
    found: list[PeftResidual] = []
    for layer, target in targets.items():
        own = known.get(layer)
        if own is None or target is None:
            raise DataError(
                f"the adapter must have the layers of the checkpoint; {name!r} has no {layer}: "
                "compare with the model it was imported to"
            )
        (member,) = own.totals()
        size = float(target.schatten_norm(2))
        found.append(PeftResidual(layer, size, member.residual(target)))
    return found
