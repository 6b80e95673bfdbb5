r"""Features of rows or columns, as a Gaussian prior on what they add to the factors.

A link matrix :math:`\beta` with independent normal entries makes the rows of :math:`X \beta`
correlated by :math:`X X^T = Q D Q^T`. In the basis Q they are independent, so that a draw given the
factors costs two thin products, however many features there are. Q is complete where the smaller
side of X is short; else it is a basis of a leading subspace, and the share of the features'
variance that it keeps is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError
from lowrank_opt.tables.features import as_features

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix

    from lowrank_opt.sparse import SparseMatrix

    Features: TypeAlias = Tensor | NDArray[np.floating] | SparseMatrix

Floats = NDArray[np.floating]

# Up to this size the Gram matrix of the smaller side is decomposed, in seconds at most.
_COMPLETE_UP_TO = 2048
_LEADING = 1024
_POWER_STEPS = 2


@dataclass(frozen=True, eq=False)
class FeatureLink:
    r"""Features :math:`X = Q \sqrt{D} P^T` of m rows, by their left singular vectors.

    Parameters
    ----------
    basis : array, shape (m, p)
        Q, with orthonormal columns.
    spread : array, shape (p,)
        The positive square roots of D.
    explained : float
        Share of the sum of squares of the features that the basis keeps; one if it is complete.

    Examples
    --------
    >>> link = FeatureLink.of(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    >>> link.basis.shape
    (3, 1)
    """

    basis: Floats
    spread: Floats
    explained: float = 1.0

    @classmethod
    def of(cls, features: Features) -> FeatureLink:
        """Decompose features, scaled so that the mean squared norm of a row is one.

        Forms the Gram matrix of the smaller side if that has at most 2048 lines. Longer ones are
        projected onto a leading subspace of dimension 1024, found by two steps of subspace
        iteration: the link is then exact for the projected features.

        Parameters
        ----------
        features : Tensor, array, frame or sparse matrix, shape (m, f)
            Finite, not all zero; see `lowrank_opt.tables.features.as_features` for frames.

        Raises
        ------
        ShapeError
            If features are not a matrix.
        ObservationError
            If they are not finite, or all zero.

        References
        ----------
        Halko, Martinsson and Tropp (2011), Finding structure with randomness, algorithm 4.4.
        """
        X = as_features(features)
        total = _sum_of_squares(X)
        if not (np.isfinite(total) and total > 0):
            raise ObservationError(
                "features must be finite and not all zero; got a sum of squares of "
                f"{total!r}: drop or fill what is missing"
            )
        complete = min(X.shape) <= _COMPLETE_UP_TO
        basis, spread = _complete_basis(X) if complete else _leading_basis(X)
        explained = 1.0 if complete else float(np.sum(spread**2)) / total
        scale = (X.shape[0] / total) ** 0.5
        return cls(np.ascontiguousarray(basis), spread * scale, explained)

    def as_dtype(self, dtype: type[np.floating]) -> FeatureLink:
        """Return a copy in another floating dtype."""
        return FeatureLink(self.basis.astype(dtype), self.spread.astype(dtype), self.explained)

    def draw(
        self, residual: Floats, strength: float, root: Floats, rng: np.random.Generator
    ) -> Floats:
        r"""Draw the coefficients c of :math:`Q \sqrt{D} c`, given `residual` it explains.

        A priori :math:`c_j \sim N(0, (\tau \Lambda)^{-1})`, and each row of the residual has noise
        of precision :math:`\Lambda`; hence :math:`c_j` has precision :math:`(\tau + D_j) \Lambda`.

        Parameters
        ----------
        residual : array, shape (m, K)
        strength : float
            :math:`\tau > 0`.
        root : array, shape (K, K)
            With ``root root^T`` the inverse of :math:`\Lambda`.
        rng : numpy.random.Generator

        Returns
        -------
        array, shape (p, K)

        References
        ----------
        The link matrix of Simm et al. (2017), Macau, equation 5, here without forming it.
        """
        precision = (strength + self.spread**2)[:, None]
        projected = self.basis.T @ residual
        noise = rng.standard_normal(projected.shape, residual.dtype) @ root.T
        drawn = self.spread[:, None] * projected / precision + noise / np.sqrt(precision)
        return drawn.astype(residual.dtype)

    def apply(self, coefficients: Floats) -> Floats:
        """Return the rows ``Q sqrt(D) c``, shape (m, K)."""
        return self.basis @ (self.spread[:, None] * coefficients)


def _sum_of_squares(X: Floats | spmatrix | sparray) -> float:
    values = X if isinstance(X, np.ndarray) else X.tocsr().data
    return float(np.sum(np.square(values)))


def _complete_basis(X: Floats | spmatrix | sparray) -> tuple[Floats, Floats]:
    """Return the left singular vectors of X, and its positive singular values."""
    wide = X.shape[0] <= X.shape[1]
    d, Q = torch.linalg.eigh(torch.from_numpy(_gram(X, wide=wide)))
    kept = d > len(d) * torch.finfo(d.dtype).eps * d[-1]
    spread, vectors = d[kept].sqrt().numpy(), Q[:, kept].numpy()
    return (vectors if wide else np.asarray(X @ vectors) / spread), spread


def _leading_basis(X: Floats | spmatrix | sparray) -> tuple[Floats, Floats]:
    """Return an orthonormal basis Q of a leading subspace that diagonalises ``Q^T X X^T Q``."""
    # A fixed seed: equal features give equal links, whatever else is drawn.
    sketch = np.random.default_rng(0).standard_normal((X.shape[1], _LEADING), np.float32)
    X = X.astype(np.float32)
    Q = _orthonormal(X @ sketch)
    for _ in range(_POWER_STEPS):
        Q = _orthonormal(X @ (X.T @ Q))
    projected = torch.from_numpy(np.asarray(X.T @ Q)).double()
    d, V = torch.linalg.eigh(projected.mT @ projected)
    kept = d > len(d) * torch.finfo(torch.float32).eps * d[-1]
    return Q @ V[:, kept].numpy(), d[kept].sqrt().numpy()


def _orthonormal(x: Floats) -> Floats:
    return torch.linalg.qr(torch.from_numpy(np.asarray(x)))[0].numpy()


def _gram(X: Floats | spmatrix | sparray, *, wide: bool) -> Floats:
    product = X @ X.T if wide else X.T @ X
    return product if isinstance(product, np.ndarray) else product.toarray()
