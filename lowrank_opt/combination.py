"""One update of one matrix made of several: the rules, from thin factors where they can.

What is around them - models, adapters, declared sets, interference - is in `nn` and `merging`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.errors import RankError
from lowrank_opt.linalg import working_dtype
from lowrank_opt.linalg.entrywise import drop_and_rescale, elect_sign_and_average, keep_largest
from lowrank_opt.operator import LowRankOperator

CombineMethod: TypeAlias = Literal[
    "sum",
    "average",
    "svd",
    "knots",
    "tsv",
    "drop_components",
    "ties_dense",
    "dare_dense",
    "magnitude_dense",
]
TRUNCATED = ("svd", "ties_dense", "dare_dense", "magnitude_dense")
RANDOM = ("drop_components", "dare_dense")


@dataclass(frozen=True)
class CombineSettings:
    """What only some of the methods read.

    Attributes
    ----------
    rank : int or None
    density : float
    generator : torch.Generator or None
    """

    rank: int | None
    density: float
    generator: torch.Generator | None


def combined(
    method: CombineMethod,
    ops: Sequence[LowRankOperator],
    weights: Tensor,
    settings: CombineSettings,
) -> LowRankOperator:
    """Return what a method makes of updates and weights, before any truncation.

    Parameters
    ----------
    method : str
    ops : sequence of LowRankOperator
        Of one shape; float64 for all but ``sum`` and ``average``.
    weights : Tensor, shape (K,)
    settings : CombineSettings
    """
    match method:
        case "sum" | "average" | "svd":
            return stacked(ops, weights, ops[0].dtype)
        case "knots":
            return _aligned_ties(_terms(ops, weights), settings.density)
        case "tsv":
            return _decorrelated(_terms(ops, weights), settings.rank)
        case "drop_components":
            kept = [_thinned(op, settings) for op in _terms(ops, weights)]
            return sum(kept[1:], start=kept[0])
        case _:
            return _entrywise_dense(method, _terms(ops, weights), settings)


def _terms(ops: Sequence[LowRankOperator], weights: Tensor) -> list[LowRankOperator]:
    return [w * op for op, w in zip(ops, weights.tolist(), strict=True)]


def stacked(ops: Sequence[LowRankOperator], weights: Tensor, dtype: torch.dtype) -> LowRankOperator:
    """Return ``sum_k p_k W_k`` as one operator: factors side by side, weights in the scale.

    Exact for factors of `dtype` or less: only the scale, of higher precision, is rounded.
    """
    scales = [
        p * op.scale.to(working_dtype(op.scale))
        for op, p in zip(ops, weights.tolist(), strict=True)
    ]
    left = torch.cat([op.left.to(dtype) for op in ops], dim=1)
    right = torch.cat([op.right.to(dtype) for op in ops], dim=1)
    return LowRankOperator(left, torch.cat(scales), right)


def _aligned_ties(terms: Sequence[LowRankOperator], density: float) -> LowRankOperator:
    r"""TIES on the coordinates :math:`U^T W_i`, U the left vectors of all updates side by side.

    With thin SVDs :math:`W_i = U_i S_i V_i^T` the concatenation is
    :math:`[U_1 S_1, \dots, U_K S_K]` times a matrix with orthonormal rows, so that U comes from an
    SVD of as many columns as the updates have together.
    """
    thin = [op.thin_svd() for op in terms]
    beside = torch.cat([op.left * op.scale for op in thin], dim=1)
    U, sigma, _ = torch.linalg.svd(beside, full_matrices=False)
    U = U[:, : max(1, _rank(sigma, beside))]
    coordinates = [((U.mT @ op.left) * op.scale) @ op.right.mT for op in terms]
    merged = elect_sign_and_average([keep_largest(x, density) for x in coordinates])
    return LowRankOperator(U, U.new_ones(U.shape[1]), merged.mT)


def _decorrelated(terms: Sequence[LowRankOperator], rank: int | None) -> LowRankOperator:
    """Replace the singular vectors of all updates by the nearest orthonormal ones."""
    limit = min(terms[0].shape) if rank is None else rank
    if limit < len(terms):
        raise RankError(
            f"'tsv' keeps a component of each update at least; got {len(terms)} updates for "
            f"rank={limit}: combine fewer, or use 'svd'"
        )
    thin = [_leading(op.thin_svd(), limit) for op in terms]
    thin = [op for op in thin if op.rank > 0]
    if not thin:
        return terms[0].truncate(1)
    if sum(op.rank for op in thin) > limit:
        thin = [_leading(op, limit // len(thin)) for op in thin]
    whole = sum(thin[1:], start=thin[0])
    return LowRankOperator(_nearest_frame(whole.left), whole.scale, _nearest_frame(whole.right))


def _leading(svd: LowRankOperator, count: int) -> LowRankOperator:
    """Return the leading columns of an SVD, without those that are zero to rounding."""
    count = min(count, _rank(svd.scale, svd.left, svd.right))
    return LowRankOperator(svd.left[:, :count], svd.scale[:count], svd.right[:, :count])


def _nearest_frame(x: Tensor) -> Tensor:
    """Return the polar factor, a partial isometry where columns depend on each other."""
    U, sigma, Vh = torch.linalg.svd(x, full_matrices=False)
    # Directions of singular value zero would be arbitrary, and enter with full strength.
    rank = _rank(sigma, x)
    return U[:, :rank] @ Vh[:rank]


def _rank(sigma: Tensor, *matrices: Tensor) -> int:
    """Return how many of decreasing singular values are not zero to rounding."""
    size = max(side for x in matrices for side in x.shape)
    return int((sigma > size * torch.finfo(sigma.dtype).eps * sigma[:1]).sum())


def _thinned(op: LowRankOperator, settings: CombineSettings) -> LowRankOperator:
    left, scale, right = op.thin_svd()
    return LowRankOperator(
        left, drop_and_rescale(scale, settings.density, settings.generator), right
    )


def _entrywise_dense(
    method: str, terms: Sequence[LowRankOperator], settings: CombineSettings
) -> LowRankOperator:
    if method == "dare_dense":
        parts = (
            drop_and_rescale(op.to_dense(), settings.density, settings.generator) for op in terms
        )
        return LowRankOperator.from_dense(sum(parts, start=terms[0].left.new_zeros(())))
    trimmed = [keep_largest(op.to_dense(), settings.density) for op in terms]
    if method == "ties_dense":
        return LowRankOperator.from_dense(elect_sign_and_average(trimmed))
    return LowRankOperator.from_dense(sum(trimmed[1:], start=trimmed[0]))
