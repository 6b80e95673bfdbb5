r"""Features of rows or columns, as a Gaussian prior on what they add to the factors.

A link matrix :math:`\beta` with independent normal entries makes the rows of :math:`X \beta`
correlated by :math:`X X^T = Q D Q^T`. In the basis Q they are independent, so that a draw given the
factors costs two thin products, however many features there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix

    Features: TypeAlias = Tensor | NDArray[np.floating] | spmatrix | sparray

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class FeatureLink:
    r"""Features :math:`X = Q \sqrt{D} P^T` of m rows, by their left singular vectors.

    Parameters
    ----------
    basis : array, shape (m, p)
        Q, with orthonormal columns.
    spread : array, shape (p,)
        The positive square roots of D.

    Examples
    --------
    >>> link = FeatureLink.of(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    >>> link.basis.shape
    (3, 1)
    """

    basis: Floats
    spread: Floats

    @classmethod
    def of(cls, features: Features) -> FeatureLink:
        """Decompose features, scaled so that the mean squared norm of a row is one.

        Forms the Gram matrix of the smaller side.

        Parameters
        ----------
        features : Tensor, array or scipy sparse matrix, shape (m, f)
            Finite, not all zero.

        Raises
        ------
        ShapeError
            If features are not a matrix.
        ObservationError
            If they are not finite, or all zero.
        """
        X = _as_array(features)
        wide = X.shape[0] <= X.shape[1]
        gram = _gram(X, wide=wide)
        total = float(np.trace(gram))
        if not (np.isfinite(total) and total > 0):
            raise ObservationError(
                "features must be finite and not all zero; got a sum of squares of "
                f"{total!r}: drop or fill what is missing"
            )
        d, Q = torch.linalg.eigh(torch.from_numpy(gram))
        kept = d > len(d) * torch.finfo(d.dtype).eps * d[-1]
        spread, vectors = d[kept].sqrt().numpy(), Q[:, kept].numpy()
        basis = vectors if wide else np.asarray(X @ vectors) / spread
        scale = (X.shape[0] / total) ** 0.5
        return cls(np.ascontiguousarray(basis), spread * scale)

    def as_dtype(self, dtype: type[np.floating]) -> FeatureLink:
        """Return a copy in another floating dtype."""
        return FeatureLink(self.basis.astype(dtype), self.spread.astype(dtype))

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


def _as_array(features: Features) -> Floats | spmatrix | sparray:
    data = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    if data.ndim != 2:
        raise ShapeError(f"features must be a matrix, a line for each row; got ndim={data.ndim}")
    return data.astype(np.float64)


def _gram(X: Floats | spmatrix | sparray, *, wide: bool) -> Floats:
    product = X @ X.T if wide else X.T @ X
    return product if isinstance(product, np.ndarray) else product.toarray()
