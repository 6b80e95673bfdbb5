"""Schatten balls without solves: a product divided by the size of its factors."""

import math
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import RadiusError
from lowrank_opt.linalg import (
    differentiable_values,
    inverse_power_of_two,
    is_negligible,
    lp_norm,
    square_sum,
    unit_peak_factor,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, lora_start_
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import SchattenBall

# Up to this order powers of Gram matrices with entries of the size of their side do not overflow.
_LARGEST_POWER = 16


class HomogeneousBall(Parameterization):
    r""":math:`W = \delta\, B A \,/\, \bigl((\|A\|_{2p}^{2p} + \|B\|_{2p}^{2p})/2\bigr)^{1/p}`.

    For p = 1 this is :math:`2 \delta B A / (\|A\|_F^2 + \|B\|_F^2)`: no solve, and rows coupled
    only through one scalar. Set: the Schatten-p ball of radius :math:`\delta` among matrices of
    rank at most r, closed and complete for every r >= 1.

    *Into*: :math:`\|BA\|_p \le \|B\|_{2p} \|A\|_{2p}` and the inequality of arithmetic and
    geometric means. *Onto*: SVD factors, unbalanced until the quotient is right. The map does not
    change when (A, B) is multiplied by a number; (A, B) = 0 (below 1e-292 in float64, 1e-31 in
    float32) gives W = 0.

    In floating point the norm exceeds the radius by a few units of rounding of the parameters'
    dtype at most, for every finite parameter: the quotient is computed in float64 after an exact
    scaling by a power of two.

    For whole p up to 16 the map has all derivatives where (A, B) is not 0; for other p it has
    first ones, and second ones raise `DerivativeError`.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float
        Bound on the Schatten-p norm. Positive.
    p : float
        In [1, inf).
    dtype, device, generator
        Of the parameters, and of their random start.

    References
    ----------
    The factor form of the nuclear norm: Srebro, Rennie and Jaakkola (NIPS 2004), Lemma 1.

    Examples
    --------
    >>> ball = HomogeneousBall((4, 3), rank=2, radius=5.0)
    >>> ball.assign(LowRankOperator.from_dense(torch.eye(4, 3), rank=2))().schatten_norm(1).item()
    2.0
    """

    complete: bool = True
    alike_rows: ClassVar[str] = "left"
    alike_cols: ClassVar[str] = "right"

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        radius: float,
        p: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        if not 1 <= p < math.inf:
            raise RadiusError(
                f"the Schatten order p must be in [1, inf); got p={p!r}: for the spectral norm "
                "use NBLoRA(..., p=inf)"
            )
        m, n = self.shape
        self.radius: float
        self.p: float
        self.radius, self.p = check_radius(radius), float(p)
        self.left: nn.Parameter = nn.Parameter(
            torch.empty(m, self.rank, dtype=dtype, device=device)
        )
        self.right: nn.Parameter = nn.Parameter(
            torch.empty(n, self.rank, dtype=dtype, device=device)
        )
        self.check_held()
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        lemma = "NIPS 2004, lemma 1"
        yield Example("HomogeneousBall(radius)", partial(cls, radius=1.0), reference=lemma)
        make = partial(cls, radius=1.0, p=3.0)
        yield Example("HomogeneousBall(radius, p)", make, "r x r eigenvalues", lemma)

    @property
    def feasible_set(self) -> SchattenBall:
        return SchattenBall(self.p, self.radius, self.rank)

    def factors(self) -> LowRankOperator:
        B, A = self.left, self.right
        if self.p == 1 and B.dtype == torch.float32 != working_dtype(B):
            return self._product_over_squares(B, A)
        factor = unit_peak_factor(B, A)
        mean = _mean_power(A, B, factor, self.p)
        # (A, B) = 0 has no direction: W = 0 there.
        scale = torch.where(mean > 0, self.radius / torch.where(mean > 0, mean, 1.0), 0.0)
        # The quotient of a large matrix is below the normal numbers of float16: a power of two of
        # its root belongs into each factor.
        first, second, _ = inverse_power_of_two(mean.clamp_min(1.0).sqrt())
        q = first * second
        scale = (scale / q / q).to(B.dtype).expand(self.rank)
        both = factor * q.to(B.dtype)
        return LowRankOperator(B * both, scale, A * both)

    def _product_over_squares(self, B: Tensor, A: Tensor) -> LowRankOperator:
        """Return the factors for p = 1 and float32, whose squares float64 holds as they are."""
        zero = is_negligible(B, A)
        total = torch.where(zero, 1.0, square_sum(B) + square_sum(A))
        # A power of two, near one over the root, makes both factors ones of size one.
        exponent = torch.frexp(total.detach().sqrt()).exponent
        q = torch.ldexp(torch.ones_like(total.detach()), -exponent)
        scale = torch.where(zero, 0.0, 2 * self.radius / total) / q / q
        both = q.to(B.dtype)
        return LowRankOperator(B * both, scale.to(B.dtype).expand(self.rank), A * both)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return SVD factors, unbalanced by :math:`c^{2p} = (1 + \sqrt{1 - \nu^2}) / \nu`.

        Here :math:`\nu = \|W/\delta\|_p^p`. The right factor stays of size one while the left one
        vanishes with W, so that targets of any size are inverted alike.
        """
        U, sigma, V = self.svd_of(target)
        t = min(float(lp_norm(sigma / self.radius, self.p)), 1.0)
        uniform = torch.full_like(sigma, self.rank ** (-1 / self.p))
        shape = sigma / (self.radius * t) if t > 0 else uniform
        g = (1 + math.sqrt(max(0.0, 1 - t ** (2 * self.p)))) ** (1 / self.p)
        root = shape.sqrt()
        return {"left": U * root * (t / math.sqrt(g)), "right": V * root * math.sqrt(g)}

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set left = 0 and right to a random orthonormal frame."""
        lora_start_(self.left, self.right, generator)
        return self


def _mean_power(A: Tensor, B: Tensor, factor: Tensor, p: float) -> Tensor:
    """Return ``((tr((A^T A)^p) + tr((B^T B)^p)) / 2)^(1/p)`` for both times a factor."""
    if p == 1:
        return (square_sum(A, factor) + square_sum(B, factor)) / 2
    A, B = ((x * factor).to(working_dtype(x)) for x in (A, B))
    if p.is_integer() and p <= _LARGEST_POWER:
        # A polynomial: smooth where eigenvalues tie or vanish too, as at the start.
        total = (_trace_of_power(A, int(p)) + _trace_of_power(B, int(p))) / 2
        return torch.where(total > 0, torch.where(total > 0, total, 1.0).pow(1 / p), 0.0)
    norms = [lp_norm(_gram_values(x).clamp_min(0.0), p) for x in (A, B)]
    return lp_norm(torch.stack(norms), p) / 2 ** (1 / p)


def _trace_of_power(x: Tensor, p: int) -> Tensor:
    """Return ``tr((x^T x)^p)`` by products."""
    gram = x.mT @ x
    half = torch.linalg.matrix_power(gram, p // 2)
    return (half * (half @ gram if p % 2 else half)).sum()


def _gram_values(x: Tensor) -> Tensor:
    """Return the eigenvalues of ``x^T x``, differentiable once."""
    values, Q = torch.linalg.eigh((x.mT @ x).detach())
    one = x.new_ones(x.shape[-2])
    return differentiable_values((Q, values, Q), (x.mT, one, x.mT))
