"""Members of feasible sets, and matrices to compare a projection or a minimiser with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, SingularValueBox
from lowrank_opt.testing.cases.charts import Chart, chart_of, value_excess
from lowrank_opt.testing.cases.oracle import Array, from_dense, random_frame
from lowrank_opt.testing.cases.turned import TurnedWeights

Values: TypeAlias = Literal["distinct", "equal", "first", "pairs", "deficient", "graded"]
Frames: TypeAlias = Literal["random", "identity", "negative_identity", "permuted", "last", "twins"]
VALUES: tuple[Values, ...] = get_args(Values)
FRAMES: tuple[Frames, ...] = get_args(Frames)


@dataclass(frozen=True)
class Member:
    """A member of a feasible set, named by its singular values and vectors.

    Parameters
    ----------
    values : str
        ``distinct``, ``equal``, ``first`` (rank one), ``pairs`` (every value twice), ``deficient``
        (only the first half is not zero) or ``graded`` (each 1e-4 of the one before).
    size : float
        Fraction of the way from 0 to the boundary: 1 is on it. Unbounded sets: the norm.
    frames : str
        Singular vectors: ``random``, columns of the ``identity`` or its negative, of a
        ``permuted`` one, the ``last`` columns of an identity, or ``twins`` (left and right ones
        equal where both exist: W is symmetric and semidefinite if square).
    seed : int

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> op = Member("equal").build(SchattenBall(p=1, radius=3.0, rank=2), (4, 5))
    >>> op.singular_values()
    tensor([1.5000, 1.5000], dtype=torch.float64)
    """

    values: Values = "distinct"
    size: float = 1.0
    frames: Frames = "random"
    seed: int = 0

    def build(
        self,
        feasible_set: FeasibleSet,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> LowRankOperator:
        """Return the member, rounded to `dtype`."""
        like = torch.empty(0, dtype=dtype, device=device)
        chart, rng = chart_of(feasible_set), np.random.default_rng(self.seed)
        if chart.turned is not None:
            W = chart.push(self._turned(chart.turned, rng))
            return from_dense(W, feasible_set.rank, like=like)
        m, n = chart.pull(np.zeros(shape)).shape
        k = min(chart.core.rank, m, n)
        sigma = self.size * to_boundary(chart, self._direction(chart, k, rng))
        U, V = self._frames(m, n, k, rng)
        W = chart.push((U * sigma) @ V.T)
        if W.shape == (m, n) and np.array_equal(W, (U * sigma) @ V.T):
            return _triple(U, sigma, V, like)
        return from_dense(W, feasible_set.rank, like=like)

    def _turned(self, turned: TurnedWeights, rng: np.random.Generator) -> Array:
        """Return the member whose angles are named as singular values otherwise."""
        shares, b = self._shares(turned.planes, rng), turned.block
        return turned.member(self.size * shares / shares[0], self._frames(b, b, b, rng)[0])

    def _direction(self, chart: Chart, k: int, rng: np.random.Generator) -> Array:
        bounds = chart.core.bounds[:k] if isinstance(chart.core, SingularValueBox) else 1.0
        return self._shares(k, rng) * np.array(bounds)

    def _shares(self, k: int, rng: np.random.Generator) -> Array:
        return {
            "distinct": np.sort(rng.uniform(0.1, 1.0, k))[::-1],
            "equal": np.ones(k),
            "first": np.eye(1, k)[0],
            "pairs": 0.5 ** (np.arange(k) // 2),
            "deficient": np.where(np.arange(k) < (k + 1) // 2, 1.0, 0.0),
            "graded": 1e-4 ** np.minimum(np.arange(k), 3),
        }[self.values]

    def _frames(self, m: int, n: int, k: int, rng: np.random.Generator) -> tuple[Array, Array]:
        match self.frames:
            case "random":
                return random_frame(m, k, rng), random_frame(n, k, rng)
            case "permuted":
                return np.eye(m)[rng.permutation(m)[:k]].T, np.eye(n)[rng.permutation(n)[:k]].T
            case "last":
                return np.eye(m)[:, m - k :], np.eye(n)[:, n - k :]
            case "twins":
                U = random_frame(min(m, n), k, rng)
                return np.pad(U, ((0, m - len(U)), (0, 0))), np.pad(U, ((0, n - len(U)), (0, 0)))
            case "negative_identity":
                return np.eye(m, k), -np.eye(n, k)
            case _:
                return np.eye(m, k), np.eye(n, k)


def to_boundary(chart: Chart, direction: Array) -> Array:
    """Return the multiple of decreasing singular values on the boundary, by bisection.

    In an unbounded set, the direction itself.
    """
    if not direction.any() or not chart.bounded:
        return direction
    low, high = 0.0, 1.0
    while value_excess(chart.core, high * direction) <= 0 and high < 2.0**60:
        low, high = high, 2 * high
    if high >= 2.0**60:
        return direction
    for _ in range(60):
        middle = (low + high) / 2
        inside = value_excess(chart.core, middle * direction) <= 0
        low, high = (middle, high) if inside else (low, middle)
    return low * direction


def competitors(chart: Chart, matrix: Array, point: Array, *, seed: int) -> Iterator[Array]:
    """Yield members in the core's coordinates that a nearest member, `point`, must beat.

    The values of `matrix` scaled, lowered by a common amount and cut off at a common level until
    they fit, then random members with its singular vectors and with others.
    """
    if chart.turned is not None:
        yield from chart.turned.rivals(point, seed)
        return
    U, sigma, Vh = np.linalg.svd(matrix, full_matrices=False)
    k, rng = min(chart.core.rank, len(sigma)), np.random.default_rng(seed)
    for values in _fitted(chart, sigma[:k]):
        yield (U[:, :k] * values) @ Vh[:k]
    for index in range(6):
        direction = np.sort(rng.uniform(0.0, 1.0, k) ** (1 + index))[::-1]
        values = rng.uniform(0.5, 1.0) * to_boundary(chart, direction)
        aligned = index % 2 == 0
        left = U[:, :k] if aligned else random_frame(matrix.shape[0], k, rng)
        right = Vh[:k].T if aligned else random_frame(matrix.shape[1], k, rng)
        yield (left * values) @ right.T


def boundary_values(chart: Chart, k: int) -> Iterator[Array]:
    """Yield decreasing singular values on the boundary: what a linear minimiser must beat."""
    for head in range(1, k + 1):
        yield to_boundary(chart, np.where(np.arange(k) < head, 1.0, 0.0))
    for base in (0.9, 0.5, 0.1):
        yield to_boundary(chart, base ** np.arange(k))
    if isinstance(chart.core, SingularValueBox):
        yield np.array(chart.core.bounds[:k])


def _fitted(chart: Chart, sigma: Array) -> Iterator[Array]:
    if value_excess(chart.core, sigma) <= 0:
        yield sigma
        return
    peak = float(sigma[0])
    for family in (
        lambda t: t * sigma,
        lambda t: np.maximum(sigma - (1 - t) * peak, 0.0),
        lambda t: np.minimum(sigma, t * peak),
    ):
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            inside = value_excess(chart.core, family(middle)) <= 0
            low, high = (middle, high) if inside else (low, middle)
        yield family(low)


def _triple(U: Array, sigma: Array, V: Array, like: Tensor) -> LowRankOperator:
    return LowRankOperator(*(torch.from_numpy(x.copy()).to(like) for x in (U, sigma, V)))


# From simple to hostile, as for parameters.
MEMBERS = (
    Member(),
    Member(size=0.5),
    Member(size=0.0),
    Member("equal"),
    Member("first"),
    Member("pairs"),
    Member("deficient"),
    Member("equal", 0.5),
    Member("deficient", 0.9),
    Member(size=1e-8),
    Member(size=1e-30),
    Member("distinct", 1.0, "identity"),
    Member("distinct", 1.0, "negative_identity"),
    Member("equal", 1.0, "negative_identity"),
    Member("first", 0.3, "negative_identity"),
    Member("distinct", 1.0, "permuted"),
    Member("equal", 1.0, "last"),
    Member("distinct", 0.7, "twins"),
    Member("graded"),
    Member("graded", 1.0, "permuted"),
)
