"""The least-squares problem over the observed entries, for solvers that step by themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lowrank_opt.completion.model.bias import AdditiveBias, fit_additive_bias, no_bias
from lowrank_opt.completion.solvers.iterates import Iterate
from lowrank_opt.errors import ObservationError
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import ModelParts, Needed
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from lowrank_opt.observations import Observations


class ObservedFit:
    r"""Half the weighted sum of squared residuals of ``left @ right.T``, at unit scale.

    Values are centred by the biases and divided by their root mean square, weights by their mean:
    inside, neither the unit of the values nor that of the weights matters. Everything is float64.
    Entries of weight zero are left out.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    bias : AdditiveBias
        Subtracted from the values, and kept.

    Raises
    ------
    ObservationError
        If the squares of the values overflow or underflow in their dtype.

    Attributes
    ----------
    values : Tensor, shape (nnz,)
    weights : Tensor, shape (nnz,), or None
    shape : tuple of int

    Examples
    --------
    >>> from lowrank_opt import Observations
    >>> fit = ObservedFit.of(Observations([0, 1], [0, 1], [4.0, -4.0], shape=(2, 2)), bias=None)
    >>> fit.values.tolist(), fit.loss(fit.values)
    ([1.0, -1.0], 1.0)
    """

    def __init__(self, observations: Observations, bias: AdditiveBias) -> None:
        w = observations.weights
        counted = observations if w is None else observations.take(w > 0)
        self.dtype: torch.dtype
        self.bias: AdditiveBias
        self.shape: tuple[int, int]
        self.dtype, self.bias, self.shape = observations.dtype, bias, observations.shape
        exact = counted.to(dtype=torch.float64)
        _check_size(_root_mean_square(exact.values, None), observations.dtype)
        mean_weight = 1.0 if exact.weights is None else float(exact.weights.mean())
        self.weights: Tensor | None = None if exact.weights is None else exact.weights / mean_weight
        centred = exact.values - bias.predict(exact.rows, exact.cols).double()
        self.spread: float = _root_mean_square(centred, self.weights)
        self.values: Tensor = centred / self.spread
        self.unit: float = self.spread * self.spread * mean_weight
        self._entries = exact.with_values(self.values)
        self._backend = backend_of(exact.device)
        self._seen = exact.row_counts > 0, exact.col_counts > 0

    @classmethod
    def of(
        cls,
        observations: Observations,
        *,
        bias: Literal["additive"] | None,
        bias_penalty: float = 1.0,
    ) -> ObservedFit:
        """Fit the biases first, or take none."""
        if bias is None:
            return cls(observations, no_bias(observations))
        return cls(observations, fit_additive_bias(observations, penalty=bias_penalty))

    def predict(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the observed entries of ``left @ right.T``, shape (nnz,)."""
        return self._backend.entries(ModelParts(left, right), self._entries)

    def residuals(self, left: Tensor, right: Tensor) -> Tensor:
        """Return predictions minus values, shape (nnz,)."""
        return self.predict(left, right) - self.values

    def weigh(self, residuals: Tensor) -> Tensor:
        """Multiply by the weights: the entries of the gradient with respect to the matrix."""
        return residuals if self.weights is None else residuals * self.weights

    def loss(self, residuals: Tensor) -> float:
        """Return half the weighted sum of squares."""
        return 0.5 * float(torch.dot(residuals, self.weigh(residuals)))

    def products(self, entries: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``G @ right`` and ``G.T @ left`` for the sparse G with these entries."""
        needed = Needed(left=True, right=True)
        model = ModelParts(left, right)
        gradient = self._backend.entries_gradient(model, self._entries, entries, needed)
        assert gradient.left is not None, "asked for"
        assert gradient.right is not None, "asked for"
        return gradient.left, gradient.right

    def sparse(self, entries: Tensor) -> Tensor:
        """Return a sparse m x n tensor with those of these entries that are not zero.

        On the host, where its singular value decompositions are computed.
        """
        k = entries.nonzero().squeeze(1)
        places = torch.stack((self._entries.rows[k], self._entries.cols[k])).cpu()
        return torch.sparse_coo_tensor(places, entries[k].cpu(), self.shape, check_invariants=True)

    def iterate(
        self,
        left: Tensor,
        scale: Tensor,
        right: Tensor,
        loss: float,
        gradient_norm: float,
        *,
        settled: bool,
    ) -> Iterate:
        """Return the matrix in the unit and dtype of the observations, zero where none is seen."""
        U, V = (
            torch.where(seen.unsqueeze(1), x, 0.0).to(self.dtype)
            for x, seen in zip((left, right), self._seen, strict=True)
        )
        operator = LowRankOperator(U, (scale * self.spread).to(self.dtype), V)
        unit = self.unit / self.spread  # of the gradient with respect to the matrix
        return Iterate(operator, self.bias, loss * self.unit, gradient_norm * unit, settled)


def _root_mean_square(x: Tensor, weights: Tensor | None) -> float:
    """Return the root of the weighted mean square; one where that is zero."""
    peak = float(x.abs().max()) or 1.0
    squares = (x / peak).square()
    mean = squares.mean() if weights is None else (squares * weights).mean()
    return peak * math.sqrt(float(mean)) or 1.0


def _check_size(size: float, dtype: torch.dtype) -> None:
    """Raise ObservationError unless the squares of values of this size are normal numbers."""
    info = torch.finfo(dtype)
    low, high = math.sqrt(info.tiny), math.sqrt(info.max)
    if not low <= size <= high:
        raise ObservationError(
            f"values must be of a size between {low:.0e} and {high:.0e} in {dtype}, or their "
            f"squares overflow or vanish; got a root mean square of {size:.1e}: rescale them"
        )
