r"""What a set can do, and how a set of singular values inherits all of it.

The tolerance rule of the package: `contains` accepts an excess of
``(2 eps(dtype) + 14 eps(float64)) sqrt(rank) * unit``, where ``unit`` is the set's own size (its
radius, its largest bound) and ``dtype`` is that of the factors. Stored factors are an exact matrix
whatever their dtype, and their singular values are computed in float64: the first term covers the
rounding of a map's factors to their dtype, the second the rounding of float64, in the map and in
the singular values. Nothing else is covered, and every check uses this one rule; *Guarantees* in
the documentation derives it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from lowrank_opt.checks import check_positive_rank
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import leading_svd, orthonormal_columns, product_svd
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    import scipy.sparse as sp

    Gradient = LowRankOperator | Tensor | sp.spmatrix | sp.sparray


def relative_tolerance(dtype: torch.dtype, rank: int) -> float:
    r"""Return the relative excess that rounding explains.

    Factors with r columns, rounded entry by entry with a unit roundoff of u = eps / 2, move by at
    most :math:`u \sqrt r` in the spectral norm, each; a scale rounded too adds u. The product
    exceeds the bound by :math:`(1 + u \sqrt r)^2 (1 + u) - 1 \le 2\, \mathrm{eps} \sqrt r` (while
    :math:`u \sqrt r \le 0.3`): at most 1.6 % at rank 1 in bfloat16. Fourteen units of float64
    remain for the arithmetic.

    Examples
    --------
    >>> relative_tolerance(torch.bfloat16, 1), relative_tolerance(torch.float64, 1) < 4e-15
    (0.01562500000000311, True)
    """
    eps = 2 * torch.finfo(dtype).eps + 14 * torch.finfo(torch.float64).eps
    return eps * math.sqrt(max(rank, 1))


class FeasibleSet(ABC):
    """A closed set of m x n matrices of bounded rank.

    Attributes
    ----------
    rank : int
        Largest rank of a member.
    norm_name : str
        The norm that is bounded, in a word or two; "none" if there is no bound.
    """

    rank: int
    norm_name: str = "none"

    @property
    def bound(self) -> str:
        """What is bounded by how much, in a few words, like ``nuclear <= 3``."""
        return self.norm_name

    @property
    def size(self) -> float | None:
        """The radius or largest bound, as `unit` has it where it is a constant; None if not."""
        return None

    @property
    def frobenius_bound(self) -> float:
        """A bound on the Frobenius norm of every member; infinite if none is known."""
        return math.inf

    def with_rank(self, rank: int) -> FeasibleSet:
        """Return the members of rank at most `rank`, or a set that contains them."""
        return self if self.rank <= rank else RankAtMost(rank)

    def scaled(self, factor: float) -> FeasibleSet:
        """Return the set of all ``factor * W``, factor > 0, or a set that contains it."""
        return self if factor == 1 else RankAtMost(self.rank)

    @property
    def truncates(self) -> bool:
        """Whether a truncated SVD of a member is a member."""
        return False

    def truncated(self, rank: int) -> FeasibleSet:
        """Return a set that contains the truncated SVD of every member."""
        return self.with_rank(rank) if self.truncates else RankAtMost(rank)

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        r"""Return a set that contains :math:`\sum_k p_k W_k` for all members W_k of `sets`.

        Parameters
        ----------
        sets : sequence of FeasibleSet
            Of one matrix shape; this one is the first.
        weights : sequence of float
            p, nonnegative.
        rank : int
            A bound on the rank of the sum, from elsewhere.
        """
        return RankAtMost(min(rank, sum(s.rank for s in sets)))

    def side_by_side(
        self, sets: Sequence[FeasibleSet], sizes: Sequence[float]
    ) -> FeasibleSet | None:
        r"""Return a set that contains every :math:`\sum_k w_k W_k` of members without overlap.

        Their left singular vectors are orthogonal to each other, their right ones too: singular
        values are those of all terms together. None if no more is known than norms say.
        """
        return None

    @abstractmethod
    def excess(self, op: LowRankOperator) -> float:
        """Return by how much `op` leaves the set, in the unit of the set's norm; 0 inside."""

    @abstractmethod
    def unit(self, op: LowRankOperator) -> float:
        """Return the size to which the excess of `op` is compared."""

    @abstractmethod
    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return a nearest member of the set, in the norm the class names."""

    @abstractmethod
    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        """Return a random member of the given shape: interior, boundary and low-rank ones occur."""

    @abstractmethod
    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return the member W with the smallest inner product ``<gradient, W>``.

        The linear minimisation oracle of Frank-Wolfe steps and of optimality certificates.
        `gradient` is an operator, a dense or sparse tensor, or a scipy sparse matrix.
        """

    @property
    def unweighted(self) -> tuple[FeasibleSet, Tensor | None, Tensor | None]:
        """The set before weights, and those of rows and columns; the set itself if it has none."""
        return self, None, None

    @property
    def of_singular_values(self) -> bool:
        """Whether singular values decide, before any weights."""
        return False

    @property
    def only_rank(self) -> bool:
        """Whether nothing but the rank is bounded."""
        return False

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return an operator and a spectral set that ask the same question about norm and rank.

        None if there are none. Certificates and exact export are written for spectral sets only
        and reach all others through this.
        """
        return None

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether `op` is a member, to the tolerance rule of this module.

        Parameters
        ----------
        op : LowRankOperator
        rtol : float, optional
            Relative tolerance instead of that of `relative_tolerance`.
        """
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        return self.excess(op) <= rtol * self.unit(op)


class SpectralSet(FeasibleSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r,\ \sigma(W) \in K\}`, K a set of vectors.

    A subclass writes `singular_value_excess` and `project_singular_values`, sets `rank`, and
    inherits everything else. K must be symmetric (order does not matter) and contain 0 with every
    ``t x``, 0 <= t <= 1, of its members x; `lmo` also needs it convex and bounded.

    Examples
    --------
    >>> class Capped(SpectralSet):
    ...     rank = 2
    ...
    ...     def singular_value_excess(self, values):
    ...         return (values - 1).amax()
    ...
    ...     def project_singular_values(self, values):
    ...         return values.clamp_max(1.0)
    >>> Capped().contains(LowRankOperator.from_dense(torch.diag(torch.tensor([1.0, 0.5, 0.0]))))
    True
    """

    @abstractmethod
    def singular_value_excess(self, values: Tensor) -> Tensor:
        """Return the excess of a decreasing vector of singular values, a scalar (<= 0 inside)."""

    @abstractmethod
    def project_singular_values(self, values: Tensor) -> Tensor:
        """Return the nearest vector of K in the Euclidean norm, for decreasing `values`."""

    def support_singular_values(self, values: Tensor) -> Tensor:
        r"""Return the x in K that maximises :math:`\langle x, \text{values}\rangle`.

        This default projects longer and longer steps along `values` until the inner product stops
        growing; the sets of this package have closed forms instead.
        """
        peak = values.amax().clamp_min(torch.finfo(values.dtype).tiny)
        best = self.project_singular_values(values / peak)
        for step in range(1, 200):
            x = self.project_singular_values(best + 2.0 ** min(step, 30) * values / peak)
            if float((x - best) @ values) <= 1e-14 * float(best @ values):
                return best
            best = x
        raise OptionError(
            f"lmo needs a bounded set; got {self}: use one with a norm bound, like SchattenBall"
        )

    @property
    def truncates(self) -> bool:
        """Truncation lowers every singular value, and K is star-shaped in each."""
        return True

    @property
    def of_singular_values(self) -> bool:
        """Whether singular values decide, before any weights."""
        return True

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet]:
        """Return the operator and the set themselves."""
        return op, self

    def unit(self, op: LowRankOperator) -> float:
        return float(_values(op).amax())

    def excess(self, op: LowRankOperator) -> float:
        """Return the larger of the excess of the values and the value after position `rank`."""
        values = _values(op)
        tail = float(values[self.rank]) if len(values) > self.rank else 0.0
        return max(0.0, tail, float(self.singular_value_excess(values[: self.rank])))

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the Frobenius norm.

        Truncates to `rank` and projects the singular values: exact for symmetric K.
        """
        U, sigma, V = product_svd(*op.detach())
        k = min(self.rank, len(sigma))
        values = self.nearest_singular_values(sigma[:k])
        return LowRankOperator(U[:, :k], values, V[:, :k]).to(dtype=op.dtype)

    def nearest_singular_values(self, values: Tensor) -> Tensor:
        """Return what `project` makes of values of any size: here, their projection."""
        return self.project_singular_values(values)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        m, n = shape
        k = min(self.rank, m, n)
        normal = torch.randn(k, dtype=torch.float64, generator=generator).abs()
        # One sample in two has full rank; the others have every smaller rank, 0 included.
        normal[int(torch.randint(2 * k, (), generator=generator)) :] = 0.0
        log_size = 2 * torch.randn((), dtype=torch.float64, generator=generator)
        values = self.project_singular_values(
            (normal * log_size.exp() * self.typical_size).sort(descending=True).values
        )
        return LowRankOperator(
            _random_frame(m, k, generator), values, _random_frame(n, k, generator)
        ).to(dtype=torch.get_default_dtype() if dtype is None else dtype)

    @property
    def typical_size(self) -> float:
        """Size of the singular values that `sample` starts from."""
        return 1.0

    @property
    def lmo_rank(self) -> int:
        """Number of leading singular triples of the gradient that `lmo` needs."""
        return self.rank

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        if isinstance(gradient, LowRankOperator):
            U, sigma, V = product_svd(*gradient.detach())
        else:
            U, sigma, V = leading_svd(gradient, self.lmo_rank)
        k = min(self.lmo_rank, len(sigma))
        values = self.support_singular_values(sigma[:k])
        dtype = gradient.dtype if isinstance(gradient, LowRankOperator | Tensor) else torch.float64
        return LowRankOperator(-U[:, :k], values, V[:, :k]).to(dtype=dtype)


@dataclass(frozen=True)
class RankAtMost(SpectralSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r\}`, unbounded.

    Examples
    --------
    >>> RankAtMost(1).contains(LowRankOperator.from_dense(torch.eye(2)))
    False
    """

    rank: int

    def __post_init__(self) -> None:
        check_positive_rank(self.rank)

    @property
    def only_rank(self) -> bool:
        """Whether nothing but the rank is bounded."""
        return True

    def scaled(self, factor: float) -> RankAtMost:
        """Return the set itself: it is a cone."""
        return self

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return values.new_zeros(())

    def project_singular_values(self, values: Tensor) -> Tensor:
        return values


S = TypeVar("S", bound=FeasibleSet)


def alike(first: S, sets: Sequence[FeasibleSet]) -> list[S] | None:
    """Return the sets if all are of the class of the first one, else None."""
    found = [s for s in sets if isinstance(s, type(first))]
    return found if len(found) == len(sets) else None


def _values(op: LowRankOperator) -> Tensor:
    """Return the singular values in the working dtype, unrounded."""
    return product_svd(*op.detach())[1]


def _random_frame(rows: int, cols: int, generator: torch.Generator | None) -> Tensor:
    normal = torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    return orthonormal_columns(normal, cols)
