"""Small matrices in float64: NumPy's for small ranks on the CPU, torch's otherwise.

An optimizer's step has some fifty operations on r x r matrices. Up to a rank of 16 what they cost
is the call, and on the CPU NumPy's take a third of the time of torch's. Both have the same
operators, `linalg`, and the few functions used here, so the formulas are written once; `namespace`
gives the module.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# An array of NumPy or a torch tensor, in float64; all of one computation are of one kind, and what
# is not an operator goes through this file's functions or through `namespace`. A union would ask
# for a test at each use of the operators that both have.
Small: TypeAlias = Any

# From about 28 on, NumPy's BLAS wakes threads that compete with those of torch for the same cores.
_NUMPY_RANK = 16
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}

LinAlgErrors: tuple[type[Exception], ...] = (
    np.linalg.LinAlgError,
    torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
)


def small(x: Tensor, like: Small | None = None) -> Small:
    """Return a tensor as a small array in float64, of the kind of `like` if that is given."""
    x = x.detach().double()
    return x.numpy() if _by_numpy(x, like) else x


def stacked(first: Tensor, second: Tensor, like: Small | None = None) -> Small:
    """Return two tensors of one shape as a small array of shape (2, ...): from torch to `Small`.

    Examples
    --------
    >>> stacked(torch.eye(2), torch.zeros(2, 2)).shape
    (2, 2, 2)
    """
    if _by_numpy(first, like):
        return np.array((first.numpy(), second.numpy()), np.float64)
    return torch.stack((first.double(), second.double()))


def paired(first: Small, second: Small) -> Small:
    """Return two small arrays of one shape as one of shape (2, ...): within `Small`."""
    if isinstance(first, np.ndarray):
        return np.array((first, second))
    return torch.stack((first, second))


def tensor(x: Small, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a small array as a contiguous tensor, from `Small` to torch; it may share memory."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x.astype(_NUMPY[dtype], order="C", copy=False))
    return x.to(dtype).contiguous()


def cholesky(grams: Small) -> tuple[Small, Small]:
    """Return the upper triangular K with ``gram = K^T K``, and its inverse; shapes (k, r, r).

    Raises
    ------
    LinAlgError
        NumPy's or torch's, if a matrix is not positive definite.
    """
    if isinstance(grams, Tensor):
        K = torch.linalg.cholesky(grams, upper=True)
        return K, triangular_inverse(K)
    factorise, _ = _lapack()
    roots = [factorise(gram) for gram in grams]
    if any(info != 0 for _, info in roots):
        raise np.linalg.LinAlgError("matrix is not positive definite")
    K = np.array([root for root, _ in roots])
    return K, np.array([triangular_inverse(root) for root in K])


def triangular_inverse(root: Small) -> Small:
    """Return the inverse of an upper triangular matrix; of several ones with torch."""
    if isinstance(root, Tensor):
        # Torch's `inv` of several larger matrices fails with threads of MKL.
        return torch.linalg.solve_triangular(root, identity(root.shape[-1], root), upper=True)
    _, invert = _lapack()
    return invert(root)[0]


@cache
def _lapack() -> tuple[Any, Any]:
    from scipy.linalg.lapack import dpotrf, dtrtri

    return dpotrf, dtrtri


def namespace(x: Small) -> ModuleType:
    """Return the module whose functions take `x`: `numpy` or `torch`."""
    return np if isinstance(x, np.ndarray) else torch


def frobenius(x: Small) -> float:
    """Return the Frobenius norm of all of `x`."""
    return math.sqrt(float(np.vdot(x, x) if isinstance(x, np.ndarray) else (x * x).sum()))


def spectral_bound(x: Small) -> float:
    """Return an upper bound on the spectral norm of a matrix: of its row and column sums."""
    sizes = abs(x)
    return math.sqrt(float(sizes.sum(0).max()) * float(sizes.sum(1).max()))


def array(values: object, like: Small) -> Small:
    """Return numbers as an array of the kind of `like`."""
    if isinstance(like, Tensor):
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return np.asarray(values, np.float64)


def identity(rank: int, like: Small) -> Small:
    """Return an identity matrix of the kind of `like`."""
    return array(np.eye(rank), like)


def _by_numpy(x: Tensor, like: Small | None) -> bool:
    if like is not None:
        return isinstance(like, np.ndarray)
    return x.is_cpu and x.shape[-1] <= _NUMPY_RANK
