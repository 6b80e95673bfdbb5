"""LoRA+: a larger learning rate for the factor that starts at zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.training.roles import FactorPair, factor_pairs, other_parameters


def lora_plus_groups(
    pairs: nn.Module | Iterable[FactorPair],
    *,
    lr: float,
    ratio: float = 16.0,
    others: Iterable[Tensor] = (),
    others_lr: float | None = None,
) -> list[dict[str, Any]]:
    r"""Return parameter groups with :math:`\eta_L = \text{ratio} \cdot \eta_R`, for AdamW.

    L is LoRA's B, which starts at zero. Of the other parameters, vectors join the group of L
    and matrices that of R, unless `others_lr` is given. A good ratio belongs to one scale of the
    start: nothing here is invariant under a change of gauge.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
        Of a module: `factor_pairs`, and all remaining trainable parameters as others.
    lr : float
        Of the right factors.
    ratio : float
        At least 1; 1 is the optimizer without groups.
    others : iterable of Tensor
    others_lr : float, optional

    References
    ----------
    Hayou, Ghosh and Yu, LoRA+ (arXiv 2402.12354), section 4.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> groups = lora_plus_groups(Factored((4, 3), 2), lr=1e-3, ratio=8.0)
    >>> [group["lr"] for group in torch.optim.AdamW(groups).param_groups]
    [0.008, 0.001]
    """
    if not ratio >= 1:
        raise ValueError(f"ratio must be >= 1; got ratio={ratio!r}: 1 gives equal learning rates")
    given, declared = list(others), pairs
    if isinstance(pairs, nn.Module):
        declared = factor_pairs(pairs)
        given = other_parameters(pairs, declared) + given
    declared = list(declared) if not isinstance(declared, nn.Module) else []
    if not declared:
        raise ShapeError("LoRA+ needs at least one pair of factors; got none")
    high, low = [p.left for p in declared], [p.right for p in declared]
    if others_lr is None:
        high += [p for p in given if p.ndim < 2]
        low += [p for p in given if p.ndim >= 2]
        given = []
    groups = [{"params": high, "lr": ratio * lr}, {"params": low, "lr": lr}]
    return groups + ([{"params": given, "lr": others_lr}] if given else [])
