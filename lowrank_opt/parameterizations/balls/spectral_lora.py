"""LoRA's own tensors under a spectral bound: singular values through a double angle."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.linalg import framed_product, invert_contraction
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, lora_start_
from lowrank_opt.parameterizations.example import QR, Example
from lowrank_opt.sets import SchattenBall


class SpectralLoRA(Parameterization):
    r""":math:`W = 2 \delta\, B\, (I + A A^T B^T B)^{-1} A`, LoRA bounded in the spectral norm.

    Set: the spectral ball of radius :math:`\delta` among matrices of rank at most r, closed and
    complete. A singular value :math:`\tan\varphi` of B A becomes :math:`\delta \sin 2\varphi`
    (double angle). The tensors, the start and the first gradient are LoRA's with alpha / r equal
    to :math:`2 \delta`.

    Evaluated in orthonormal frames of B and A: two thin QR factorizations and a few r x r solves,
    in float64, rounded once to the parameters' dtype. The bound holds to a few units of rounding of
    that dtype for every finite parameter; the textbook form above loses :math:`u \|BA\|^2`.
    Derivatives of every order are exact, also where columns are dependent. The triple has
    2 r columns, of which the last r have product exactly 0 and carry part of the derivative.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float
        Bound on the spectral norm. Positive.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If the radius is not positive and finite.

    References
    ----------
    Hu et al., LoRA (arXiv 2106.09685), section 4.1, for the tensors and their start.

    Examples
    --------
    >>> layer = SpectralLoRA((6, 4), rank=2, radius=0.5)
    >>> _ = layer.assign(10 * torch.randn(6, 4), project=True)
    >>> round(layer().schatten_norm(float("inf")).item(), 5)
    0.5
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
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.radius: float = check_radius(radius)
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
        cost = QR + ", three r x r inverses, 2 r columns"
        make = partial(cls, radius=1.0)
        yield Example("SpectralLoRA(radius)", make, cost, "double angle of arXiv 2106.09685")

    @property
    def feasible_set(self) -> SchattenBall:
        return SchattenBall(float("inf"), self.radius, self.rank)

    def factors(self) -> LowRankOperator:
        left, right = framed_product(self.left, self.right).contracted()
        scale = left.new_full((left.shape[-1],), self.radius)
        return LowRankOperator(left, scale, right).to(dtype=self.left.dtype)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return :math:`B = U \tan(\arcsin(\sigma / \delta) / 2)`, :math:`A = V^T`.

        The right factor keeps orthonormal columns, so that a target of lower rank leaves no
        component without a gradient.
        """
        U, sigma, V = self.svd_of(target)
        return {"left": U * invert_contraction(sigma / self.radius), "right": V}

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set left = 0 and right to a random orthonormal frame."""
        lora_start_(self.left, self.right, generator)
        return self
