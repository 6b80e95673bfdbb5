r"""The Cayley transform of tall matrices, one-sided so that it cannot leave the unit ball.

For free :math:`X` (r x r) and :math:`Y` (k x r) put :math:`Z = X - X^T + Y^T Y` and

.. math:: G = \begin{bmatrix} (I - Z)(I + Z)^{-1} \\ -2 Y (I + Z)^{-1} \end{bmatrix},
          \qquad G^T G = I .

With an inexact Gram matrix :math:`\hat P \approx Y^T Y` and a shift :math:`\tau`,
:math:`G^T G = I - 4 M^T (\hat P + \tau I - Y^T Y) M`: a positive shift of the size of the rounding
error of the Gram matrix turns *approximately orthonormal* into *never above one*.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.linalg.forward_rule import (
    forward_rule,
    is_differentiated,
    or_zeros,
    with_signature,
)
from lowrank_opt.linalg.scaling import working_dtype


def tall_cayley(skew: Tensor | None, *parts: Tensor) -> Tensor:
    r"""Return the tall Cayley transform of ``[skew; rows]``, a matrix with G^T G <= I.

    Parameters
    ----------
    skew : Tensor, shape (..., r, r), or None
        Only its skew part matters; None stands for zero.
    *parts : Tensor, shapes (..., k_i, r)
        The rows, in one tensor or several one below the other; any finite values.

    Returns
    -------
    Tensor, shape (..., r + k, r)
        In the working dtype; singular values at most 1 up to a few units of rounding, whatever
        the arguments, and equal to 1 to that accuracy while arguments stay below 1e4 (float64).

    Notes
    -----
    Everything is divided by :math:`c^2`, c the largest entry of ``rows`` or the root of that of
    ``skew`` (at least 1): no finite argument overflows. The r x r system is solved by LU with
    partial pivoting; without pivoting a large skew part costs 10 to 100 times the accuracy.

    References
    ----------
    Trockman and Kolter (ICLR 2021); Wang and Manchester (arXiv 2301.11526) for the tall form.

    Examples
    --------
    >>> G = tall_cayley(None, torch.tensor([[1.0]]))
    >>> torch.allclose(G, torch.tensor([[0.0], [-1.0]], dtype=G.dtype))
    True
    """
    # Compiled code has no rules of its own for second derivatives: it differentiates the formula.
    if torch.compiler.is_compiling():
        return _polish(_unpolished(*_inverse(skew, *parts)))
    constant = None if skew is None else skew.detach()
    inverse, c, rows = _inverse(constant, *(x.detach() for x in parts))
    frame = _unpolished(inverse, c, rows)
    return cast("Tensor", _TallCayley.apply(frame, inverse, skew, *parts))


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _TallCayley(torch.autograd.Function):
    r"""G as a function of its arguments, given its value but for the last step, and the inverse.

    With :math:`A = c^2 (I + Z)^{-1}` and a gradient :math:`(H_1, H_2)` of G, the gradient of A is
    :math:`\bar A = (2 H_1 - 2 Y^T H_2) / c^2` and that of Y :math:`-2 H_2 A^T / c^2 + Y (N + N^T)`
    with :math:`N = -A^T \bar A A^T`. In derivatives the Newton-Schulz step is the projection onto
    the tangent space, where they are anyhow: it has none of its own.
    """

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(frame: Tensor, inverse: Tensor, skew: Tensor | None, *parts: Tensor) -> Tensor:
        return _polish(frame)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The same for both: `vmap` keeps one list of axes.
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        A, skew, *parts = ctx.saved_tensors
        if is_differentiated():
            A, c, Y = _inverse(skew, *parts)
        else:
            c, Y = _scaled(skew, *parts)
        (H,), r = gradients, A.shape[-1]
        H_1, H_2 = H[..., :r, :], H[..., r:, :]
        A2 = -2 * A.mT
        N = A.mT @ _over(_over(H_1, c) - Y.mT @ H_2, c) @ A2
        # Small matrices are divided, not what has as many rows as the weight.
        moved = H_2 @ _over(_over(A2, c), c) + Y @ _over(N + N.mT, c)
        rows = moved.to(parts[0].dtype).split([x.shape[-2] for x in parts], dim=-2)
        turned = None if skew is None else _over(_over(N - N.mT, c), c).to(skew.dtype)
        return None, None, turned, *rows

    jvp = staticmethod(forward_rule(lambda saved, tangents: _tangent(saved[1:], tangents[2:])))


def _tangent(saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    A, c, Y = _inverse(*saved)
    turned, *parts = saved
    dY = _over(torch.cat(or_zeros(tangents[1:], tuple(parts)), dim=-2).to(Y.dtype), c)
    dZ = Y.mT @ dY + dY.mT @ Y
    if turned is not None:
        dX = _over(_over(or_zeros(tangents[:1], (turned,))[0].to(Y.dtype), c), c)
        dZ = dX - dX.mT + dZ
    dA = -A @ dZ @ A
    moved = dY @ _over(A, c) + Y @ _over(dA, c)
    return torch.cat((2 * _over(_over(dA, c), c), -2 * moved), dim=-2)


def _inverse(skew: Tensor | None, *parts: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the inverse of ``(I + Z) / c^2``, and what it is made of."""
    c, Yc = _scaled(skew, *parts)
    eye = torch.eye(Yc.shape[-1], dtype=Yc.dtype, device=Yc.device)
    P, K = Yc.mT @ Yc, None
    N = P + (eye if c is None else c**-2 * eye)
    if skew is not None:
        Xc = _over(_over(skew.to(Yc.dtype), c), c)
        K = Xc - Xc.mT
        N = N + K
    # Never singular, because its symmetric part is at least shift > 0.
    return torch.linalg.inv_ex(N + _shift(c, K, P) * eye).inverse, c, Yc


def _unpolished(inverse: Tensor, c: Tensor | None, Yc: Tensor) -> Tensor:
    eye = torch.eye(Yc.shape[-1], dtype=Yc.dtype, device=Yc.device)
    half = _over(inverse, c)
    return torch.cat((2 * _over(half, c) - eye, Yc @ (-2 * half)), dim=-2)


def _scaled(skew: Tensor | None, *parts: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return c, a constant, and rows / c in the working dtype; None for a c of one."""
    rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
    Y = rows.to(working_dtype(rows))
    if Y.dtype == torch.float64 and rows.dtype != torch.float64:
        # Squares of what narrower dtypes hold do not overflow.
        return None, Y
    c = _common_scale(None if skew is None else skew.to(Y.dtype), Y)
    return c, Y / c


def _over(x: Tensor, c: Tensor | None) -> Tensor:
    return x if c is None else x / c


def _polish(G: Tensor) -> Tensor:
    """Take one Newton-Schulz step, G (3 I - G^T G) / 2.

    Singular values g become g (3 - g^2) / 2 <= 1: what the shift took is given back, and what LU
    left above one (4e-12 at parameters of size 1e6 in float64, without this step) is removed.
    """
    gram = G.mT @ G
    eye = torch.eye(gram.shape[-1], dtype=G.dtype, device=G.device)
    return G @ torch.sub(1.5 * eye, gram, alpha=0.5)


def _common_scale(X: Tensor | None, Y: Tensor) -> Tensor:
    """Return c >= 1 with |Y| <= c and |X| <= c^2, a constant, shape (..., 1, 1)."""
    if X is None:
        peak = Y.detach().abs().amax(dim=(-2, -1), keepdim=True) if Y.shape[-2] else Y.new_ones(())
        return peak.clamp_min(1.0)
    c = X.detach().abs().amax(dim=(-2, -1), keepdim=True).sqrt().clamp_min(1.0)
    if Y.shape[-2] == 0:
        return c
    return torch.maximum(c, Y.detach().abs().amax(dim=(-2, -1), keepdim=True))


def _shift(c: Tensor | None, K: Tensor | None, P: Tensor) -> Tensor:
    """Return the one-sided shift: 8 units of rounding of the summands, a constant."""
    P = P.detach()
    size = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + (1.0 if c is None else c**-2)
    if K is not None:
        size = size + K.detach().square().sum((-2, -1), keepdim=True).sqrt()
    return 4 * torch.finfo(P.dtype).eps * size


def cayley_signs(top: Tensor) -> Tensor:
    r"""Return signs d for which ``I + top diag(d)`` is well conditioned.

    Parameters
    ----------
    top : Tensor, shape (r, r)
        Any matrix of norm at most one: the top block of a matrix with orthonormal columns.

    Returns
    -------
    Tensor, shape (r,)
        Entries +1 or -1. Such signs always exist, since
        :math:`\sum_d (\prod_i d_i) \det(\mathrm{diag}(d) + G_1) = 2^r`.

    Notes
    -----
    Greedy elimination of ``diag(d) + top``: each pivot takes the sign that moves it away from
    zero, so that every pivot is at least one in modulus (LAPACK's ``xORHR_COL`` does the same).
    Then single columns are flipped while that enlarges the determinant; flipping column j
    multiplies it by ``Z_jj``.

    References
    ----------
    O'Dorney, *Minimizing the Cayley transform of an orthogonal matrix* (LAA 2014).

    Examples
    --------
    >>> cayley_signs(-torch.eye(2))
    tensor([-1., -1.])
    """
    A, signs = top.clone(), torch.ones_like(top[0])
    for k in range(A.shape[0]):
        signs[k] = -1.0 if A[k, k] < 0 else 1.0
        A[k, k] += signs[k]
        A[k + 1 :, k + 1 :] -= torch.outer(A[k + 1 :, k], A[k, k + 1 :]) / A[k, k]
    return _flip_while_larger(top, signs)


def _flip_while_larger(top: Tensor, signs: Tensor) -> Tensor:
    eye = torch.eye(top.shape[0], dtype=top.dtype, device=top.device)
    # The determinant grows by more than 1 % each time, so few flips suffice; r is a safe cap.
    for _ in range(top.shape[0]):
        gain = (2 * torch.linalg.inv(eye + top * signs) - eye).diagonal()
        best = int(gain.argmax())
        if gain[best] <= 1.01:
            break
        signs[best] *= -1
    return signs


def inverse_cayley(frame: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return (skew, rows) whose tall Cayley transform is `frame` up to column signs.

    Parameters
    ----------
    frame : Tensor, shape (r + k, r)
        Orthonormal columns.

    Returns
    -------
    skew : Tensor, shape (r, r)
        Half of the skew part, so that ``skew - skew^T`` is the one used.
    rows : Tensor, shape (k, r)
        Columns of norm at most about 1: the parameters stay in a bounded box.

    Examples
    --------
    >>> G = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q
    >>> torch.allclose(tall_cayley(*inverse_cayley(G)).abs(), G.abs())
    True
    """
    r = frame.shape[1]
    G = frame * cayley_signs(frame[:r])
    eye = torch.eye(r, dtype=G.dtype, device=G.device)
    M = torch.linalg.inv(eye + G[:r])
    # (I + G_1)^{-1} = (I + Z) / 2
    Z = 2 * M - eye
    return (Z - Z.mT) / 4, -(G[r:] @ M)


def symmetric_inverse_cayley(frame: Tensor) -> Tensor:
    r"""Return rows whose tall Cayley transform is `frame` up to a rotation of its columns.

    Parameters
    ----------
    frame : Tensor, shape (r + k, r)
        Orthonormal columns.

    Returns
    -------
    Tensor, shape (k, r)
        Of spectral norm at most 1.

    Notes
    -----
    Polar decomposition :math:`G_1 = H R` of the top block; then :math:`G R^T` has the symmetric
    top block H >= 0 and :math:`Y = -G_2 R^T (I + H)^{-1}`. Enough where the columns of the frame
    may be rotated freely, that is for equal singular-value bounds.

    Examples
    --------
    >>> G = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q
    >>> F = tall_cayley(None, symmetric_inverse_cayley(G))
    >>> torch.allclose(F @ F.mT, G @ G.mT)
    True
    """
    r = frame.shape[1]
    P, sigma, Qh = torch.linalg.svd(frame[:r])
    # G_1 = (P sigma P^T)(P Q^T), hence R^T = Q P^T and (I + H)^{-1} = P (I + sigma)^{-1} P^T
    return -(frame[r:] @ Qh.mT) / (1 + sigma) @ P.mT
