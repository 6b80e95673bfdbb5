r"""Orthonormal frames from free matrices: polar and QR factors with derivatives everywhere.

Both return ``Q(F)`` for a tall F and depend on ``F`` through its direction only. Values come from
a decomposition that counts as constant. Dependent columns and repeated singular values, where the
derivatives of `torch.linalg.svd` and `torch.linalg.qr` are infinite, then do no harm. Derivatives
of every order are right, forward and reverse, while no pivot or singular value is at its floor.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.linalg.forward_rule import forward_rule, or_zeros, with_signature
from lowrank_opt.linalg.scaling import inverse_power_of_two, negligible, working_dtype

# Relative size below which a singular value, or a pivot, counts as this large in derivatives.
_FLOOR = 1e-8


def nearest_frame(frame: Tensor) -> Tensor:
    r"""Return the orthonormal frame nearest to one that rounding has moved, not differentiable.

    Parameters
    ----------
    frame : Tensor, shape (m, k)
        Orthonormal columns up to errors below one half, of any dtype.

    Returns
    -------
    Tensor, shape (m, k)
        In the working dtype, orthonormal to its rounding; the column space is that of `frame`.

    Notes
    -----
    Newton-Schulz steps :math:`Q (3 I - Q^T Q) / 2`, each of which squares the error: five from one
    half, two from the rounding of float32.

    Examples
    --------
    >>> Q = nearest_frame(torch.tensor([[0.6], [0.8]], dtype=torch.float16))
    >>> bool((Q.mT @ Q - 1).abs() < 1e-15)
    True
    """
    Q = frame.detach().to(working_dtype(frame))
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    # As many as the worst error needs: a number that depends on Q would not be batched by vmap.
    for _ in range(6):
        Q = Q + Q @ ((eye - Q.mT @ Q) / 2)
    return Q


def qr_frame(rows: Tensor) -> Tensor:
    r"""Return the factor Q of :math:`F = Q R` with a nonnegative diagonal of R.

    Parameters
    ----------
    rows : Tensor, shape (m, r), m >= r
        Any finite values.

    Returns
    -------
    Tensor, shape (m, r)
        In the working dtype; orthonormal columns. Pivots below 1e-8 of the largest get a bounded
        gradient.

    Notes
    -----
    Near the present :math:`F_0 = Q_0 R_0` the factor Q of F is that of
    :math:`X = F R_0^{-1} = Q_0 + (F - F_0) R_0^{-1}`, since :math:`R_0` is triangular; and X is
    nearly orthonormal, so that :math:`Q = X \mathrm{chol}(X^T X)^{-T}` loses nothing.

    Examples
    --------
    >>> qr_frame(torch.tensor([[-3.0], [0.0]])).flatten()
    tensor([-1.,  0.], dtype=torch.float64)
    """
    F, moved = _unit(rows)
    Q, R = torch.linalg.qr(F)
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0)
    Q, R = Q * sign, R * sign.unsqueeze(-1)
    pivots = R.diagonal()
    floor = (_FLOOR * pivots.amax()).clamp_min(_FLOOR)
    R = R + torch.diag(torch.maximum(pivots, floor) - pivots)
    X = Q + torch.linalg.solve_triangular(R, moved, upper=True, left=False)
    near_one = torch.linalg.cholesky_ex(X.mT @ X).L
    return torch.linalg.solve_triangular(near_one.mT, X, upper=True, left=False)


def polar_frame(rows: Tensor) -> Tensor:
    r"""Return the polar factor :math:`F (F^T F)^{-1/2}`, the orthonormal frame nearest to F.

    Parameters
    ----------
    rows : Tensor, shape (m, r), m >= r
        Any finite values.

    Returns
    -------
    Tensor, shape (m, r)
        In the working dtype; orthonormal columns, completed where F has dependent ones. Directions
        below 1e-8 of the largest get a bounded gradient.

    Notes
    -----
    :math:`dQ = Q X + (I - Q Q^T)\, dF\, H^{-1}` with :math:`F = Q H` and X skew in
    :math:`H X + X H = Q^T dF - dF^T Q` (Higham, *Functions of Matrices*, chapter 8). This map from
    dF to dQ is its own adjoint.

    Examples
    --------
    >>> polar_frame(torch.diag(torch.tensor([3.0, 2.0])))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    F, moved = _unit(rows)
    U, _, Vh = torch.linalg.svd(F, full_matrices=False)
    Q = U @ Vh
    # Compiled code has first derivatives only: there an expansion to first order is all of it.
    if torch.compiler.is_compiling():
        return Q + _polar_motion(F, Q, moved)
    return cast("Tensor", _Polar.apply(Q, F + moved))


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _Polar(torch.autograd.Function):
    """Q as a function of F, given its value."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(Q: Tensor, F: Tensor) -> Tensor:
        return Q.clone()

    @staticmethod
    def setup_context(ctx: _Context, inputs: Sequence[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[None, Tensor]:
        value, F = ctx.saved_tensors
        return None, _polar_motion(F, cast("Tensor", _Polar.apply(value, F)), gradients[0])

    jvp = staticmethod(forward_rule(lambda saved, tangents: _polar_tangent(saved, tangents)))


def _polar_tangent(saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    value, F = saved
    _, moved = or_zeros(tangents, saved)
    return _polar_motion(F, cast("Tensor", _Polar.apply(value, F)), moved)


def _polar_motion(F: Tensor, Q: Tensor, moved: Tensor) -> Tensor:
    """Return the derivative of the polar factor along `moved`, or its adjoint: they are equal."""
    H = Q.mT @ F
    H = _floored((H + H.mT) / 2)
    along = Q.mT @ moved
    X = _lyapunov(H, along - along.mT)
    return Q @ X + torch.linalg.solve_ex(H, moved - Q @ along, left=False).result


def _floored(H: Tensor) -> Tensor:
    """Add a constant that lifts small eigenvalues of a symmetric H to the floor."""
    h, V = torch.linalg.eigh(H.detach())
    floor = (_FLOOR * h[..., -1:]).clamp_min(_FLOOR)
    return H + (V * (torch.maximum(h, floor) - h).unsqueeze(-2)) @ V.mT


def _lyapunov(H: Tensor, K: Tensor) -> Tensor:
    """Return the X of ``H X + X H = K`` for a positive definite H."""
    if torch.compiler.is_compiling():
        return _solved(H.detach(), K)
    return cast("Tensor", _Lyapunov.apply(H, K))


def _solved(H: Tensor, K: Tensor) -> Tensor:
    h, V = torch.linalg.eigh(H)
    return V @ ((V.mT @ K @ V) / (h.unsqueeze(-1) + h.unsqueeze(-2))) @ V.mT


class _Lyapunov(torch.autograd.Function):
    """The solution, whose derivatives are solutions again: of every order, ties or not."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(H: Tensor, K: Tensor) -> Tensor:
        return _solved(H, K)

    @staticmethod
    def setup_context(ctx: _Context, inputs: Sequence[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        H, K = ctx.saved_tensors
        X, Z = _lyapunov(H, K), _lyapunov(H, gradients[0])
        return -(Z @ X.mT + X.mT @ Z), Z

    jvp = staticmethod(forward_rule(lambda saved, tangents: _lyapunov_tangent(saved, tangents)))


def _lyapunov_tangent(saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    H, K = saved
    dH, dK = or_zeros(tangents, saved)
    X = _lyapunov(H, K)
    return _lyapunov(H, dK - dH @ X - X @ dH)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return F with its largest entry in [0.5, 1), a constant, and ``F - F``, which is not.

    Where a gradient of 1 / (floor * F) would overflow, there is none.
    """
    F = rows.to(working_dtype(rows))
    peak = F.detach().abs().amax()
    first, second, _ = inverse_power_of_two(torch.where(peak > 0, peak, 1.0))
    moves = peak * _FLOOR >= negligible(rows.dtype)
    scaled = torch.where(moves, F, 0.0) * torch.where(moves, first, 1.0)
    scaled = scaled * torch.where(moves, second, 1.0)
    return F.detach() * first * second, scaled - scaled.detach()
