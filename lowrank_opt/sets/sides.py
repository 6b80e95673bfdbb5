r"""The fixed maps beside C in :math:`W = A\, C\, B^T`: weights, frames, features.

A side says how rows of C become rows of W and back, and what that does to norms, spaces and
rounding. Sets and parameterizations of this form are written once, for any two sides; another kind
of side is another class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Matrix = Tensor | sp.spmatrix | sp.sparray | NDArray[np.float64]


class Side(ABC):
    """One fixed linear map A, of m rows and k columns.

    A subclass writes `times`, `adjoint`, `pull` and `matrix`, and says what is not as here.

    Attributes
    ----------
    isometric : bool
        Singular values of W are those of the C that is pulled back from it.
    onto : bool
        Every matrix of m rows is ``A C`` for some C.
    words : str
        What becomes of the name of a norm.
    """

    isometric: ClassVar[bool] = True
    onto: ClassVar[bool] = False
    words: ClassVar[str] = "{}"

    @property
    def rows(self) -> int | None:
        """m; None if any number will do."""
        return self.matrix.shape[0]

    @property
    def cols(self) -> int | None:
        """k; None if it is that of the rows."""
        return self.matrix.shape[1]

    @property
    def rank(self) -> int | None:
        """Largest rank of ``A C``; None if A bounds none."""
        return self.rows

    @property
    def norm(self) -> float:
        """The spectral norm of A, or a bound on it; positive."""
        return 1.0

    @property
    def condition(self) -> float:
        """By how much `pull` enlarges the relative rounding of W at most."""
        return 1.0

    @property
    def independent(self) -> bool:
        """Whether A has independent columns, so that W tells C."""
        return True

    @property
    @abstractmethod
    def matrix(self) -> Tensor:
        """A, dense or sparse COO."""

    @abstractmethod
    def times(self, x: Tensor) -> Tensor:
        """Return ``A x`` for x of shape (k, r), differentiable, in the dtype of x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^T y`` for y of shape (m, r)."""

    @abstractmethod
    def pull(self, y: Tensor) -> Tensor:
        """Return the least x with ``A x`` nearest to y, for y of shape (m, r) in float64."""

    def met(self, seen: Tensor) -> Tensor:
        """Return which rows of C a mask of rows of W depends on; here, on all of them.

        Parameters
        ----------
        seen : Tensor of bool, shape (m,)

        Returns
        -------
        Tensor of bool, shape (k,)
        """
        return seen.new_ones(self.matrix.shape[1])

    def after(self, outer: Tensor | None) -> Tensor | None:
        """Return the matrix ``outer A``; None stands for an identity, there and here."""
        return _product(outer, self.matrix)

    def reduced(self, gradient: Matrix) -> Matrix:
        """Return ``A^T gradient`` in float64, in the kind of the gradient where it is sparse."""
        if not isinstance(gradient, Tensor):
            return as_array(self.matrix).T @ gradient
        if gradient.is_sparse:
            return (gradient.double().t() @ self.matrix.detach().double()).t()
        return self.adjoint(gradient.double())

    def same(self, other: Side) -> bool:
        """Return whether both are the same map, entry by entry."""
        return type(self) is type(other) and _equal(self.matrix, other.matrix)


class Identity(Side):
    """No map: W has the rows of C."""

    onto = True

    @property
    def rows(self) -> None:
        return None

    @property
    def cols(self) -> None:
        return None

    @property
    def matrix(self) -> Tensor:
        raise AssertionError("an identity of any size has no matrix")

    def times(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pull(self, y: Tensor) -> Tensor:
        return y

    def met(self, seen: Tensor) -> Tensor:
        return seen

    def after(self, outer: Tensor | None) -> Tensor | None:
        return outer

    def reduced(self, gradient: Matrix) -> Matrix:
        return gradient

    def same(self, other: Side) -> bool:
        return isinstance(other, Identity)


@dataclass(frozen=True, eq=False)
class Diagonal(Side):
    """Positive weights of rows.

    Relative rounding of an entry stays what it is: the condition counts as one.

    Examples
    --------
    >>> Diagonal(torch.tensor([2.0, 4.0])).pull(torch.ones(2, 1).double())
    tensor([[0.5000],
            [0.2500]], dtype=torch.float64)
    """

    weights: Tensor
    isometric = False
    onto = True
    words = "weighted {}"

    @property
    def rows(self) -> int:
        return len(self.weights)

    @property
    def cols(self) -> int:
        return len(self.weights)

    @property
    def norm(self) -> float:
        return float(self.weights.max())

    @property
    def matrix(self) -> Tensor:
        index = torch.arange(len(self.weights), device=self.weights.device).expand(2, -1)
        size = (len(self.weights), len(self.weights))
        return torch.sparse_coo_tensor(index, self.weights, size, check_invariants=False)

    def times(self, x: Tensor) -> Tensor:
        dtype = _between(self.weights, x)
        return (x.to(dtype) * self.weights.to(dtype).unsqueeze(-1)).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.times(y)

    def pull(self, y: Tensor) -> Tensor:
        return y / self.weights.to(y).unsqueeze(-1)

    def met(self, seen: Tensor) -> Tensor:
        return seen

    def after(self, outer: Tensor | None) -> Tensor | None:
        """Return the features with weighted columns; sparse if they are, or if there are none."""
        if outer is None:
            return self.matrix.double()
        return outer.detach().double() * self.weights.detach().double()

    def reduced(self, gradient: Matrix) -> Matrix:
        if not isinstance(gradient, Tensor):
            return super().reduced(gradient)
        weighted = self.after(gradient.t())
        assert weighted is not None, "a gradient is no identity"
        return weighted.t()


@dataclass(frozen=True, eq=False)
class Frame(Side):
    """Orthonormal columns: singular values of W are those of C.

    Examples
    --------
    >>> Frame(torch.eye(3, 2)).pull(torch.ones(3, 1).double()).shape
    torch.Size([2, 1])
    """

    columns: Tensor

    @property
    def matrix(self) -> Tensor:
        return self.columns

    def times(self, x: Tensor) -> Tensor:
        dtype = _between(self.columns, x)
        return (self.columns.to(dtype) @ x.to(dtype)).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        dtype = _between(self.columns, y)
        return (self.columns.mT.to(dtype) @ y.to(dtype)).to(y.dtype)

    def pull(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


@dataclass(frozen=True, eq=False)
class Features(Side):
    """Any matrix, dense or sparse, whose columns may be dependent.

    Examples
    --------
    >>> Features(torch.ones(3, 2)).independent
    False
    """

    values: Tensor
    isometric = False
    words = "{} between features"

    @property
    def matrix(self) -> Tensor:
        return self.values

    @cached_property
    def svd(self) -> FeatureSVD:
        """The thin SVD of A, computed on first use; a sparse matrix is made dense for it."""
        return feature_svd(self.values)

    @property
    def norm(self) -> float:
        return float(self.svd.values[0]) if len(self.svd.values) else 1.0

    @property
    def condition(self) -> float:
        return self.svd.condition

    @property
    def independent(self) -> bool:
        f = self.values.shape[1]
        return f <= len(self.values) and len(self.svd.values) == f

    def times(self, x: Tensor) -> Tensor:
        dtype = _between(self.values, x)
        return (self.values.to(dtype) @ x.to(dtype)).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        dtype = _between(self.values, y)
        return (self.values.to(dtype).t() @ y.to(dtype)).to(y.dtype)

    def pull(self, y: Tensor) -> Tensor:
        U, sigma, V = self.svd
        return V @ ((U.mT @ y) / sigma.unsqueeze(1))

    def met(self, seen: Tensor) -> Tensor:
        """Return which columns have a value other than zero in a row of the mask."""
        A = self.values
        if not A.is_sparse:
            return (A[seen] != 0).any(dim=0)
        A, met = A.coalesce(), seen.new_zeros(A.shape[1])
        rows, cols = A.indices()
        met[cols[seen[rows] & (A.values() != 0)]] = True
        return met


class FeatureSVD(NamedTuple):
    """The thin SVD ``basis diag(values) weights^T`` of features, cut to their rank; float64.

    Parameters
    ----------
    basis : Tensor, shape (m, k)
    values : Tensor, shape (k,)
        Positive, decreasing.
    weights : Tensor, shape (f, k)
    """

    basis: Tensor
    values: Tensor
    weights: Tensor

    @property
    def condition(self) -> float:
        """Largest over smallest singular value."""
        return float(self.values[0] / self.values[-1]) if len(self.values) else 1.0


def feature_svd(features: Tensor) -> FeatureSVD:
    """Return the thin SVD of features, dense or sparse; a sparse m x f matrix is made dense.

    Singular values below ``eps max(m, f)`` times the largest count as zero.

    Examples
    --------
    >>> feature_svd(torch.tensor([[2.0, 2.0], [0.0, 0.0]])).weights.shape
    torch.Size([2, 1])
    """
    A = features.detach().double().to_dense()
    U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
    k = int((sigma > max(A.shape) * torch.finfo(A.dtype).eps * sigma[:1]).sum())
    return FeatureSVD(U[:, :k], sigma[:k], Vh[:k].mT)


def diagonal(weights: Tensor | None) -> Side:
    """Return the side of weights; None stands for ones."""
    return Identity() if weights is None else Diagonal(weights)


def features(matrix: Tensor | None) -> Side:
    """Return the side of features; None stands for the identity."""
    return Identity() if matrix is None else Features(matrix)


def as_array(matrix: Tensor) -> sp.csr_array | NDArray[np.float64]:
    """Return a matrix as a float64 array of NumPy, or of scipy if it is sparse."""
    A = matrix.detach().double().cpu()
    if not A.is_sparse:
        return A.numpy()
    from scipy.sparse import coo_array

    A = A.coalesce()
    i, j = A.indices().numpy()
    return coo_array((A.values().numpy(), (i, j)), shape=tuple(A.shape)).tocsr()


def _between(a: Tensor, x: Tensor) -> torch.dtype:
    """Return the dtype to multiply in: at least float32, as what is kept is not rounded further."""
    return torch.promote_types(torch.promote_types(a.dtype, torch.float32), x.dtype)


def _product(outer: Tensor | None, inner: Tensor) -> Tensor:
    """Return a product of features; dense if there are two."""
    if outer is None:
        return inner
    return outer.detach().double() @ inner.detach().double().to_dense()


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.is_sparse != b.is_sparse or a.shape != b.shape:
        return False
    if a.is_sparse:
        a, b = a.coalesce(), b.coalesce()
        return torch.equal(a.indices(), b.indices()) and torch.equal(a.values(), b.values())
    return torch.equal(a, b)
