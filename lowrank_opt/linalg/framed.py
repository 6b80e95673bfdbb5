r"""Products seen in orthonormal frames of their factors, with derivatives of every order.

Spectral functions of :math:`P = B A^T`, such as :math:`2 P (I + P^T P)^{-1}`, are computed without
loss from the small core :math:`C = L^T P R` of a product in frames L of B and R of A. But frames
have no derivative where columns are dependent, which is where training starts (B = 0).

So the frames are *constants*: those of the present factors. With
:math:`b = L^T B,\ \breve B = B - L b` and :math:`a = R^T A,\ \breve A = A - R a`, the identity

.. math:: P = [L\ \breve B] \begin{bmatrix} b a^T & b \\ a^T & I \end{bmatrix} [R\ \breve A]^T

holds for *all* B and A, not only for those the frames belong to. At those, the breves are zero:
the value is that of :math:`L\, b a^T R^T`, and the other three blocks carry nothing but
derivatives. Every formula below is exact in b, a and the breves; hence so are derivatives of every
order, forward or reverse, wherever the map itself is smooth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.linalg.contraction import contraction, inverse_one_plus_gram
from lowrank_opt.linalg.scaling import inverse_power_of_two, negligible, working_dtype

# Products beyond 2**480 = 3e144 count as that: their squares must not overflow.
_LARGEST_EXPONENT = 480


@dataclass(frozen=True, eq=False)
class FramedProduct:
    r"""A product ``P = B A^T`` in constant frames L and R, see the module.

    Attributes
    ----------
    left_frame, right_frame : Tensor, shapes (..., m, r) and (..., n, r)
        L and R: orthonormal columns, also where the factors have dependent ones. Constants.
    left, right : Tensor, shape (..., r, r)
        ``b = L^T B`` and ``a = R^T A``.
    left_out, right_out : Tensor, shapes (..., m, r) and (..., n, r)
        ``B - L b`` and ``A - R a``: zero in value, not in derivative.
    """

    left_frame: Tensor
    right_frame: Tensor
    left: Tensor
    right: Tensor
    left_out: Tensor
    right_out: Tensor

    @property
    def core(self) -> Tensor:
        """``C = b a^T``, shape (..., r, r): in value, P is ``L C R^T``."""
        return self.left @ self.right.mT

    @property
    def bend(self) -> Tensor:
        r"""What the frames miss of :math:`A^T A B^T B`, shape (..., r, r).

        :math:`A^T A B^T B - a^T a\, b^T b`, of second order in the motion out of the frames.
        """
        S, T = self.left_out.mT @ self.left_out, self.right_out.mT @ self.right_out
        b, a = self.left, self.right
        return (a.mT @ a) @ S + T @ (b.mT @ b + S)

    def scaled(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors of ``factor * P``, see `assemble`, for a factor of shape (..., 1, 1)."""
        b, a = self.left, self.right
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        return self.assemble(factor * self.core, factor * b, factor * a.mT, factor * eye)

    def contracted(self) -> tuple[Tensor, Tensor]:
        r"""Return factors of :math:`2 P (I + P^T P)^{-1} = 2 B M A^T`, see `assemble`.

        Here :math:`M = (I + A^T A B^T B)^{-1}`. With :math:`M_0 = (I + a^T a\, b^T b)^{-1}`,
        :math:`D = (I + C C^T)^{-1}`, :math:`E = (I + C^T C)^{-1}` and the bend :math:`\Delta`,

        .. math:: M = M_0 - M_0 \Delta Y M_0, \quad Y = (I + M_0 \Delta)^{-1}, \quad
                  b M_0 = D b, \quad M_0 a^T = a^T E, \quad M_0 = I - a^T E\, C^T b .
        """
        b, a, C = self.left, self.right, self.core
        D, E = inverse_one_plus_gram(C.mT), inverse_one_plus_gram(C)
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        bM0, M0a = D @ b, a.mT @ E
        M0 = eye - M0a @ (C.mT @ b)
        # Zero in value. Products of small things first: b^T b alone may be of size 1e288.
        DY = torch.linalg.solve_ex(eye + M0 @ self.bend, self.bend, left=False).result
        bN, N = -bM0 @ DY, -M0 @ DY
        core = contraction(C) + 2 * bN @ M0a
        return self.assemble(core, 2 * (bM0 + bN @ M0), 2 * (M0a + N @ M0a), 2 * (M0 + N @ M0))

    def assemble(
        self, core: Tensor, beside: Tensor, below: Tensor, corner: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Return factors of ``[L, B - L b] [[core, beside], [below, corner]] [R, A - R a]^T``.

        Parameters
        ----------
        core, beside, below, corner : Tensor, shape (..., r, r)

        Returns
        -------
        left : Tensor, shape (..., m, 2 r)
        right : Tensor, shape (..., n, 2 r)
            The last r columns of `right` are exactly 0 and carry the derivative along motions of
            the right factor out of its frame.
        """
        L, R = self.left_frame, self.right_frame
        still = L @ beside + self.left_out @ corner
        # Columns of size one at most: rounded to half precision, larger ones could overflow.
        c = still.detach().abs().amax(dim=-2, keepdim=True).clamp_min(1.0)
        left = torch.cat((L @ core + self.left_out @ below, still / c), dim=-1)
        return left, torch.cat((R, self.right_out * c), dim=-1)


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
        In the working dtype; the size of the product is all in ``left``.

    Examples
    --------
    >>> product = framed_product(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]]))
    >>> product.core.abs()
    tensor([[10.]], dtype=torch.float64)
    """
    dtype = working_dtype(left)
    B, b_exponent = _unit_peak(left.to(dtype))
    A, a_exponent = _unit_peak(right.to(dtype))
    exponent = (b_exponent + a_exponent).clamp(-1100, _LARGEST_EXPONENT)
    half, one = exponent // 2, torch.ones_like(B[..., :1, :1].detach())
    size = torch.ldexp(torch.ldexp(one, half), exponent - half)
    L, b, B_out = _in_frame(B)
    R, a, A_out = _in_frame(A)
    return FramedProduct(L, R, size * b, a, size * B_out, A_out)


def _unit_peak(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by a power of two so that the largest entry is in [0.5, 1); next to 0, by one.

    The factor that would bring 1e-310 to one overflows, and the gradient with it.
    """
    peak = x.detach().abs().amax(dim=(-2, -1), keepdim=True)
    first, second, exponent = inverse_power_of_two(
        torch.where(peak >= negligible(x.dtype), peak, 1.0)
    )
    return x * first * second, exponent


def _in_frame(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a constant frame Q of x, ``Q^T x``, and ``x - Q Q^T x``, which is exactly zero."""
    Q = torch.linalg.qr(x.detach()).Q
    moved = x - x.detach()
    return Q, Q.mT @ x, moved - Q @ (Q.mT @ moved)
