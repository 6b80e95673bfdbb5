"""Rotations of blocks of coordinates: which coordinates, and the nearest one to given columns."""

from __future__ import annotations

import torch
from torch import Tensor


def butterfly_order(n: int, b: int, stage: int, device: torch.device) -> Tensor | None:
    """Return which coordinates stand in the blocks of a stage: those ``b ** stage`` apart.

    None for the first stage, whose blocks are of neighbours.

    Examples
    --------
    >>> butterfly_order(8, 2, 1, torch.device("cpu")).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    if stage == 0:
        return None
    stride = b**stage
    grid = torch.arange(n, device=device).view(-1, b, stride)
    return grid.transpose(1, 2).flatten()


def nearest_rotations(before: Tensor, after: Tensor) -> Tensor:
    r"""Return the orthogonal R that brings ``before @ R`` nearest to `after`.

    The polar factor of :math:`A^T B`. Where A and B do not tell R, it is the one nearest to the
    identity between their null spaces.

    Parameters
    ----------
    before, after : Tensor, shape (m, b)
        A and B, in float64.

    Returns
    -------
    Tensor, shape (b, b)

    References
    ----------
    Schönemann (1966), the orthogonal Procrustes problem.

    Examples
    --------
    >>> A = torch.eye(3, 2, dtype=torch.float64)
    >>> nearest_rotations(A, A.flip(1))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    U, sigma, Vh = torch.linalg.svd(before.mT @ after)
    known = sigma > len(sigma) * torch.finfo(sigma.dtype).eps * sigma[:1]
    k = int(known.sum())
    if k == len(sigma):
        return U @ Vh
    # The null spaces of A and B, between which any orthogonal map will do.
    N, M = U[:, k:], Vh[k:].mT
    P, _, Qh = torch.linalg.svd(N.mT @ M)
    return U[:, :k] @ Vh[:k] + N @ (P @ Qh) @ M.mT
