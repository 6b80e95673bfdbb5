"""What a backend offers, and what its operations take; the same to rounding on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_opt.observations import CompressedAxis, Observations

# Rounds of coordinate descent in a nonnegative row, and the relative move at which they end.
MOST_ROUNDS, SETTLED = 500, 1e-13


class ModelParts(NamedTuple):
    """What predicts an entry; either both biases or neither.

    Parameters
    ----------
    left : Tensor, shape (m, r)
    right : Tensor, shape (n, r)
    row_bias : Tensor, shape (m,), or None
    col_bias : Tensor, shape (n,), or None
    """

    left: Tensor
    right: Tensor
    row_bias: Tensor | None = None
    col_bias: Tensor | None = None


class Gradient(NamedTuple):
    """The gradient with respect to the parts of a `ModelParts`; None where it is not wanted."""

    left: Tensor | None = None
    right: Tensor | None = None
    row_bias: Tensor | None = None
    col_bias: Tensor | None = None


class Needed(NamedTuple):
    """Which parts of the gradient are wanted."""

    left: bool = False
    right: bool = False
    row_bias: bool = False
    col_bias: bool = False


class RowEntries(NamedTuple):
    """The entries of a set of rows, in the order of their axis.

    Parameters
    ----------
    axis : CompressedAxis
    values : Tensor, shape (nnz,)
    weights : Tensor, shape (nnz,), or None
    """

    axis: CompressedAxis
    values: Tensor
    weights: Tensor | None


class Given(NamedTuple):
    """What the Gaussian posterior of every row is computed from; see `GaussianRows`.

    Parameters
    ----------
    axis : CompressedAxis
    values, weights : Tensor, shape (nnz,)
    means, products : Tensor
        The moments of the other side.
    scales : Tensor, shape (m,), float64
    precision : Tensor, shape (K + 1, K + 1), float64
    pull : Tensor, shape (m, K + 1), float64
    smallest : float
        Share of its diagonal that a pivot of the Cholesky factorization is raised to.
    """

    axis: CompressedAxis
    values: Tensor
    weights: Tensor
    means: Tensor
    products: Tensor
    scales: Tensor
    precision: Tensor
    pull: Tensor
    smallest: float


class Ranked(NamedTuple):
    """Rows for which columns are ranked by the scores ``rows @ cols.T + offsets``.

    Parameters
    ----------
    rows : Tensor, shape (u, r)
    cols : Tensor, shape (n, r)
    offsets : Tensor, shape (n,)
    allowed : Tensor, shape (n,), bool
        The columns that may be ranked.
    seen : pair of Tensor, int64
        Lines of `rows`, and columns, of distinct pairs that are left out.
    """

    rows: Tensor
    cols: Tensor
    offsets: Tensor
    allowed: Tensor
    seen: tuple[Tensor, Tensor]


class Steps(Protocol):
    """Stochastic gradient steps over the entries, in an order of their own."""

    def epoch(
        self,
        factors: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        *,
        rate: float,
        penalty: float,
    ) -> float:
        """Take one step for each entry; return the weighted squared residuals met on the way."""
        ...


class ObservedBackend(Protocol):
    """Predictions and loss. `weights` of None are those of the observations, or one."""

    @property
    def reads_half(self) -> bool:
        """Whether the right factor may be of half precision; others come in float32 at least."""
        ...

    def squared_loss(
        self, model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
    ) -> tuple[Tensor, Gradient]:
        """Return the float64 sum of weighted squared residuals, and its gradient."""
        ...

    def entries(self, model: ModelParts, observations: Observations) -> Tensor:
        """Return the predictions, in the order of the observations."""
        ...

    def entries_gradient(
        self, model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
    ) -> Gradient:
        """Return the gradient of ``(gradient * entries).sum()``."""
        ...


class Backend(ObservedBackend, Protocol):
    """All operations, on the entries of one process."""

    def solve_rows(
        self,
        entries: RowEntries,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        scale: float,
        precision: Tensor,
        strengths: Tensor,
        pull: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """Do what `RowProblems.solve` does; return the loss of each row, float64."""
        ...

    def improve_rows(
        self,
        entries: RowEntries,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        steps: int,
    ) -> Tensor:
        """Do what `RowProblems.improve` does; return the loss of each row, float64."""
        ...

    def nonnegative_rows(
        self,
        entries: RowEntries,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        free: int,
    ) -> Tensor:
        """Do what `RowProblems.solve_nonnegative` does; return the loss of each row, float64."""
        ...

    def posterior(
        self, given: Given, means: Tensor, products: Tensor, losses: Tensor, logdets: Tensor
    ) -> None:
        """Write the posterior of each row, its expected loss and its log determinant."""
        ...

    def draw(self, given: Given, noise: Tensor, means: Tensor, losses: Tensor) -> None:
        """Write a draw from the posterior of each row, and its loss."""
        ...

    def pack(self, means: Tensor, products: Tensor) -> None:
        """Write the packed ``z z^T`` of each row z of means."""
        ...

    def steps(self, observations: Observations, rank: int) -> Steps:
        """Return the stochastic gradient steps over the entries."""
        ...

    def best_columns(self, given: Ranked, k: int) -> tuple[Tensor, Tensor]:
        """Return the k largest scores of each row, descending, and their columns.

        Fewer if there are fewer columns; minus infinity where no further one may be ranked.
        """
        ...
