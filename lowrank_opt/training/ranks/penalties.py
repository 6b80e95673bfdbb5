"""Penalties that belong to a method of rank allocation, summed over a model; add them to the loss.

Without its penalty AdaLoRA trains other scores: its triples drift from orthonormal ones, and the
values of lambda no longer tell the sizes of components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.parameterizations import AdaLoRA, DynamicRank


def orthogonality_penalty(module: nn.Module, *, squared: bool = True) -> Tensor:
    r"""Return :math:`\sum_l \|P_l^T P_l - I\|_F^2 + \|Q_l Q_l^T - I\|_F^2` over AdaLoRA's triples.

    Parameters
    ----------
    module : nn.Module
        A model, or one `AdaLoRA`.
    squared : bool
        Otherwise the mean over the matrices of the norms, as in the authors' code, whose gradient
        does not vanish where the penalty does.

    Returns
    -------
    Tensor, a scalar in float64
        Times 0.1 to 0.5 in the paper.

    Raises
    ------
    ShapeError
        If the module has no `AdaLoRA`.

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), eq. (4).

    Examples
    --------
    >>> from lowrank_opt import AdaLoRA
    >>> layer = AdaLoRA((4, 3), 2, dtype=torch.float64)
    >>> bool(orthogonality_penalty(layer) < 1e-20)  # the start is orthonormal
    True
    """
    parts = [x for x in module.modules() if isinstance(x, AdaLoRA)]
    if not parts:
        raise ShapeError(f"an orthogonality penalty needs AdaLoRA; got a {type(module).__name__}")
    terms = torch.stack([x.orthogonality_penalty(squared=squared) for x in parts])
    return terms.sum() if squared else terms.mean()


def dispersion_penalty(module: nn.Module, *, per_pair: bool = True) -> Tensor:
    """Return the mean over modules of the variances of the entries of dynamic-rank DoRA's vectors.

    Add it until the budget is final.

    Parameters
    ----------
    module : nn.Module
        A model, or one `DynamicRank`.
    per_pair : bool
        Of both vectors of a component together, the paper's. Otherwise the mean over all vectors of
        their unbiased variances, as in the authors' code, which takes it times 0.1: little more
        than half as much, so that 0.05 is about that weight here.

    Raises
    ------
    ShapeError
        If the module has no `DynamicRank`.

    References
    ----------
    Mao et al., DoRA: dynamic rank distribution (arXiv 2405.17357), eq. (8).

    Examples
    --------
    >>> from lowrank_opt import DynamicRank
    >>> bool(dispersion_penalty(DynamicRank((4, 3), 2)) > 0)
    True
    """
    parts = [x for x in module.modules() if isinstance(x, DynamicRank)]
    if not parts:
        raise ShapeError(f"a dispersion penalty needs DynamicRank; got a {type(module).__name__}")
    return torch.stack([x.dispersion_penalty(per_pair=per_pair) for x in parts]).mean()
