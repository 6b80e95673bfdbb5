"""A rotation between leading singular directions of a weight, and scales before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_choice, check_rank
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import leading_svd, rotation, skew_matrices
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.sets import RankAtMost

RotatedFrame = Literal["right", "balanced"]


class ScaledRotation(Parameterization):
    r""":math:`W = A\,(\mathrm{diag}(\beta)\, R\, \mathrm{diag}(\alpha) - I)\, B^T`: PSOFT whole.

    A and B are frozen, from the `rank` leading singular triples of the weight, with
    :math:`A B^T = U \Sigma V^T`; R is a rotation by the Cayley map, orthogonal to rounding of
    float64, and the two vectors are trained with it. With :math:`\alpha = \beta = 1` it is what
    `Orthogonal` makes of a `rank`.

    **Set**: rank at most r. No bound: the scales have none. Not complete: r (r - 1) / 2 + 2 r - 1
    dimensions between fixed spaces. No right inverse. The start is W = 0 exactly, and its gradient
    does not vanish.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight; read only.
    rank : int
        At least 2.
    frame : {"right", "balanced"}
        Where the singular values stand: ``A = U Sigma`` (PEFT's ``psoft_init``, and the paper's
        asymmetric frame), or their roots on both sides (``pissa_init``).
    radius : float, optional
        Bound on ``|R - I|``, in (0, 2).

    Raises
    ------
    OptionError
        If an option does not fit.

    References
    ----------
    PSOFT (arXiv 2505.11235), section 4; entries of its vectors are free there as well.

    Examples
    --------
    >>> turned = ScaledRotation(torch.randn(6, 5), 3)
    >>> bool(turned().to_dense().any()), turned.skew.shape
    (False, torch.Size([3]))
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        *,
        frame: RotatedFrame = "right",
        radius: float | None = None,
    ) -> None:
        super().__init__(
            (weight.shape[0], weight.shape[1]), check_rank(rank, (weight.shape[0], weight.shape[1]))
        )
        if rank < 2:
            raise OptionError(
                f"a single direction cannot be rotated; got rank={rank}: use 2 or more"
            )
        if radius is not None and not 0 < radius < 2:
            raise OptionError(f"a radius of rotations must be in (0, 2); got radius={radius!r}")
        self.frame: RotatedFrame = check_choice(frame, get_args(RotatedFrame), "frame")
        self.radius = radius
        U, sigma, V = leading_svd(weight.detach(), rank)
        first, second = (sigma, 1.0) if frame == "right" else (sigma.sqrt(), sigma.sqrt())
        for name, x in (("weight", weight), ("outer", U * first), ("inner", V * second)):
            self.register_buffer(name, x.detach().to(weight))
        self.weight: Tensor
        self.outer: Tensor
        self.inner: Tensor
        self.skew: nn.Parameter = nn.Parameter(weight.new_zeros(rank * (rank - 1) // 2))
        self.before: nn.Parameter = nn.Parameter(weight.new_ones(rank))
        self.after: nn.Parameter = nn.Parameter(weight.new_ones(rank))

    def options(self) -> dict[str, object]:
        return {
            "weight": self.weight,
            "rank": self.rank,
            "frame": self.frame,
            "radius": self.radius,
        }

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def make(
            shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64
        ) -> ScaledRotation:
            return cls(example_tensor(*shape, dtype=dtype), max(2, rank))

        cost = "one r x r inverse"
        image = "r (r - 1) / 2 + 2 r - 1 dimensions between fixed spaces"
        yield Example("ScaledRotation(weight, rank)", make, cost, "arXiv 2505.11235", image)

    @property
    def feasible_set(self) -> RankAtMost:
        return RankAtMost(self.rank)

    def core(self) -> Tensor:
        r"""Return :math:`\mathrm{diag}(\beta) R\, \mathrm{diag}(\alpha) - I`, r x r, in float64."""
        D = self.turns()
        a, b = self.before.double(), self.after.double().unsqueeze(1)
        # b R a - I in terms that are zero at the start: no digits cancel near it.
        eye = torch.eye(self.rank, dtype=D.dtype, device=D.device)
        return b * D * a + (b * a - 1) * eye

    def turns(self) -> Tensor:
        """Return ``R - I``, r x r, in float64."""
        return rotation(skew_matrices(self.skew, self.rank), "cayley", self.radius)

    def factors(self) -> LowRankOperator:
        left = self.outer.double() @ self.core()
        return LowRankOperator(left, left.new_ones(self.rank), self.inner.double()).to(
            dtype=self.weight.dtype
        )

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set R = I and both vectors to one."""
        self.skew.zero_()
        self.before.fill_(1.0)
        self.after.fill_(1.0)
        return self
