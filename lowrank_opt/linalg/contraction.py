r"""Contractions from free matrices, and products seen in orthonormal frames.

The map :math:`K(B) = 2 B (I + B^T B)^{-1}` sends a singular value b to 2 b / (1 + b^2), which is
at most 1 and takes every value of [0, 1]: its image is the set of all contractions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.linalg.cayley import tall_cayley
from lowrank_opt.linalg.scaling import negligible, working_dtype

# Products beyond 2**480 = 3e144 count as that: their squares must not overflow.
_LARGEST_EXPONENT = 480


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
    r"""Return :math:`(I + X^T X)^{-1}` for any finite X, not differentiable.

    Parameters
    ----------
    x : Tensor, shape (..., k, r)

    Returns
    -------
    Tensor, shape (..., r, r)

    Examples
    --------
    >>> inverse_one_plus_gram(torch.tensor([[3.0]]))
    tensor([[0.1000]])
    """
    with torch.no_grad():
        c = x.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1.0)
        X = x / c
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        gram = X.mT @ X
        # A rank-deficient X at a large c leaves c^-2 I below the rounding of the Gram matrix.
        shift = 4 * torch.finfo(x.dtype).eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        N = gram + torch.maximum(c**-2, shift[..., None, None]) * eye
        return torch.linalg.inv_ex(N).inverse / c / c


@dataclass(frozen=True, eq=False)
class FramedProduct:
    r"""A product ``P = B A^T`` seen as ``L core R^T`` in orthonormal frames of its factors.

    The frames are constants to autograd; `core` is differentiable, and `image` adds what the
    frames miss. Values never suffer from cancellation between the columns of the factors.

    Attributes
    ----------
    left_frame, right_frame : Tensor, shapes (..., m, r) and (..., n, r)
        Orthonormal columns, also where the factors have dependent ones.
    core : Tensor, shape (..., r, r)
    left_slope, right_slope : Tensor, shape (..., r, r)
        Constants: ``A^T R`` and ``L^T B`` in the units of the moves.
    left_move, right_move : Tensor, shapes (..., m, r) and (..., n, r)
        Zero in value; in derivative, the part of the factors' motion that leaves the frames.
    """

    left_frame: Tensor
    right_frame: Tensor
    core: Tensor
    left_slope: Tensor
    right_slope: Tensor
    left_move: Tensor
    right_move: Tensor

    def image(self, values: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return factors of f(P), f(P) = P g(P^T P) = g(P P^T) P a spectral function.

        Parameters
        ----------
        values : Tensor, shape (..., r, r)
            f(core), differentiable.
        rows, cols : Tensor, shape (..., r, r) or (..., 1, 1)
            g(core core^T) and g(core^T core); their derivatives are not needed.

        Returns
        -------
        left : Tensor, shape (..., m, 2 r)
        right : Tensor, shape (..., n, 2 r)
            The last r columns of `right` are exactly 0 and carry the derivative along motions of
            the right factor out of its frame.
        """
        L, R = self.left_frame, self.right_frame
        # f(P + dB A^T) = f(P) + dB A^T g(P^T P) for dB orthogonal to L; in A alike.
        left = L @ values + self.left_move @ _scaled(self.left_slope, cols, after=True)
        still = L @ _scaled(self.right_slope, rows, after=False)
        # Columns of size one at most: rounded to half precision, larger ones could overflow.
        c = still.abs().amax(dim=-2, keepdim=True).clamp_min(1.0)
        return torch.cat((left, still / c), dim=-1), torch.cat((R, self.right_move * c), dim=-1)


def _scaled(slope: Tensor, g: Tensor, *, after: bool) -> Tensor:
    if g.shape[-1] == 1:
        return (slope * g).detach()
    return (slope @ g if after else g @ slope).detach()


def framed_product(left: Tensor, right: Tensor) -> FramedProduct:
    r"""Return the product ``left right^T`` in frames from thin QR factorizations.

    Parameters
    ----------
    left : Tensor, shape (..., m, r), m >= r
    right : Tensor, shape (..., n, r), n >= r
        Any finite values; their product may lie outside the range of the dtype: above 3e144 it
        counts as of that size.

    Returns
    -------
    FramedProduct
        In the working dtype. First derivatives are exact, also where columns are dependent.

    Examples
    --------
    >>> product = framed_product(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]]))
    >>> product.core.abs()
    tensor([[10.]], dtype=torch.float64)
    """
    dtype = working_dtype(left)
    B, b_exponent = _unit_peak(left.to(dtype))
    A, a_exponent = _unit_peak(right.to(dtype))
    with torch.no_grad():
        exponent = (b_exponent + a_exponent).clamp(-1100, _LARGEST_EXPONENT)
        size = torch.ldexp(torch.ldexp(torch.ones_like(B[..., :1, :1]), exponent // 2),
                           exponent - exponent // 2)  # fmt: skip
        L, R = torch.linalg.qr(B).Q, torch.linalg.qr(A).Q
    b, a = L.mT @ B, R.mT @ A
    return FramedProduct(
        left_frame=L,
        right_frame=R,
        core=size * (b @ a.mT),
        left_slope=(size * a.mT).detach(),
        right_slope=(size * b).detach(),
        left_move=_out_of_frame(B, L),
        right_move=_out_of_frame(A, R),
    )


def _unit_peak(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by a power of two so that the largest entry is in [0.5, 1); next to 0, by one.

    The factor that would bring 1e-310 to one overflows, and the gradient with it.
    """
    with torch.no_grad():
        peak = x.abs().amax(dim=(-2, -1), keepdim=True)
        _, exponent = torch.frexp(torch.where(peak >= negligible(x.dtype), peak, 1.0))
        half = exponent // 2
        first = torch.ldexp(torch.ones_like(peak), -half)
        second = torch.ldexp(torch.ones_like(peak), half - exponent)
    return x * first * second, exponent


def _out_of_frame(x: Tensor, frame: Tensor) -> Tensor:
    """Return (I - Q Q^T) (x - constant x): zero, with the derivative of the projection."""
    moved = x - x.detach()
    return moved - frame @ (frame.mT @ moved)
