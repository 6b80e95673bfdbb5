r"""Contractions from free matrices.

The map :math:`K(B) = 2 B (I + B^T B)^{-1}` sends a singular value b to 2 b / (1 + b^2), which is
at most 1 and takes every value of [0, 1]: its image is the set of all contractions.
"""

import torch
from torch import Tensor

from lowrank_opt.linalg.cayley import tall_cayley


def contraction(rows: Tensor) -> Tensor:
    r"""Return :math:`K(B) = 2 B (I + B^T B)^{-1}`, whose singular values are at most 1.

    Parameters
    ----------
    rows : Tensor, shape (..., m, r)
        Any finite values.

    Returns
    -------
    Tensor, shape (..., m, r)
        In the working dtype; the norm exceeds 1 by a few units of its rounding at most.

    Notes
    -----
    K(B) is the lower block, up to its sign, of the tall Cayley transform without skew part, and
    shares its one-sided shift and its polish: the bound is that of a block of an orthonormal frame.

    Examples
    --------
    >>> contraction(torch.tensor([[1.0], [0.0]])).flatten()
    tensor([1., 0.], dtype=torch.float64)
    """
    return -tall_cayley(None, rows)[..., rows.shape[-1] :, :]


def invert_contraction(values: Tensor) -> Tensor:
    """Return the b in [-1, 1] with ``2 b / (1 + b^2) = value``, for values clipped to [-1, 1].

    Examples
    --------
    >>> invert_contraction(torch.tensor([0.0, 0.8, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.tan(torch.asin(values.clamp(-1.0, 1.0)) / 2)


def inverse_one_plus_gram(x: Tensor) -> Tensor:
    r"""Return :math:`(I + X^T X)^{-1}` for any finite X.

    Parameters
    ----------
    x : Tensor, shape (..., k, r)

    Returns
    -------
    Tensor, shape (..., r, r)
        Differentiable to any order.

    Examples
    --------
    >>> inverse_one_plus_gram(torch.tensor([[3.0]]))
    tensor([[0.1000]])
    """
    c = x.detach().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1.0)
    X = x / c
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    gram = X.mT @ X
    # A rank-deficient X at a large c leaves c^-2 I below the rounding of the Gram matrix.
    trace = gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    shift = torch.maximum(c**-2, 4 * torch.finfo(x.dtype).eps * trace)
    return torch.linalg.inv_ex(gram + shift * eye).inverse / c / c
