"""Independent computations that several tests compare with: numpy on dense matrices."""

import math

import numpy as np
import torch

from lowrank_opt import LowRankOperator, Parameterization
from tests.builders import normal as normal

D = torch.float64

# (m, n, rank): corners, thin, square, rank = min, tall.
SHAPES = [(1, 1, 1), (1, 6, 1), (7, 1, 1), (5, 4, 2), (5, 4, 3), (4, 4, 4), (3, 6, 3), (40, 7, 5)]

# Singular values before scaling: what a right inverse finds hard.
PROFILES = {
    "decaying": lambda r: 0.5 ** np.arange(r),
    "repeated": np.ones,
    "rank one": lambda r: np.eye(1, r)[0],
    "half zero": lambda r: (np.arange(r) < (r + 1) // 2).astype(float),
    "tiny tail": lambda r: np.concatenate(([1.0], np.full(r - 1, 1e-9))),
}
FRACTIONS = [0.0, 1e-200, 1e-9, 0.3, 1 - 1e-12, 1.0]


def dense(op: LowRankOperator) -> np.ndarray:
    left, scale, right = (x.detach().double().numpy() for x in op)
    return left @ np.diag(scale) @ right.T


def singular_values(op: LowRankOperator) -> np.ndarray:
    return np.linalg.svd(dense(op), compute_uv=False)


def frame(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(normal(rows, cols, seed=seed).numpy())[0]


def matrix(m: int, n: int, sigma: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a matrix with the given singular values and random singular vectors."""
    k = len(sigma)
    return frame(m, k, seed) @ np.diag(sigma) @ frame(n, k, seed + 1).T


def schatten(sigma: np.ndarray, p: float) -> float:
    return float(np.linalg.norm(sigma, p))


def ky_fan(sigma: np.ndarray, k: int) -> float:
    return float(np.sort(sigma)[::-1][:k].sum())


def fill(module: Parameterization, size: float = 1.0, seed: int = 0) -> Parameterization:
    """Set every parameter to random values of the given size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, dtype=D, generator=generator)
            parameter.copy_(size * values)
    return module


def fill_parallel(module: Parameterization, size: float = 1.0) -> Parameterization:
    """Set every parameter to columns that are equal but for a part in 1e-2 / size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            one = torch.randn((*parameter.shape[:-1], 1), dtype=D, generator=generator)
            noise = torch.randn(parameter.shape, dtype=D, generator=generator)
            parameter.copy_(size * (one + 1e-2 / max(size, 1) * noise))
    return module


def zero_start_gradient(module: Parameterization, G: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of ``<G, W>`` at the present parameters."""
    (module().to_dense() * G).sum().backward()
    return {k: v.grad for k, v in module.named_parameters()}


def tolerance(dtype: torch.dtype, rank: int) -> float:
    """Return the documented one, written once more."""
    stored, computed = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
    return (2 * stored + 14 * computed) * math.sqrt(rank)


def expect_boundary_reached(module: Parameterization, *, atol: float) -> None:
    """Expect the right inverse to reach targets on the boundary, inside, of lower rank and zero."""
    wide = 10 * normal(6, 5, seed=3)
    boundary = module.feasible_set.project(LowRankOperator.from_dense(wide))
    for target in (boundary, boundary.truncate(1), boundary * 0.3, boundary * 0.0):
        np.testing.assert_allclose(dense(module.assign(target)()), dense(target), atol=atol)
