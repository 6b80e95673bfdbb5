"""PEFT's Cayley maps of skew matrices, and the series that it sums instead, as our parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.linalg import skew_matrices, skew_of, skew_of_turn
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal
from lowrank_opt.parameterizations.turned.scaled_rotation import ScaledRotation

# Of PEFT's Cayley map there is no other bound; ours scales larger skew matrices down.
_LARGEST = 1e6


def square(entries: Tensor, b: int) -> Tensor:
    """Return skew matrices from entries above the diagonal, row by row, in float64."""
    rows, cols = torch.triu_indices(b, b, 1)
    Q = entries.new_zeros(*entries.shape[:-1], b, b, dtype=torch.float64)
    Q[..., rows, cols] = entries.detach().double()
    return Q - Q.mT


def upper_entries(Q: Tensor) -> Tensor:
    """Return the entries above the diagonal, row by row."""
    rows, cols = torch.triu_indices(Q.shape[-1], Q.shape[-1], 1)
    return Q[..., rows, cols]


def turned(Q: Tensor, series_terms: int | None) -> tuple[Tensor, float]:
    """Return our skew matrices of the nearest rotations, and how far these are away in all."""
    if series_terms is None:
        return -Q, 0.0
    R = computed(Q, series_terms)
    U, _, Vh = torch.linalg.svd(R)
    distance = torch.linalg.matrix_norm(U @ Vh - R, 2)
    return skew_of(U @ Vh, "cayley"), float(distance.amax(1).sum())


def computed(Q: Tensor, series_terms: int | None) -> Tensor:
    """Return R as PEFT computes it: for ours, of activations turned by R^T."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    if series_terms is None:
        return torch.linalg.solve(eye - Q, eye + Q, left=False)
    # I + 2 Q + ... + 2 Q^(d-1) + Q^d as PEFT sums it; of three terms, d = 3.
    degree = series_terms - 1 if series_terms < 3 else max(series_terms - 1, 3)
    total, power = eye.expand_as(Q).clone(), eye
    for k in range(1, degree + 1):
        power = power @ Q
        total = total + (1.0 if k == degree and degree > 1 else 2.0) * power
    return total


def free(module: Orthogonal | ScaledRotation) -> Tensor:
    """Return skew matrices, float64, whose unbounded Cayley transforms are the blocks of R."""
    scaled = isinstance(module, ScaledRotation)
    K = skew_matrices(module.skew.detach(), module.rank if scaled else module.block_size)
    bounded = module.radius is not None or float(K.abs().sum(-1).amax()) > _LARGEST
    if not bounded and (scaled or module.map == "cayley"):
        return K
    return skew_of_turn(module.turns().detach(), "cayley")
