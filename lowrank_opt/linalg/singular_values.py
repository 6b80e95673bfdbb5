r"""Singular values of a factor triple with their first derivative, and no second one.

:math:`d\sigma_i = u_i^T\, dW\, v_i` holds for simple singular values and is a subgradient where
they tie. The singular vectors are then not differentiable: a second derivative is refused.
"""

from collections.abc import Sequence
from typing import Never, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.errors import DerivativeError
from lowrank_opt.linalg.forward_rule import forward_rule, or_zeros, with_signature


def differentiable_values(
    svd: tuple[Tensor, Tensor, Tensor], triple: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    r"""Return the singular values of a triple, with their derivative in its factors.

    Parameters
    ----------
    svd : tuple of Tensor, shapes (..., m, k), (..., k) and (..., n, k)
        U, sigma and V of the product, computed from it; its derivatives are not used.
    triple : tuple of Tensor, shapes (..., m, r), (..., r) and (..., n, r)
        left, scale and right, in the dtype of the SVD.

    Returns
    -------
    Tensor, shape (..., k)
        sigma. Differentiable once, forward and reverse; a second derivative raises
        `DerivativeError`. In compiled code, where there is none, plain operations are written.

    Examples
    --------
    >>> one = torch.ones(1, requires_grad=True)
    >>> eye = torch.eye(1)
    >>> differentiable_values((eye, torch.ones(1), eye), (eye, one, eye)).backward()
    >>> one.grad
    tensor([1.])
    """
    U, sigma, V = (x.detach() for x in svd)
    if torch.compiler.is_compiling():
        moving = _along(U, V, *triple)
        return sigma + (moving - moving.detach())
    return cast("Tensor", _Values.apply(U, sigma, V, *triple))


def _along(U: Tensor, V: Tensor, left: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    """Return ``u_i^T left diag(scale) right^T v_i``."""
    return ((U.mT @ left) * scale.unsqueeze(-2) * (V.mT @ right)).sum(-1)


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _Values(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(
        U: Tensor, sigma: Tensor, V: Tensor, left: Tensor, scale: Tensor, right: Tensor
    ) -> Tensor:
        return sigma.clone()

    @staticmethod
    def setup_context(ctx: _Context, inputs: Sequence[Tensor], output: Tensor) -> None:
        U, _, V, left, scale, right = inputs
        ctx.save_for_backward(U, V, left, scale, right)
        ctx.save_for_forward(U, V, left, scale, right)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        U, V, left, scale, right = _once(ctx.saved_tensors)
        X, Y, g = U.mT @ left, V.mT @ right, gradients[0].unsqueeze(-1)
        s = scale.unsqueeze(-2)
        return None, None, None, U @ (g * Y * s), (g * X * Y).sum(-2), V @ (g * X * s)

    jvp = staticmethod(forward_rule(lambda saved, tangents: _tangent(saved, tangents)))


def _tangent(saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    U, V, left, scale, right = _once(saved)
    dl, ds, dr = or_zeros(tangents[3:], (left, scale, right))
    moved = _along(U, V, dl, scale, right) + _along(U, V, left, ds, right)
    return moved + _along(U, V, left, scale, dr)


def _once(saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what was saved, with singular vectors that refuse to be differentiated."""
    U, V, *triple = saved
    return *(cast("Tensor", _Vectors.apply(x, *triple)) for x in (U, V)), *triple


class _Vectors(torch.autograd.Function):
    """Singular vectors as a function of the triple, whose derivative is not provided."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(vectors: Tensor, left: Tensor, scale: Tensor, right: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def setup_context(ctx: _Context, inputs: Sequence[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> Never:
        raise _second_derivative()

    @staticmethod
    def jvp(ctx: _Context, *tangents: Tensor | None) -> Never:
        raise _second_derivative()


def _second_derivative() -> DerivativeError:
    return DerivativeError(
        "singular values are differentiable once: vectors of repeated values have no derivative; "
        "got a second derivative: use the Frobenius norm, or finite differences of gradients"
    )
