r"""A parameterization of whose rows each process has some: its factors, one reduction each way.

Where turning rows turns the matrix, :math:`W(Q B) = Q\, W(B)` for orthonormal columns Q, the rows
B of all processes need not come together. With a constant frame, :math:`B = Q b + \breve B`, the
map of the few rows b is what every process computes; its own rows of the left factor are those of
:math:`Q\, L(b) + \breve B\, g`. Of :math:`\breve B`, zero in value, there is a derivative alone:
g is that of further rows of zeros, which enter a map of this kind linearly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import functional_call

from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Part
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization


class CutMap:
    """The factors of a map whose parameter `alike_rows` is spread over processes.

    Computed in float64, and rounded to the parameters' dtype.

    Parameters
    ----------
    module : Parameterization, shape (k, n)
        With the rows of this process; its other parameters are the same in all.
    observations : Observations, shape (k, n)
        Whose rows are cut.
    """

    def __init__(self, module: Parameterization, observations: Observations) -> None:
        part = observations.part
        assert part is not None, "rows are cut"
        assert module.alike_rows, "the traits let no other map pass"
        self.module: Parameterization
        self.part: Part[Observations]
        self.module, self.part = module, part
        # Rows b of the frame, and below them rows of zeros, at most as many as the left factor
        # has columns.
        small = (3 * module.rank, module.shape[1])
        self.small: Parameterization = type(module).from_config(module.config(), shape=small)
        self.small.requires_grad_(False).to(observations.device)

    def __call__(self) -> LowRankOperator:
        """Return the triple of this process's rows, with ones for its scale."""
        name, rank = self.module.alike_rows, self.module.rank
        given: dict[str, Tensor] = {k: x.double() for k, x in self.module.named_parameters()}
        given |= dict(self.module.named_buffers())
        own = given.pop(name)
        frame, core = self._framed(own.detach())
        below = own.new_zeros(2 * rank, rank).requires_grad_()
        # In value the rows in the frame, and their derivative.
        above = core + frame.mT @ (own - own.detach())
        rows = torch.cat((above, below))
        op = functional_call(self.small, {**given, name: rows}, ())
        left = op.left * op.scale
        slope = _slope(left[rank:], below) if left.requires_grad else left[:rank]
        spread: Tensor = _Spread.apply(left[:rank], own, frame, slope.detach(), self.part)
        dtype = self.module.get_parameter(name).dtype
        found = LowRankOperator(spread, torch.ones_like(op.scale.detach()), op.right)
        return found.to(dtype=dtype)

    def _framed(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's rows of a frame of all rows, and all of them in it.

        References
        ----------
        The QR factorization of tall matrices by parts: Demmel, Grigori, Hoemmen and Langou,
        Communication-optimal parallel and sequential QR (2012), section 3.
        """
        Q, R = torch.linalg.qr(own)
        together, mine = self.part.stacked(R)
        Z, core = torch.linalg.qr(together)
        return Q @ Z[mine], core


def _slope(lower: Tensor, below: Tensor) -> Tensor:
    """Return g of ``lower = below g``, shape (r, c), from one backward pass."""
    count = lower.shape[1]
    assert count <= len(lower), "as many rows as columns"
    eye = torch.eye(len(lower), count, dtype=lower.dtype, device=lower.device)
    (found,) = torch.autograd.grad(lower, below, eye, retain_graph=True)
    return found[:count].mT


class _Spread(Function):
    """Rows ``Q left + B_out g``, B_out zero in value, with one reduction of gradients."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        left: Tensor,
        own: Tensor,
        frame: Tensor,
        slope: Tensor,
        part: Part[Observations],
    ) -> Tensor:
        _ = own
        ctx.save_for_backward(frame, slope)
        ctx.part = part
        return frame @ left

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        frame, slope = ctx.saved_tensors
        (gradient,) = grad_outputs
        left = ctx.part.total(frame.mT @ gradient)
        return left, gradient @ slope.mT - frame @ (left @ slope.mT), None, None, None
