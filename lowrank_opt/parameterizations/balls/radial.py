"""The ball of any unitarily invariant norm: a product drawn towards zero by its own norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import (
    FramedProduct,
    differentiable_values,
    framed_product,
    invert_contraction,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, lora_start_
from lowrank_opt.parameterizations.example import QR, Example
from lowrank_opt.sets import KyFanBall, NormBall, SchattenBall


class RadialBall(Parameterization):
    r""":math:`W = 2 \delta P / (1 + \Phi(P)^2)`, P = B A, for any unitarily invariant norm.

    Set: the ball :math:`\Phi(W) \le \delta` among matrices of rank at most r, closed and complete:
    the norm of P becomes :math:`2 \Phi / (1 + \Phi^2)`, which is at most 1 and reaches all of
    [0, 1]. The tensors, the start and the first gradient are LoRA's with alpha / r equal to
    :math:`2 \delta`. One saturated direction scales the whole matrix: for the spectral norm prefer
    `SpectralLoRA`.

    Two thin QR factorizations, and the singular values of one r x r matrix, which the Frobenius
    norm does without: for it the map is smooth everywhere, with derivatives of every order. For
    other norms it is smooth where singular values do not tie, and a second derivative raises
    `DerivativeError`. Computed in float64 and rounded once to the parameters' dtype: the bound
    holds to a few units of rounding of that dtype for every finite parameter. The triple has 2 r
    columns, of which the last r have product exactly 0 and carry part of the derivative.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float
        Bound on the norm. Positive.
    norm : float, NormBall or callable
        Schatten order in [1, inf]; or any ball of the norm; or ``norm(radius, rank)`` that returns
        one, e.g. ``partial(KyFanBall, 2)``.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If the radius or the order is outside its domain.
    OptionError
        If `norm` makes no `NormBall`.

    References
    ----------
    von Neumann (1937): unitarily invariant norms are symmetric gauges of singular values.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt import KyFanBall
    >>> layer = RadialBall((5, 4), rank=3, radius=2.0, norm=partial(KyFanBall, 2))
    >>> round(layer.assign(torch.eye(5, 4), project=True)().ky_fan_norm(2).item(), 5)
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
        norm: float | NormBall | Callable[[float, int], NormBall] = 2.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.radius: float = check_radius(radius)
        self.norm: NormBall = _ball(norm, self.radius, self.rank)
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
        source = "von Neumann (1937)"
        yield Example("RadialBall(radius)", partial(cls, radius=1.0), QR + ", 2 r columns", source)
        make = partial(cls, radius=1.0, norm=partial(KyFanBall, 2))
        cost = QR + ", r x r singular values, 2 r columns"
        yield Example("RadialBall(radius, norm)", make, cost, source)
        yield Example("RadialBall(radius, 1)", partial(cls, radius=1.0, norm=1.0), listed=False)

    @property
    def feasible_set(self) -> NormBall:
        return self.norm.resized(radius=self.radius, rank=self.rank)

    def factors(self) -> LowRankOperator:
        product = framed_product(self.left, self.right)
        left, right = product.scaled(2 / (1 + self._square(product))[..., None, None])
        scale = left.new_full((left.shape[-1],), self.radius)
        return LowRankOperator(left, scale, right).to(dtype=self.left.dtype)

    def _square(self, product: FramedProduct) -> Tensor:
        r"""Return :math:`\Phi(P)^2`; that of the Frobenius norm is a trace, smooth everywhere."""
        C = product.core
        if self.norm.norm_name == "Frobenius":
            return C.square().sum((-2, -1)) + product.bend.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self.norm.gauge(_singular_values(C)).square()

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return factors of :math:`P = \frac{W}{\delta} \tan(\arcsin(\rho) / 2) / \rho`.

        Here :math:`\rho = \Phi(W) / \delta`; the right factor keeps orthonormal columns.
        """
        U, sigma, V = self.svd_of(target)
        rho = self.norm.gauge(sigma) / self.radius
        growth = torch.where(rho > 0, invert_contraction(rho) / torch.where(rho > 0, rho, 1), 0.5)
        return {"left": U * (sigma / self.radius * growth), "right": V}

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set left = 0 and right to a random orthonormal frame."""
        lora_start_(self.left, self.right, generator)
        return self


def _ball(
    norm: float | NormBall | Callable[[float, int], NormBall], radius: float, rank: int
) -> NormBall:
    if isinstance(norm, NormBall):
        return norm.resized(radius=radius, rank=rank)
    made: object = norm(radius, rank) if callable(norm) else SchattenBall(norm, radius, rank)
    if not isinstance(made, NormBall):
        raise OptionError(
            f"norm(radius, rank) must return a NormBall; got {made!r}: use a Schatten order or "
            "e.g. functools.partial(KyFanBall, 2)"
        )
    return made


def _singular_values(core: Tensor) -> Tensor:
    U, sigma, Vh = torch.linalg.svd(core.detach())
    eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    return differentiable_values((U, sigma, Vh.mT), (core, torch.ones_like(sigma), eye))
