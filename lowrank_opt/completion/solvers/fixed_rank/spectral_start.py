"""Where solvers of a fixed rank start: the leading singular triples of what is left to fit."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.completion.solvers.fixed_rank.geometry import Point
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.linalg import leading_svd, product_svd


def spectral_start(fit: ObservedFit, rank: int) -> Point:
    r"""Return the best multiple of the truncated SVD of the observed entries, zero elsewhere.

    Parameters
    ----------
    fit : ObservedFit
    rank : int

    References
    ----------
    Keshavan, Montanari and Oh (2010), Matrix completion from a few entries, section 1.2, without
    trimming; the multiple is the one that fits the observed entries best.
    """
    return _scaled(fit, fit.values, *_leading(fit, fit.values, rank))


def significant_start(fit: ObservedFit, rank: int) -> Point:
    """Return `spectral_start` of those leading triples that stand out, at least one of them.

    A triple stands out if its singular value exceeds the spectral norm of the same entries with
    random signs: signs leave sizes and places as they are and destroy every low rank. What does
    not stand out is noise of sampling, and hides smaller components.

    References
    ----------
    Horn (1965), A rationale and test for the number of factors in factor analysis (parallel
    analysis); with signs instead of permutations.
    """
    return _scaled(fit, fit.values, *_significant(fit, fit.values, rank))


def grow(fit: ObservedFit, point: Point, rank: int) -> Point:
    """Add the triples of the residual that stand out, at least one, up to a larger rank."""
    missing = -fit.residuals(*point.factors())
    new = _scaled(fit, missing, *_significant(fit, missing, rank - len(point.s)))
    left = torch.cat((point.U * point.s, new.U * new.s), dim=1)
    right = torch.cat((point.V, new.V), dim=1)
    U, s, V = product_svd(left, left.new_ones(left.shape[1]), right)
    return Point(U, s, V)


def _leading(fit: ObservedFit, entries: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, s, V = leading_svd(fit.sparse(fit.weigh(entries)), rank)
    device = entries.device
    return U.to(device), s.to(device), V.to(device)


def _significant(fit: ObservedFit, entries: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, s, V = _leading(fit, entries, rank)
    seeded = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, entries.shape, generator=seeded).to(entries) - 1.0
    _, noise, _ = _leading(fit, entries * signs, 1)
    count = max(1, int((s > noise[0]).sum()))
    return U[:, :count], s[:count], V[:, :count]


def _scaled(fit: ObservedFit, entries: Tensor, U: Tensor, s: Tensor, V: Tensor) -> Point:
    """Multiply by the number that fits `entries` best."""
    predictions = fit.predict(U * s, V)
    size = float(torch.dot(predictions, fit.weigh(predictions)))
    share = float(torch.dot(predictions, fit.weigh(entries)))
    # In exact arithmetic the share is the sum of s^2: positive wherever it is not zero.
    return Point(U, s * (share / size) if size > 0 and share > 0 else s, V)
