"""Updates that turn a weight: ``W0 R - W0`` with R orthogonal in the arithmetic used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_base_weight, check_choice, check_positive_rank, check_rank
from lowrank_opt.errors import NotInSetError, OptionError, TargetError
from lowrank_opt.linalg import (
    RotationMap,
    frozen_product,
    leading_svd,
    nearest_frame,
    reflections,
    reflections_between,
    rotation,
    skew_entries,
    skew_matrices,
    skew_of_turn,
    turn_between,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import (
    Parameterization,
    check_member,
    random_frame,
)
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.turned.leading import LeadingValues
from lowrank_opt.parameterizations.turned.rotated_weight import RotatedWeight, Rotation
from lowrank_opt.parameterizations.turned.turns import (
    Butterfly,
    butterfly_factors,
    butterfly_order,
    check_blocks,
)
from lowrank_opt.sets import ImageSet, OrthogonalSet, relative_tolerance

TurnMap = Literal["cayley", "exponential", "householder"]


class Orthogonal(Parameterization):
    r""":math:`W = W_0 R - W_0` on the input side, R orthogonal: singular values of the weight stay.

    Three kinds of R, each with :math:`\|R^T R - I\| \le 10^{-14}` in float64 for every finite
    parameter, and rounded once to the dtype of the weight:

    * by default a product of `stages` block-diagonal rotations of `blocks` blocks each, from free
      skew matrices by the Cayley map or the exponential; later stages take every b-th, then every
      :math:`b^2`-th coordinate, or BOFT's halves (two butterflies). The layer rotates its input,
      n b numbers of work a row and stage; R is not formed, and neither is W.
    * with a `rank`, :math:`R = I + U (R_r - I) U^T` with an r x r rotation between the leading
      right singular vectors U of the weight: a thin update of rank r, or r - 1 for an odd r.
    * ``map="householder"``: a product of `rank` reflections, an even number; thin as well.

    **Distance.** With a `radius`, :math:`\|R_j - I\|_2 \le \text{radius} < 2` for each stage, by
    construction. **Set**: `OrthogonalSet`, what rotations of these blocks within the radius add to
    the weight; of several stages, rotations of all coordinates within the sum of their radii.
    Complete with a radius and one stage, and for reflections; without a radius, every rotation of
    the set but half turns. The start is R = I, W = 0 exactly, and its gradient does not vanish.

    **Arithmetic.** R is computed in float64 whatever the dtype of the parameters, whose numbers
    count as exact, and each ``R_j - I`` is rounded once, to the weight's dtype or to that of the
    activations. These are turned in their own dtype: a row x comes out within
    :math:`2 k (b + 4) \sqrt b\, u\, |x|` of x R^T for k stages of blocks of size b and the unit
    roundoff u, so that lengths are kept to that (measured: 4 u). The set holds for the factors to
    the package's tolerance for their dtype. A merged weight is W_0 R rounded to its dtype.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight; shared, not copied.
    blocks : int
        Divides n; blocks of at least two coordinates.
    map : {"cayley", "exponential", "householder"}
    radius : float, optional
        In (0, 2); not for reflections, whose distance is 2.
    rank : int, optional
        Of R - I; without blocks and stages.
    stages : int
        ``b ** stages`` divides n; with halves b is even, and ``b 2 ** (stages - 1)`` does.
    butterfly : {"strides", "halves"}
        See `lowrank_opt.parameterizations.turned.turns.butterfly_order`. Strides connect all
        coordinates in :math:`\log_b n` stages, halves in :math:`1 + \log_2 (n / b)`.
    generator : torch.Generator, optional
        Of the random start of reflections.

    Raises
    ------
    OptionError
        If options do not fit each other or the weight.
    TargetError
        If the weight is zero or not finite.

    References
    ----------
    OFT (arXiv 2306.07280), OFTv2 (2506.19847), BOFT (2311.06243), HRA (2405.17484), GOFT
    (2404.04316), PSOFT (2505.11235): `oft`, `boft`, `hra`, `goft` and `psoft` build them.

    Examples
    --------
    >>> weight = torch.randn(6, 4, dtype=torch.float64)
    >>> turned = Orthogonal(weight, blocks=2, radius=0.5)
    >>> _ = torch.nn.init.normal_(turned.skew)
    >>> sigma = torch.linalg.svdvals(weight + turned().to_dense())
    >>> bool(torch.allclose(sigma, torch.linalg.svdvals(weight))), turned.distance() <= 0.5
    (True, True)
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        blocks: int = 1,
        map: TurnMap = "cayley",
        radius: float | None = None,
        rank: int | None = None,
        stages: int = 1,
        butterfly: Butterfly = "strides",
        generator: torch.Generator | None = None,
    ) -> None:
        m, n = weight.shape
        check_choice(map, get_args(TurnMap), "map")
        check_base_weight(weight)
        self.butterfly: Butterfly = check_choice(butterfly, get_args(Butterfly), "butterfly")
        thin = _check_rank(rank, blocks, stages, map, (m, n))
        super().__init__((m, n), min(m, n) if thin is None else thin)
        self.blocks: int
        self.stages: int
        self.blocks, self.stages = blocks, stages
        self.map: TurnMap = map
        self.radius: float | None = _check_distance(radius, map)
        self.directions = thin
        self.complete: bool = map == "householder" or (radius is not None and stages == 1)
        self._leading = LeadingValues()
        self.register_buffer("weight", weight.detach())
        self.weight: Tensor
        frame = (
            None if thin is None or map == "householder" else leading_svd(weight.detach(), thin)[2]
        )
        self.register_buffer("frame", None if frame is None else frame.to(weight))
        self.frame: Tensor | None
        if map == "householder":
            self.vectors: nn.Parameter = nn.Parameter(weight.new_empty(n, self.rank))
        else:
            b = self.rank if thin is not None else check_blocks(n, blocks, stages, butterfly)
            self.skew: nn.Parameter = nn.Parameter(
                weight.new_zeros(stages, blocks, b * (b - 1) // 2)
            )
        self.zero_(generator=generator)

    def options(self) -> dict[str, object]:
        return {
            "weight": self.weight,
            "blocks": self.blocks,
            "map": self.map,
            "radius": self.radius,
            "rank": self.directions,
            "stages": self.stages,
            "butterfly": self.butterfly,
        }

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def make(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64) -> Self:
            return cls(example_tensor(*shape, dtype=dtype), rank=rank, radius=1.0)

        yield Example("Orthogonal(weight, rank)", make, listed=False)

    @property
    def feasible_set(self) -> OrthogonalSet | ImageSet:
        W0, values = self.weight, self._leading.of(self.weight, self.rank)
        if self.map == "householder":
            return OrthogonalSet(W0, directions=self.rank, values=values)
        if self.frame is None:
            blocks = self.blocks if self.stages == 1 else 1
            return OrthogonalSet(W0, self.bound, blocks, values=values)
        U = nearest_frame(self.frame)
        return ImageSet(OrthogonalSet(W0.double() @ U, self.bound, values=values), None, U)

    @property
    def bound(self) -> float:
        """What the distance of R from the identity cannot exceed."""
        return 2.0 if self.radius is None else min(2.0, self.stages * self.radius)

    @property
    def block_size(self) -> int:
        """Number of coordinates that one rotation mixes."""
        return self.rank if self.frame is not None else self.shape[1] // self.blocks

    def factors(self) -> LowRankOperator:
        if self.map == "householder":
            return self._reflected(self.vectors).to(dtype=self.weight.dtype)
        if self.frame is None:
            return RotatedWeight(self.weight, self._rotation())
        U = nearest_frame(self.frame)
        left = frozen_product(self.weight, U @ self.turns()[0, 0])
        return LowRankOperator(left, left.new_ones(self.rank), U).to(dtype=self.weight.dtype)

    def turns(self) -> Tensor:
        """Return all ``R_j - I``, shape (stages, blocks, b, b), in float64; not of reflections."""
        skew = skew_matrices(self.skew, self.block_size)
        return rotation(skew, self._kind, self.radius)

    @property
    def _kind(self) -> RotationMap:
        return "exponential" if self.map == "exponential" else "cayley"

    def _rotation(self) -> Rotation:
        return Rotation(tuple(self.turns().unbind()), self._orders())

    def _orders(self) -> tuple[Tensor | None, ...]:
        n, b, device = self.shape[1], self.block_size, self.weight.device
        return tuple(butterfly_order(n, b, k, device, self.butterfly) for k in range(self.stages))

    def rotation_dense(self) -> Tensor:
        """Return R, n x n in float64: for tests and for merging elsewhere."""
        eye = torch.eye(self.shape[1], dtype=torch.float64, device=self.weight.device)
        if self.map == "householder":
            X, Y = reflections(self.vectors)
            return eye + X @ Y.mT
        if self.frame is not None:
            U = nearest_frame(self.frame)
            return eye + U @ self.turns()[0, 0] @ U.mT
        return eye + self._rotation().moved(eye).mT

    def dense_of(self, steps: Tensor) -> Tensor:
        """Return R - I of other blocks ``R_j - I``, (stages, blocks, b, b): n x n, in float64."""
        eye = torch.eye(self.shape[1], dtype=torch.float64, device=self.weight.device)
        return Rotation(tuple(steps.double().unbind()), self._orders()).moved(eye).mT

    @torch.no_grad()
    def distance(self) -> float:
        r"""Return :math:`\|R - I\|_2`; of several stages, the sum of theirs, which bounds it."""
        if self.map == "householder":
            X, Y = reflections(self.vectors)
            return float(LowRankOperator(X, X.new_ones(X.shape[1]), Y).schatten_norm(math.inf))
        return float(torch.linalg.matrix_norm(self.turns(), 2).amax(1).sum())

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return the parameters of a rotation that gives `target`, if one does.

        Block by block the nearest rotation within the radius; where the weight leaves R free, the
        one that moves least. Of several stages, whose weight needs n independent rows, R comes
        apart by `butterfly_factors`: a section of the map for strides with a radius up to
        :math:`\sqrt 2`; otherwise other factors of the same product, which may be refused.

        Raises
        ------
        NotInSetError
            If the target is outside the declared set.
        TargetError
            If the stages do not give it, or a half turn does; says the residual.
        """
        target = self.operator_of(target)
        check_member(target, self.feasible_set)
        op = target.to(dtype=torch.float64)
        if self.map == "householder":
            vectors = reflections_between(self.weight.double(), op.to_dense(), self.rank)
            self._check_residual(op, self._reflected(vectors))
            return {"vectors": vectors}
        if self.stages > 1:
            return {"skew": self._skew_of_stages(op)}
        D = self._nearest(op)
        self._check_residual(op, self._turned(D))
        return {"skew": skew_entries(skew_of_turn(D, self._kind, self.radius)).unsqueeze(0)}

    def _skew_of_stages(self, op: LowRankOperator) -> Tensor:
        W0 = self.weight.double()
        D = turn_between(W0, op.to_dense())
        eye = torch.eye(self.block_size, dtype=D.dtype, device=D.device)
        R = torch.eye(len(D), dtype=D.dtype, device=D.device) + D
        stages = butterfly_factors(R, self.block_size, self.stages, self.butterfly)
        turns = [x - eye for x in stages]
        self._check_residual(op, RotatedWeight(W0, Rotation(tuple(turns), self._orders())))
        for x in turns:
            self._check_distance(x)
        return torch.stack([skew_entries(skew_of_turn(x, self._kind, self.radius)) for x in turns])

    def _nearest(self, op: LowRankOperator) -> Tensor:
        W0 = self.weight.double()
        if self.frame is not None:
            U = nearest_frame(self.frame)
            return turn_between(W0 @ U, op @ U, self.radius).unsqueeze(0)
        # Column blocks of the base weight and of the target beside each other.
        parts = zip(W0.split(self.block_size, 1), op.right.split(self.block_size), strict=True)
        turns = (turn_between(A, (op.left * op.scale) @ x.mT, self.radius) for A, x in parts)
        return torch.stack(list(turns))

    def _turned(self, D: Tensor) -> LowRankOperator:
        W0 = self.weight.double()
        if self.frame is None:
            return LowRankOperator(W0, W0.new_ones(W0.shape[1]), torch.block_diag(*D).mT)
        U = nearest_frame(self.frame)
        return LowRankOperator(W0 @ U @ D[0], W0.new_ones(U.shape[1]), U)

    def _reflected(self, vectors: Tensor) -> LowRankOperator:
        X, Y = reflections(vectors)
        return LowRankOperator(frozen_product(self.weight, X), X.new_ones(X.shape[1]), Y)

    def _check_residual(self, op: LowRankOperator, made: LowRankOperator) -> None:
        residual = float((made - op).schatten_norm(2))
        rounding = relative_tolerance(self.weight.dtype, max(self.shape))
        if residual > 16 * rounding * float(torch.linalg.matrix_norm(self.weight.double())):
            raise TargetError(
                f"the target must be W0 R - W0 with R of this kind; the nearest misses it by "
                f"{residual:.2e}: allow larger blocks or a larger rank, or use an additive map"
            )

    def _check_distance(self, D: Tensor) -> None:
        distance = float(torch.linalg.matrix_norm(D, 2).amax())
        bound = 2.0 if self.radius is None else self.radius
        excess = distance - bound
        if excess > 64 * torch.finfo(self.weight.dtype).eps:
            raise NotInSetError(
                f"the rotation must be within {bound:g} of the identity; got {distance:g}: "
                "allow a larger radius",
                excess=excess,
            )

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set R = I: skew matrices to zero, reflections to random pairs that undo each other."""
        if self.map != "householder":
            self.skew.zero_()
            return self
        n, pairs = self.shape[1], self.rank // 2
        half = random_frame(n, pairs, like=self.vectors, generator=generator)
        self.vectors.copy_(half.repeat_interleave(2, dim=1))
        return self


def _check_rank(
    rank: int | None, blocks: int, stages: int, map: TurnMap, shape: tuple[int, int]
) -> int | None:
    check_positive_rank(blocks, "blocks")
    check_positive_rank(stages, "stages")
    if rank is None and map != "householder":
        return None
    if (blocks, stages) != (1, 1):
        raise OptionError(
            f"a rank or reflections go without blocks and stages; got blocks={blocks}, "
            f"stages={stages}: leave one of them out"
        )
    rank = 2 if rank is None else check_rank(rank, shape)
    if rank % 2 and map == "householder":
        raise OptionError(f"reflections come in pairs, to start at R = I; got rank={rank}")
    if rank == 1:
        raise OptionError("a single direction cannot be rotated; got rank=1: use 2 or more")
    return check_rank(rank, shape)


def _check_distance(radius: float | None, map: TurnMap) -> float | None:
    if radius is None:
        return None
    if map == "householder":
        raise OptionError(f"reflections are at distance 2; got radius={radius!r}: leave it out")
    if not 0 < radius < 2:
        raise OptionError(f"a radius of rotations must be in (0, 2); got radius={radius!r}")
    return float(radius)
