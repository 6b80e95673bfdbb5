"""Inductive: any inner parameterization between features of the rows and of the columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.linalg import nearest_frame
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.between import Between
from lowrank_opt.parameterizations.composed.features import Features, as_matrix
from lowrank_opt.parameterizations.wide import WideBuffers
from lowrank_opt.sets import FeasibleSet, ImageSet, NestedSet
from lowrank_opt.sets.image import image_of
from lowrank_opt.sets.sides import Side, feature_svd, features

if TYPE_CHECKING:
    from lowrank_opt.parameterizations.composed.features import FeatureMatrix


class Inductive(WideBuffers, Between):
    r""":math:`W = A\, C\, B^T` with features A (m x f) of rows and B (n x g) of columns.

    C is any inner parameterization of shape (f, g). A row never observed is predicted from its
    features, and a new one through `with_features`. W is never formed: the factors are
    :math:`(A L, s, B R)`, two products with matrices that may be sparse.

    Set: ``{A C B^T : C in the inner set}`` exactly, an `ImageSet`; complete if the inner map is.
    Bounds on C carry over as :math:`\sigma_i(W) \le \|A\|_2 \|B\|_2\, \sigma_i(C)` (Horn and
    Johnson, theorem 3.3.16), and so does the rank. With ``orthonormal=True`` the features are
    replaced by orthonormal bases of their column spaces: then :math:`\sigma_i(W) = \sigma_i(C)`,
    every norm bound on C is one on W, and the set is a `NestedSet` where both sides have features.
    In floating point this holds to a few units of rounding, times the condition numbers of A and B:
    right inverses and projections lose as many digits, and certificates say so.

    Parameters
    ----------
    inner : Parameterization
        Of shape (f, g); m and n stand for f and g where there are no features.
    row_features : Tensor, array, or sparse matrix of torch or scipy, shape (m, f), optional
        Finite and constant. None is the identity: each row has parameters of its own. For both,
        put an identity and the features side by side.
    col_features : Tensor, array, or sparse matrix of torch or scipy, shape (n, g), optional
    orthonormal : bool
        Needs independent columns; makes sparse features dense.

    Raises
    ------
    ShapeError
        If features are not matrices of floats that fit the inner shape.
    TargetError
        If features are not finite, or, with `orthonormal`, their columns dependent.

    References
    ----------
    Jain and Dhillon (2013), Provable inductive matrix completion; an identity beside the
    features is the model of Chen et al. (2012), SVDFeature.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import HomogeneousBall
    >>> ages = torch.tensor([[1.0, 0.2], [1.0, 0.3], [1.0, 0.7]])
    >>> by_age = Inductive(HomogeneousBall((2, 5), 1, radius=3.0), row_features=ages)
    >>> by_age.shape, by_age.with_features(torch.tensor([[1.0, 0.5]]), None)().shape
    ((3, 5), (1, 5))
    """

    wide: ClassVar[tuple[str, ...]] = ("row_map", "col_map")

    def __init__(
        self,
        inner: Parameterization,
        row_features: FeatureMatrix | None = None,
        col_features: FeatureMatrix | None = None,
        *,
        orthonormal: bool = False,
    ) -> None:
        like = next(inner.parameters())
        left, right = (
            None if x is None else as_matrix(x, like) for x in (row_features, col_features)
        )
        for name, x, size in (("row", left, inner.shape[0]), ("col", right, inner.shape[1])):
            if x is not None and x.shape[1] != size:
                raise ShapeError(
                    f"{name}_features must have a column for each {name} of the inner shape "
                    f"{inner.shape}; got {tuple(x.shape)}"
                )
        sides = zip((left, right), inner.shape, strict=True)
        m, n = (size if x is None else len(x) for x, size in sides)
        super().__init__(inner, (m, n))
        self.orthonormal = orthonormal
        left, row_map = _orthonormalised(left) if orthonormal else (left, None)
        right, col_map = _orthonormalised(right) if orthonormal else (right, None)
        self.rows: Features | None = (
            None if left is None else Features(left, orthonormal=orthonormal)
        )
        self.cols: Features | None = (
            None if right is None else Features(right, orthonormal=orthonormal)
        )
        self.register_buffer("row_map", row_map)
        self.register_buffer("col_map", col_map)
        self.row_map: Tensor | None
        self.col_map: Tensor | None

    @property
    def row_features(self) -> Tensor | None:
        """A, or its orthonormal basis; None for the identity."""
        return None if self.rows is None else self.rows.matrix

    @property
    def col_features(self) -> Tensor | None:
        """B, or its orthonormal basis; None for the identity."""
        return None if self.cols is None else self.cols.matrix

    @property
    def sides(self) -> tuple[Side, Side]:
        return features(self.row_features), features(self.col_features)

    @property
    def image(self) -> NestedSet | ImageSet:
        inner, A, B = self.inner.feasible_set, self.row_features, self.col_features
        if self.orthonormal and A is not None and B is not None:
            return NestedSet(inner, A, B)
        return ImageSet(inner, A, B)

    @property
    def feasible_set(self) -> FeasibleSet:
        image = self.image
        return (
            image_of(image.inner, image.left, image.right) if isinstance(image, ImageSet) else image
        )

    def with_features(
        self, row_features: FeatureMatrix | None, col_features: FeatureMatrix | None
    ) -> Inductive:
        """Return the same C, with shared parameters, between other features: W for new rows.

        Parameters
        ----------
        row_features : Tensor, array or sparse matrix, shape (k, f), or None
            Of the rows wanted, in the columns of the features given at the start; None for the
            present rows.
        col_features : Tensor, array or sparse matrix, shape (l, g), or None

        Returns
        -------
        Inductive
            Of shape (k, l).

        Raises
        ------
        ShapeError, TargetError
            As for the class.
        """
        A = self._mapped(row_features, self.row_features, self.row_map)
        B = self._mapped(col_features, self.col_features, self.col_map)
        return Inductive(self.inner, A, B)

    def _mapped(
        self, features: FeatureMatrix | None, present: Tensor | None, change: Tensor | None
    ) -> FeatureMatrix | None:
        if features is None or change is None:
            return present if features is None else features
        return as_matrix(features, change) @ change


def _orthonormalised(features: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return an orthonormal basis of the column space, and what takes features to it."""
    if features is None:
        return None, None
    basis, values, weights = feature_svd(features)
    if len(values) < features.shape[1]:
        raise TargetError(
            f"orthonormal=True needs independent columns; got {features.shape[1]} columns of rank "
            f"{len(values)}: drop columns, or use orthonormal=False"
        )
    # Weights once more: then orthonormal features stay what they are.
    frame, change = nearest_frame(basis @ weights.mT), (weights / values) @ weights.mT
    return frame.to(features.dtype), change.to(features.dtype)
