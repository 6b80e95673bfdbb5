r"""A parameterization of whose rows each process has some: its factors, one reduction each way.

Where turning rows turns the matrix, :math:`W(Q B) = Q\, W(B)` for orthonormal columns Q, the rows
B of all processes need not come together. With a constant frame, :math:`B = Q b + \breve B`, the
map of the few rows b is what every process computes; its own rows of the left factor are those of
:math:`Q\, L(b) + \breve B\, g`. Of :math:`\breve B`, zero in value, there is a derivative alone:
g is that of further rows of zeros, which enter a map of this kind linearly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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

    And its `alike_cols`, where columns are cut: the same, with W transposed. Computed in float64,
    and rounded to the parameters' dtype.

    Parameters
    ----------
    module : Parameterization, shape (k, l)
        With the rows of this process, and its columns where they are cut; its other parameters are
        the same in all.
    observations : Observations, shape (k, n)
        Whose rows are cut.
    """

    def __init__(self, module: Parameterization, observations: Observations) -> None:
        part = observations.part
        assert part is not None, "rows are cut"
        self.names: tuple[str, str] = (
            module.alike_rows,
            module.alike_cols if part.cut_columns else "",
        )
        assert self.names[0], "the traits let no other map pass"
        self.module: Parameterization
        self.part: Part[Observations]
        self.module, self.part = module, part
        # Rows b of the frame, and below them rows of zeros, at most as many as the left factor
        # has columns.
        lines = 3 * module.rank
        small = (lines, lines if self.names[1] else module.shape[1])
        self.small: Parameterization = type(module).from_config(module.config(), shape=small)
        self.small.requires_grad_(False).to(observations.device)

    def __call__(self) -> LowRankOperator:
        """Return the triple of this process's rows, with ones for its scale."""
        given: dict[str, Tensor] = {k: x.double() for k, x in self.module.named_parameters()}
        given |= dict(self.module.named_buffers())
        own = [given.pop(name) if name else None for name in self.names]
        framed = [None if x is None else self._framed(x) for x in own]
        few = {k: x.rows for k, x in zip(self.names, framed, strict=True) if x is not None}
        op = functional_call(self.small, {**given, **few}, ())
        left, right = (
            x if lines is None else self._spread(x, lines)
            for x, lines in zip((op.left * op.scale, op.right), framed, strict=True)
        )
        dtype = self.module.get_parameter(self.names[0]).dtype
        return LowRankOperator(left, torch.ones_like(op.scale.detach()), right).to(dtype=dtype)

    def _framed(self, own: Tensor) -> _Framed:
        """Return the rows that every process has, and those of this one in their frame."""
        frame, core = self._frame(own.detach())
        below = own.new_zeros(2 * self.module.rank, self.module.rank).requires_grad_()
        # In value the rows in the frame, and their derivative.
        above = core + frame.mT @ (own - own.detach())
        return _Framed(own, frame, below, torch.cat((above, below)))

    def _spread(self, factor: Tensor, lines: _Framed) -> Tensor:
        """Return this process's rows of a factor from the few that every process has."""
        rank = self.module.rank
        lower = factor[rank:]
        slope = _slope(lower, lines.below) if factor.requires_grad else factor[:rank]
        found: Tensor = _Spread.apply(
            factor[:rank], lines.own, lines.frame, slope.detach(), self.part
        )
        return found

    def _frame(self, own: Tensor) -> tuple[Tensor, Tensor]:
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


class _Framed(NamedTuple):
    """A parameter's rows of this process, a frame, and the few rows that every process has."""

    own: Tensor
    frame: Tensor
    below: Tensor
    rows: Tensor


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
