"""How much updates overlap, and what is left of each of them in a combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True, eq=False)
class Interference:
    r"""Overlaps of the weighted updates :math:`W_i`, and of each with the combination W; float64.

    Attributes
    ----------
    cosines : Tensor, shape (K, K)
        :math:`\langle W_i, W_j \rangle / (\|W_i\|_F \|W_j\|_F)`; zero for an update of zero.
    kept : Tensor, shape (K,)
        :math:`\langle W_i, W \rangle / \|W_i\|_F^2`: 1 in a sum of updates that do not overlap, 0
        where an update is lost; NaN for an update of zero.
    singular : float
        :math:`\|(U^T U - I)\, \Sigma\, (V^T V - I)\|_1`, the sum of absolute entries, over the
        singular vectors of all updates side by side: zero if no two updates share directions on
        both sides.

    References
    ----------
    Gargiulo et al., Task singular vectors (arXiv 2412.00081), section 3: singular task
    interference.
    """

    cosines: Tensor
    kept: Tensor
    singular: float


def measure_interference(terms: Sequence[LowRankOperator], result: LowRankOperator) -> Interference:
    """Return the overlaps of weighted updates, from thin products.

    Parameters
    ----------
    terms : sequence of LowRankOperator
        Of one shape.
    result : LowRankOperator
        What they were combined into.

    Examples
    --------
    >>> a, b = (LowRankOperator.from_dense(torch.diag(x), 1) for x in torch.eye(2))
    >>> measure_interference([a, b], a + b).kept
    tensor([1., 1.], dtype=torch.float64)
    """
    thin = [op.detach().to(dtype=torch.float64).thin_svd() for op in terms]
    whole = result.detach().to(dtype=torch.float64).thin_svd()
    norms = [float(torch.linalg.vector_norm(op.scale)) for op in thin]
    unit = [
        LowRankOperator(op.left, op.scale / (x or 1.0), op.right)
        for op, x in zip(thin, norms, strict=True)
    ]
    gram = torch.stack([torch.stack([_inner(a, b) for b in unit]) for a in unit])
    kept = [
        float(_inner(a, whole)) / x if x > 0 else float("nan")
        for a, x in zip(unit, norms, strict=True)
    ]
    return Interference(gram, torch.tensor(kept, dtype=torch.float64), _singular(thin))


def _inner(a: LowRankOperator, b: LowRankOperator) -> Tensor:
    r"""Return :math:`\langle A, B \rangle_F` from r x r products."""
    left = a.scale.unsqueeze(1) * (a.left.mT @ b.left)
    return (left * (a.right.mT @ b.right) * b.scale).sum()


def _singular(thin: Sequence[LowRankOperator]) -> float:
    U, V = (torch.cat([getattr(op, side) for op in thin], dim=1) for side in ("left", "right"))
    sigma = torch.cat([op.scale for op in thin])
    identity = torch.eye(len(sigma)).to(sigma)
    product = ((U.mT @ U - identity) * sigma) @ (V.mT @ V - identity)
    return float(product.abs().sum())
