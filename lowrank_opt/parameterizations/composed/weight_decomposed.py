"""Weight-decomposed DoRA: rows of a base weight plus an update, rescaled to trained norms."""

from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.errors import NoRightInverseError, ShapeError
from lowrank_opt.linalg import (
    frozen_product,
    frozen_row_norms,
    inverse_power_of_two,
    lp_norm,
    rows_at_once,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.config import Configured

# A squared norm below this part of the terms it is summed from is computed again, directly.
_CANCELLED = 1e-6


class WeightDecomposed(Configured):
    r""":math:`W' = \mathrm{diag}(g / \|V_i\|)\, V`, :math:`V = W_0 + \Delta`, any update inside.

    Not a factor triple, and no low-rank update of the base weight: rescaled rows change W_0 by a
    matrix of full rank in general. What holds: row i of W' has norm :math:`|g_i|`, to the rounding
    of the dtype, so :math:`\|W'\|_F = \|g\|` (rows where V vanishes stay zero). The image over a
    complete update is :math:`\{D W_0 + X : D \text{ diagonal}, \mathrm{rank}\, X \le r\}` less
    the points where a row vanishes; there is no closed right inverse. At the start W' = W_0, the
    row scales being exactly 1.

    The m x n sum is never formed: row norms come from
    :math:`\|w_i\|^2 + 2 \langle w_i, \Delta_i \rangle + \|\Delta_i\|^2`, O((m + n) r^2 + m n r),
    in float64, a block of rows at a time; rows where these terms cancel are computed again
    directly.

    Parameters
    ----------
    inner : Parameterization
        The update; `Factored` gives the paper's method.
    weight : Tensor, shape (m, n)
        The base weight, read for the initial norms only.
    detach_norm : bool
        Treat :math:`\|V_i\|` as a constant in gradients, as the paper does to save memory.

    Raises
    ------
    ShapeError
        If the weight has another shape than the update.

    References
    ----------
    Liu et al., DoRA (ICML 2024, arXiv 2402.09353), equation 5 and section 4.3.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> weight, x = torch.randn(4, 3), torch.randn(2, 3)
    >>> layer = WeightDecomposed(Factored((4, 3), rank=1), weight)
    >>> torch.equal(layer.linear(x, weight), x @ weight.mT)
    True
    """

    def __init__(
        self, inner: Parameterization, weight: Tensor, *, detach_norm: bool = True
    ) -> None:
        super().__init__()
        self.inner: Parameterization
        self.detach_norm: bool
        self.inner, self.detach_norm = inner, detach_norm
        self._check(weight)
        like = next(inner.parameters()).detach()
        self.magnitude: nn.Parameter = nn.Parameter(like.new_empty(inner.shape[0]))
        self.reset_(weight)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.inner.shape

    def options(self) -> dict[str, object]:
        # The weight is read at the start only: one of the same shape does.
        return {
            "inner": self.inner,
            "weight": torch.empty(self.shape, device="meta"),
            "detach_norm": self.detach_norm,
        }

    @torch.no_grad()
    def reset_(self, weight: Tensor) -> Self:
        """Set the magnitudes to the present row norms, for which every row scale is exactly 1."""
        self.magnitude.copy_(self.row_norms(weight))
        return self

    def row_norms(self, weight: Tensor, update: LowRankOperator | None = None) -> Tensor:
        r"""Return :math:`\|w_i + \Delta_i\|`, shape (m,), in the dtype of the magnitudes.

        Computed in float64: relative error 1e-9 at worst, where the terms cancel to 1e-6. The
        weight is read at every call, and none of it is remembered.

        Parameters
        ----------
        weight : Tensor, shape (m, n)
        update : LowRankOperator, optional
            The factors of `inner`, if they were evaluated already.
        """
        self._check(weight)
        op = self.inner.factors() if update is None else update
        norms = row_norms_of_sum(weight, op.detach() if self.detach_norm else op)
        return norms.to(next(self.inner.parameters()).dtype)

    def row_scale(self, weight: Tensor, update: LowRankOperator | None = None) -> Tensor:
        """Return ``g_i / |V_i|``, shape (m,); 0 where the row of V is zero. See `row_norms`."""
        norms = self.row_norms(weight, update)
        positive = norms > 0
        return torch.where(positive, self.magnitude / torch.where(positive, norms, 1.0), 0.0)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``x W'^T``, shape (..., m), for x of shape (..., n)."""
        op = self.inner()
        base = x @ weight.mT + op.linear(x).to(x.dtype)
        return base * self.row_scale(weight, op).to(x.dtype)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `linear`."""
        return self.linear(x, weight)

    def merged_dense(self, weight: Tensor) -> Tensor:
        """Return the m x n matrix W' in the dtype of `weight`."""
        op = self.inner()
        V = weight + op.to_dense().to(weight.dtype)
        return V * self.row_scale(weight, op).to(V.dtype).unsqueeze(1)

    def right_inverse(self, target: Tensor) -> dict[str, Tensor]:
        """Raise: best rows and update can only be searched for.

        Raises
        ------
        NoRightInverseError
            Always.
        """
        raise NoRightInverseError(
            "WeightDecomposed has no right inverse: rows and update are coupled; got a target of "
            f"shape {tuple(target.shape)}: fit it by optimisation"
        )

    def _check(self, weight: Tensor) -> None:
        if tuple(weight.shape) != self.inner.shape:
            raise ShapeError(
                f"the base weight must have shape {self.inner.shape}; got {tuple(weight.shape)}"
            )


def row_norms_of_sum(weight: Tensor, op: LowRankOperator) -> Tensor:
    r"""Return :math:`\|w_i + \Delta_i\|`, shape (m,), as `WeightDecomposed` takes them.

    In the working dtype, float64 for float32 and float64; relative error 1e-9 at worst.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        A constant.
    op : LowRankOperator
        Of that shape.
    """
    dtype = working_dtype(weight)
    # One power of two for all: squares of 1e200 or 1e-200 stay in range.
    size = _power_of_two(weight, op)
    left, right = op.left.to(dtype) * op.scale.to(dtype) / size, op.right.to(dtype)
    base = frozen_row_norms(weight, 1 / size).square()
    cross = 2 * (left * frozen_product(weight, right, 1 / size)).sum(1)
    own = (left @ (right.mT @ right) * left).sum(1)
    total = base + cross + own
    clear = total > _CANCELLED * (base + own)
    norms = torch.where(clear, torch.where(clear, total, 1.0).sqrt(), 0.0)
    if torch.compiler.is_compiling():
        # How many rows is not known when code is compiled: all of them, where any needs it.
        given = (clear, norms, weight.detach(), 1 / size, left, right)
        return torch.cond(clear.all(), _as_they_are, _with_direct_norms, given) * size
    rows = (~clear).nonzero().squeeze(1)
    if len(rows):
        norms = norms.index_put((rows,), _direct_norms(weight, 1 / size, left, right, rows))
    return norms * size


def _as_they_are(clear: Tensor, norms: Tensor, *_: Tensor) -> Tensor:
    return norms.clone()


def _with_direct_norms(
    clear: Tensor, norms: Tensor, weight: Tensor, factor: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    direct = lp_norm(weight.to(left.dtype) * factor + left @ right.mT, 2)
    return torch.where(clear, norms, direct)


def _direct_norms(
    weight: Tensor, factor: Tensor, left: Tensor, right: Tensor, rows: Tensor
) -> Tensor:
    """Return the norms of some rows of the sum, a block of rows at a time."""
    W0 = weight.detach()
    return torch.cat(
        [
            lp_norm(W0[i].to(left.dtype) * factor + left[i] @ right.mT, 2)
            for i in rows.split(rows_at_once(weight))
        ]
    )


def _power_of_two(weight: Tensor, op: LowRankOperator) -> Tensor:
    with torch.no_grad():
        dtype = working_dtype(weight)
        low, high = weight.aminmax()
        peak = torch.maximum(-low, high).to(dtype)
        update = op.left.abs().amax().to(dtype) * op.scale.abs().amax() * op.right.abs().amax()
        peak = torch.maximum(peak, update)
        exponent = inverse_power_of_two(torch.where(peak > 0, peak, 1.0))[2]
        return torch.ldexp(torch.ones_like(peak), exponent.clamp(-1000, 1000))
