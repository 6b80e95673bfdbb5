r"""What rotations of its inputs add to a weight: :math:`\{W_0 R - W_0 : \|R - I\|_2 \le \rho\}`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.linalg import (
    leading_svd,
    reflections,
    reflections_between,
    reflections_towards,
    turn_between,
    turn_towards,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, relative_tolerance
from lowrank_opt.sets.sides import Features
from lowrank_opt.sets.spectral import SingularValueBox

if TYPE_CHECKING:
    from lowrank_opt.sets.base import Gradient
    from lowrank_opt.sets.sides import Matrix


@dataclass(frozen=True, eq=False)
class OrthogonalSet(FeasibleSet):
    r""":math:`\{W_0 (R - I)\}`, R block-diagonal with rotations within a radius of the identity.

    Membership is decided exactly, block by block of columns A of the weight and T of W: for some
    rotation :math:`A R = A + T` and :math:`\|R - I\|_2 \le \rho` if and only if

    .. math:: T A^T + A T^T + T T^T = 0, \qquad T T^T \preceq \rho^2 A A^T,

    see `lowrank_opt.linalg.turning` for the proof. Without a radius, :math:`\rho = 2`, R is any
    rotation; then, where A has independent columns, the determinant is asked for as well. The
    excess is the largest of what these conditions miss, as lengths, and of the excess over `box`:
    zero for members alone, never more than the distance to the set in the spectral norm, and in
    floating point a few roundings of it.

    Not convex. `project` and `lmo` give members; the best ones without a radius or a number of
    directions, and where the best rotation is within the radius. Otherwise a local optimum; how
    much nearer another member could be is `gap`.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        W_0; read, not copied.
    radius : float
        In (0, 2].
    blocks : int
        Divides n.
    directions : int, optional
        Largest rank of R - I, even; R is then a product of so many reflections. Without radius and
        blocks.
    values : Tensor, optional
        The leading singular values of the weight, if they are known.

    Raises
    ------
    ShapeError
        If the weight has fewer than two columns.
    OptionError
        If options do not fit each other or the weight.

    References
    ----------
    Davis, Kahan and Weinberger (1982), norm-preserving dilations.

    Examples
    --------
    >>> near = OrthogonalSet(torch.eye(2), radius=1.0)
    >>> turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64) - torch.eye(2)
    >>> near.contains(LowRankOperator.from_dense(turn))
    True
    >>> near.contains(LowRankOperator.from_dense(0.9 * turn))
    False
    """

    weight: Tensor
    radius: float = 2.0
    blocks: int = 1
    directions: int | None = None
    values: Tensor | None = None
    norm_name = "distance of R"

    def __post_init__(self) -> None:
        n = self.weight.shape[1]
        if not 0 < self.radius <= 2:
            raise OptionError(
                f"a radius of rotations must be in (0, 2]; got radius={self.radius!r}"
            )
        if n < 2:
            raise ShapeError(f"a rotation needs at least 2 inputs; got {n}: give a wider weight")
        if self.blocks < 1 or n % self.blocks or n // self.blocks < 2:
            raise OptionError(
                f"blocks must divide the {n} inputs into two or more each; got {self.blocks}"
            )
        if self.directions is None:
            return
        if self.directions < 2 or self.directions % 2 or (self.radius, self.blocks) != (2, 1):
            raise OptionError(
                "reflections are an even number, without radius and blocks; got "
                f"directions={self.directions}, radius={self.radius!r}, blocks={self.blocks}"
            )

    def __repr__(self) -> str:
        m, n = self.weight.shape
        more = "" if self.directions is None else f", directions={self.directions}"
        return f"OrthogonalSet({m} x {n}, radius={self.radius!r}, blocks={self.blocks}{more})"

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The least of m and of the rank of R - I, which is even block by block."""
        m, n = self.weight.shape
        b = n // self.blocks
        turned = self.blocks * (b - b % 2)
        return min(m, turned if self.directions is None else min(turned, self.directions))

    @cached_property
    def box(self) -> SingularValueBox:
        r"""A box that contains the set: :math:`\sigma_i(W) \le \rho\, \sigma_i(W_0)`."""
        known = self.values
        values = leading_svd(self.weight.detach(), self.rank)[1] if known is None else known
        return SingularValueBox(self.radius * values[: self.rank])

    @property
    def bound(self) -> str:
        return f"|R - I| <= {self.radius:g}"

    @property
    def size(self) -> float:
        return self.box.size

    @property
    def frobenius_bound(self) -> float:
        return self.box.frobenius_bound

    def with_rank(self, rank: int) -> FeasibleSet:
        return self if self.rank <= rank else self.box.with_rank(rank)

    def scaled(self, factor: float) -> FeasibleSet:
        return self if factor == 1 else self.box.scaled(factor)

    def truncated(self, rank: int) -> FeasibleSet:
        return self.box.truncated(rank)

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        """Singular values are averaged: a mean of rotations is none."""
        return self.box.averaged([_boxed(s) for s in sets], weights, rank=rank)

    def side_by_side(
        self, sets: Sequence[FeasibleSet], sizes: Sequence[float]
    ) -> FeasibleSet | None:
        return self.box.side_by_side([_boxed(s) for s in sets], sizes)

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SingularValueBox]:
        """Return the operator and the box: what is true of its singular values."""
        return op, self.box

    def unit(self, op: LowRankOperator) -> float:
        """Return the largest bound on a singular value."""
        return self.box.size

    def excess(self, op: LowRankOperator) -> float:
        found = [_missed(A, T, self.radius) for A, T in self._parts(op)]
        return max(self.box.excess(op), *found)

    def _parts(self, op: LowRankOperator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks of columns of the weight and of W, in float64."""
        left, scale, right = (x.double() for x in op.detach())
        b = self.weight.shape[1] // self.blocks
        columns = zip(self.weight.double().split(b, 1), right.split(b), strict=True)
        for A, part in columns:
            yield A, (left * scale) @ part.mT

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return a member near `op` in the Frobenius norm: the nearest one, or a local optimum."""
        if self.directions is not None:
            ((A, T),) = self._parts(op)
            start = reflections_between(A, T, self.directions)
            member = self._reflected(start, torch.float64)
            near = float((member - op.detach().to(dtype=torch.float64)).schatten_norm(2))
            if near <= relative_tolerance(torch.float64, sum(A.shape)) * self.box.size:
                return member.to(dtype=op.dtype)
            return self._reflected(reflections_towards(A.mT @ (A + T), start), op.dtype)
        turns = [turn_between(A, T, self._bounded) for A, T in self._parts(op)]
        return self._turned(turns, op.dtype)

    def gap(self, op: LowRankOperator) -> float:
        """Return a bound on how much nearer than `project` another member could be, Frobenius.

        Zero where the projection is known to be the nearest one, up to rounding.
        """
        op = op.detach().to(dtype=torch.float64)
        distance = float((self.project(op) - op).schatten_norm(2))
        free = (A @ turn_between(A, T) - T for A, T in self._parts(op))
        least = math.hypot(*(float(torch.linalg.matrix_norm(x)) for x in free))
        return max(0.0, distance - max(least, self.excess(op)))

    @property
    def _bounded(self) -> float | None:
        return self.radius if self.radius < 2 else None

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        if tuple(shape) != tuple(self.weight.shape):
            raise OptionError(f"members have the shape of the weight, {tuple(self.weight.shape)}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if self.directions is not None:
            pairs = min(self.directions, shape[1] - shape[1] % 2) // 2
            vectors = torch.randn(shape[1], 2 * pairs, dtype=torch.float64, generator=generator)
            still = _still(pairs, generator)
            vectors[:, : 2 * still : 2] = vectors[:, 1 : 2 * still : 2]
            return self._reflected(vectors.to(self.weight.device), dtype)
        b = shape[1] // self.blocks
        still = _still(self.blocks * (b // 2), generator)
        pairs = [
            _random_turn(A, self.radius, b // 2 - max(0, still - k * (b // 2)), generator)
            for k, A in enumerate(self.weight.double().split(b, 1))
        ]
        X, Y = (torch.block_diag(*parts) for parts in zip(*pairs, strict=True))
        return self._between(X, Y, dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return a member with a small ``<gradient, W>``: the smallest, or a local optimum."""
        given = gradient if not isinstance(gradient, LowRankOperator) else gradient.to_dense()
        dtype = given.dtype if isinstance(given, Tensor) else torch.float64
        slope = _dense(Features(self.weight.detach()).reduced(given)).to(self.weight.device)
        if self.directions is not None:
            start = torch.eye(len(slope), 1).double().expand(-1, self.directions)
            return self._reflected(reflections_towards(-slope, start), dtype)
        b = len(slope) // self.blocks
        blocks = (slope[k : k + b, k : k + b] for k in range(0, len(slope), b))
        return self._turned([turn_towards(-x, self._bounded) for x in blocks], dtype)

    def _turned(self, turns: Sequence[Tensor], dtype: torch.dtype) -> LowRankOperator:
        D = torch.block_diag(*turns)
        return self._between(torch.eye(len(D), dtype=D.dtype, device=D.device), D.mT, dtype)

    def _reflected(self, vectors: Tensor, dtype: torch.dtype) -> LowRankOperator:
        return self._between(*reflections(vectors), dtype)

    def _between(self, X: Tensor, Y: Tensor, dtype: torch.dtype) -> LowRankOperator:
        """Return the member of ``R - I = X Y^T``."""
        left = self.weight.double() @ X
        return LowRankOperator(left, left.new_ones(left.shape[1]), Y).to(dtype=dtype)


def _missed(A: Tensor, T: Tensor, radius: float) -> float:
    """Return the largest length by which rows A + T cannot be rotated rows A."""
    size = max(float(A.abs().max()), float(T.abs().max()))
    if not size:
        return 0.0
    A, T = A / size, T / size
    # All happens in the span of the columns.
    if len(A) > 2 * A.shape[1]:
        A, T = torch.linalg.qr(torch.cat((A, T), dim=1)).R.split(A.shape[1], 1)
    lengths = T @ A.mT
    lengths = lengths + lengths.mT + T @ T.mT
    both = torch.linalg.matrix_norm(A, 2) + torch.linalg.matrix_norm(A + T, 2)
    bent = float(torch.linalg.matrix_norm(lengths, 2) / both)
    y = torch.linalg.eigh(T @ T.mT - radius**2 * A @ A.mT).eigenvectors[:, -1]
    far = float(torch.linalg.vector_norm(T.mT @ y) - radius * torch.linalg.vector_norm(A.mT @ y))
    return size * max(0.0, bent, far, _mirrored(A, T) if radius == 2 else 0.0)


def _mirrored(A: Tensor, T: Tensor) -> float:
    """Return the least singular value of A if its columns tell that R is no rotation, else 0."""
    if len(A) < A.shape[1]:
        return 0.0
    U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
    known = float(sigma[-1]) > max(A.shape) * torch.finfo(A.dtype).eps * float(sigma[0])
    R = (Vh.mT / sigma) @ U.mT @ (A + T) if known else Vh
    return float(sigma[-1]) if known and float(torch.linalg.det(R)) < 0 else 0.0


def _still(planes: int, generator: torch.Generator | None) -> int:
    """Return how many of the planes do not turn: none in one sample of two."""
    return max(0, int(torch.randint(2 * planes, (), generator=generator)) - planes + 1)


def _random_turn(
    A: Tensor, radius: float, planes: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return X, Y of a random ``R - I = X Y^T``; the first plane has a row of A."""
    b, angle = A.shape[1], 2 * math.asin(radius / 2)
    frame = torch.randn(b, b, dtype=torch.float64, generator=generator).to(A.device)
    weights = torch.randn(len(A), dtype=torch.float64, generator=generator).to(A.device)
    shares = torch.rand(b // 2, dtype=torch.float64, generator=generator)
    # One sample of two is on the boundary; the plane has either orientation.
    if int(torch.randint(2, (), generator=generator)):
        shares[0] = 1.0
    angle = angle if int(torch.randint(2, (), generator=generator)) else -angle
    row = A.mT @ weights
    frame[:, 0] = torch.where(row.any(), row, frame[:, 0])
    Q, size = torch.linalg.qr(frame).Q, 2 * max(1, planes)
    turned = torch.zeros_like(frame[:size, :size])
    for k, share in enumerate(shares[: max(0, planes)].tolist()):
        half = share * angle / 2
        # cos - 1 and sin, without cancellation.
        c, s = -2 * math.sin(half) ** 2, 2 * math.sin(half) * math.cos(half)
        turned[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = turned.new_tensor([[c, -s], [s, c]])
    Q = Q[:, : len(turned)]
    return Q @ turned, Q


def _dense(slope: Matrix) -> Tensor:
    if isinstance(slope, Tensor):
        return slope.detach().to_dense().double()
    array = slope if isinstance(slope, np.ndarray) else slope.toarray()
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def _boxed(feasible_set: FeasibleSet) -> FeasibleSet:
    """Return a set of singular values instead of one of rotations."""
    return feasible_set.box if isinstance(feasible_set, OrthogonalSet) else feasible_set
