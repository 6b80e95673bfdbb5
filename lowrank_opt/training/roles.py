"""Roles of parameters: which tensors are the left and right factor of one matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.parameterizations import AdaLoRA, DynamicRank, Factored
from lowrank_opt.parameterizations.base import Parameterization

_BILINEAR = (Factored, AdaLoRA, DynamicRank)


@dataclass(frozen=True, eq=False)
class FactorPair:
    r"""Two trainable tensors of one matrix :math:`W = s\, L\, C\, R^T`.

    Parameters
    ----------
    left : Tensor, shape (m, r)
        L, a leaf that requires grad. A LoRA layer calls it B.
    right : Tensor, shape (n, r), or (r, n) if `layout` is "peft"
        R, a leaf that requires grad. A LoRA layer calls its transpose A.
    scale : float
        s, a constant: LoRA's alpha / r.
    core : Tensor, shape (r,) or (r, r), optional
        C, a diagonal or a full matrix; the identity by default. It may be trained too.
    layout : {"columns", "peft"}
        How `right` is stored.

    Raises
    ------
    ShapeError
        If the shapes do not fit, a factor is not a floating leaf that requires grad, or dtypes or
        devices differ.

    Examples
    --------
    >>> lora_A, lora_B = torch.randn(2, 5, requires_grad=True), torch.zeros(4, 2).requires_grad_()
    >>> FactorPair(lora_B, lora_A, scale=8.0, layout="peft").shape
    (4, 5)
    """

    left: Tensor
    right: Tensor
    scale: float = 1.0
    core: Tensor | None = None
    layout: Literal["columns", "peft"] = "columns"

    def __post_init__(self) -> None:
        _check_pair(self)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.left.shape[0], self.columns(self.right).shape[0]

    @property
    def rank(self) -> int:
        """Number of columns of the factors."""
        return self.left.shape[1]

    def columns(self, right: Tensor) -> Tensor:
        """Return a tensor stored like `right` as n x r, a view."""
        return right.mT if self.layout == "peft" else right

    def times_core(self, factor: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``s factor C`` (or ``s factor C^T``), the gauge-fixed partner of the other one."""
        if self.core is None:
            return factor if self.scale == 1.0 else factor * self.scale
        core = self.core.detach().to(factor.dtype) * self.scale
        if core.ndim == 1:
            return factor * core
        return factor @ (core.mT if transposed else core)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return W, m x n: for tests and small matrices."""
        return self.times_core(self.left) @ self.columns(self.right).mT


def factor_pairs(module: nn.Module, *, bilinear: bool = False) -> list[FactorPair]:
    """Declare the pairs of a module: parameterizations with trainable `left` and `right`.

    A pair is :math:`L R^T` times a constant for `Factored`, and has trained `values` as its core
    for `AdaLoRA` and `DynamicRank`. In all other families W is not bilinear: a denominator, a norm
    or a map of the factors comes on top, and belongs to the loss. Tied ones are declared once.

    Parameters
    ----------
    module : nn.Module
        A parameterization, or a model that contains some.
    bilinear : bool
        Leave the other families out.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> [pair.shape for pair in factor_pairs(nn.ModuleList([Factored((4, 3), 2)]))]
    [(4, 3)]
    """
    found: dict[int, FactorPair] = {}
    for part in module.modules():
        left, right = _factor(part, "left"), _factor(part, "right")
        wanted = isinstance(part, _BILINEAR) or not bilinear
        if wanted and left is not None and right is not None:
            core = _core(part, left.shape[1])
            found.setdefault(id(left), FactorPair(left, right, _scaling(part), core))
    return list(found.values())


def other_parameters(module: nn.Module, pairs: Iterable[FactorPair]) -> list[Tensor]:
    """Return the trainable parameters of a module that are in no pair, in their order."""
    taken = {id(x) for pair in pairs for x in (pair.left, pair.right)}
    return [p for p in module.parameters() if p.requires_grad and id(p) not in taken]


def _factor(part: nn.Module, name: str) -> nn.Parameter | None:
    x = getattr(part, name, None) if isinstance(part, Parameterization) else None
    trainable = isinstance(x, nn.Parameter) and x.ndim == 2 and x.requires_grad
    return x if trainable else None


def _core(part: nn.Module, rank: int) -> nn.Parameter | None:
    values = getattr(part, "values", None)
    diagonal = isinstance(values, nn.Parameter) and tuple(values.shape) == (rank,)
    return values if diagonal else None


def _scaling(part: nn.Module) -> float:
    scaling = getattr(part, "scaling", 1.0)
    return float(scaling) if isinstance(scaling, float | int) else 1.0


def _check_pair(pair: FactorPair) -> None:
    left, right, core = pair.left, pair.right, pair.core
    shapes = f"left {tuple(left.shape)}, right {tuple(right.shape)}"
    if left.ndim != 2 or right.ndim != 2 or pair.columns(right).shape[1] != left.shape[1]:
        raise ShapeError(
            f"a pair is left (m, r) and right (n, r), or right (r, n) with layout='peft'; "
            f"got {shapes}, layout={pair.layout!r}"
        )
    if core is not None and tuple(core.shape) not in {(pair.rank,), (pair.rank, pair.rank)}:
        raise ShapeError(f"core must be (r,) or (r, r); got {tuple(core.shape)} with {shapes}")
    if not all(x.is_leaf and x.requires_grad and x.is_floating_point() for x in (left, right)):
        raise ShapeError(
            "left and right must be floating-point leaves that require grad; "
            f"got requires_grad {left.requires_grad} and {right.requires_grad}: declare the "
            "parameters themselves, not values computed from them"
        )
    if left.dtype != right.dtype or left.device != right.device:
        raise ShapeError(
            f"left and right must share dtype and device; got {left.dtype} on {left.device} "
            f"and {right.dtype} on {right.device}"
        )
