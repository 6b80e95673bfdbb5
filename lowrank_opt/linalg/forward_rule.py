"""Forward-mode rules of custom functions that can be differentiated forward once more."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad


class _Context(Protocol):
    saved_tensors: tuple[Tensor | None, ...]


Tensors = tuple[Tensor | None, ...]
Rule = Callable[[Any, Tensors], Tensor]
F = TypeVar("F", bound=Callable[..., Tensor])


def with_signature(forward: F) -> F:
    """Keep the signature of the ``forward`` of a `torch.autograd.Function`.

    PyTorch reads it off the function at each call, which takes as long as several operations on a
    small matrix; what is kept it takes as it is.

    Examples
    --------
    >>> with_signature(lambda x: 2 * x).__signature__
    <Signature (x)>
    """
    forward.__signature__ = inspect.signature(forward)  # pyright: ignore[reportFunctionMemberAccess]
    return forward


def forward_rule(rule: Rule) -> Callable[..., Tensor]:
    """Turn ``rule(saved, tangents)`` into the ``jvp`` of a `torch.autograd.Function`.

    PyTorch calls ``jvp`` with forward differentiation switched off, so that the derivative of a
    derivative would be wrong in silence. Here it is on, and what the present level differentiates
    is taken off the arguments.

    Parameters
    ----------
    rule : callable
        From the saved tensors, and the tangents of the inputs (None where there is none), to the
        tangent of the output.

    Examples
    --------
    >>> class Cube(torch.autograd.Function):
    ...     generate_vmap_rule = True
    ...
    ...     @staticmethod
    ...     def forward(x):
    ...         return x**3
    ...
    ...     @staticmethod
    ...     def setup_context(ctx, inputs, output):
    ...         ctx.save_for_forward(*inputs)
    ...
    ...     jvp = staticmethod(
    ...         forward_rule(lambda saved, tangents: 3 * saved[0] ** 2 * tangents[0])
    ...     )
    >>> torch.func.jacfwd(torch.func.jacfwd(Cube.apply))(torch.tensor(2.0))
    tensor(12.)
    """

    def jvp(ctx: _Context, *tangents: Tensor | None) -> Tensor:
        # Private, and the only way: what torch.func itself does around custom functions.
        with forward_ad._set_fwd_grad_enabled(True):  # pyright: ignore[reportPrivateUsage]
            return rule(tuple(_primal(x) for x in ctx.saved_tensors), tangents)

    return jvp


def is_differentiated() -> bool:
    """Whether a backward pass is differentiated, so that what was kept as a constant is not one.

    Examples
    --------
    >>> is_differentiated()
    True
    >>> with torch.no_grad():
    ...     is_differentiated()
    False
    """
    # Forwards it is with gradients switched off, as they are in every plain backward pass.
    return torch.is_grad_enabled() or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def _primal(x: Tensor | None) -> Tensor | None:
    """Return a tensor without the tangent of the present level; None stays what it is."""
    if x is None:
        return None
    # Unpacking has no rule for vmap: it is done below the batch axis, which is put back.
    if _functorch.is_batchedtensor(x):
        level, axis = _functorch.maybe_get_level(x), _functorch.maybe_get_bdim(x)
        return _functorch._add_batch_dim(_primal(_functorch.get_unwrapped(x)), axis, level)
    return forward_ad.unpack_dual(x).primal


def or_zeros(tangents: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return tangents with zeros in place of None.

    Examples
    --------
    >>> or_zeros((None,), (torch.ones(2),))
    (tensor([0., 0.]),)
    """
    pairs = zip(tangents, like, strict=True)
    return tuple(torch.zeros_like(x) if t is None else t for t, x in pairs)
