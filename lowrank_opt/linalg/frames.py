r"""Orthonormal frames from free matrices: polar and QR factors with derivatives everywhere.

Both return ``Q(F)`` for a tall F and depend on ``F`` through its direction only. Values come from
a decomposition that counts as constant; the derivative is the known first-order expansion around
it. Dependent columns and repeated singular values, where the derivatives of `torch.linalg.svd` and
`torch.linalg.qr` are infinite, then do no harm.
"""

import torch
from torch import Tensor

from lowrank_opt.linalg.scaling import negligible, working_dtype

# Relative size below which a singular value, or a pivot, counts as this large in derivatives.
_FLOOR = 1e-8


def polar_frame(rows: Tensor) -> Tensor:
    r"""Return the polar factor :math:`F (F^T F)^{-1/2}`, the orthonormal frame nearest to F.

    Parameters
    ----------
    rows : Tensor, shape (m, r), m >= r
        Any finite values.

    Returns
    -------
    Tensor, shape (m, r)
        In the working dtype; orthonormal columns, completed where F has dependent ones.
        Differentiable once; directions below 1e-8 of the largest get a bounded gradient.

    Notes
    -----
    :math:`dQ = Q X + (I - Q Q^T)\, dF\, H^{-1}` with :math:`F = Q H` and X skew in
    :math:`H X + X H = Q^T dF - dF^T Q` (Higham, *Functions of Matrices*, chapter 8).

    Examples
    --------
    >>> polar_frame(torch.diag(torch.tensor([3.0, 2.0])))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    F, moved = _unit(rows)
    with torch.no_grad():
        U, sigma, Vh = torch.linalg.svd(F, full_matrices=False)
        h = torch.maximum(sigma, _FLOOR * sigma.amax()).clamp_min(_FLOOR)
        Q = U @ Vh
    along = Q.mT @ moved
    X = Vh.mT @ ((Vh @ (along - along.mT) @ Vh.mT) / (h.unsqueeze(-1) + h)) @ Vh
    out = (moved - Q @ along) @ (Vh.mT / h) @ Vh
    return Q + Q @ X + out


def qr_frame(rows: Tensor) -> Tensor:
    r"""Return the factor Q of :math:`F = Q R` with a nonnegative diagonal of R.

    Parameters
    ----------
    rows : Tensor, shape (m, r), m >= r
        Any finite values.

    Returns
    -------
    Tensor, shape (m, r)
        In the working dtype; orthonormal columns. Differentiable once; pivots below 1e-8 of the
        largest get a bounded gradient.

    Notes
    -----
    :math:`dQ = Q\, (L - L^T) + (I - Q Q^T)\, dF R^{-1}`, L the strictly lower part of
    :math:`Q^T dF R^{-1}`.

    Examples
    --------
    >>> qr_frame(torch.tensor([[-3.0], [0.0]])).flatten()
    tensor([-1.,  0.], dtype=torch.float64)
    """
    F, moved = _unit(rows)
    with torch.no_grad():
        Q, R = torch.linalg.qr(F)
        sign = torch.where(R.diagonal() < 0, -1.0, 1.0)
        Q, R = Q * sign, R * sign.unsqueeze(-1)
        pivots = R.diagonal()
        floor = (_FLOOR * pivots.amax()).clamp_min(_FLOOR)
        R = R + torch.diag(torch.maximum(pivots, floor) - pivots)
    step = torch.linalg.solve_triangular(R, moved, upper=True, left=False)
    along = Q.mT @ step
    lower = along.tril(-1)
    return Q + Q @ (lower - lower.mT) + (step - Q @ along)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return F with its largest entry in [0.5, 1), a constant, and ``F - F``, which is not.

    Where a gradient of 1 / (floor * F) would overflow, there is none.
    """
    F = rows.to(working_dtype(rows))
    with torch.no_grad():
        peak = F.abs().amax()
        _, exponent = torch.frexp(torch.where(peak > 0, peak, 1.0))
        half = exponent // 2
        first = torch.ldexp(torch.ones_like(peak), -half)
        second = torch.ldexp(torch.ones_like(peak), half - exponent)
        moves = peak * _FLOOR >= negligible(rows.dtype)
        base = F * first * second
    scaled = torch.where(moves, F, 0.0) * torch.where(moves, first, 1.0)
    scaled = scaled * torch.where(moves, second, 1.0)
    return base, scaled - scaled.detach()
