"""Operators with one defect each, and who must notice."""

import torch

import lowrank_opt as lo


class ScaledTriple(lo.LowRankOperator):
    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "scale", 1.01 * self.scale)


class AbsoluteScale(lo.LowRankOperator):
    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "scale", self.scale.abs())


class ForgetsScale(lo.LowRankOperator):
    def linear(self, x):
        return (x @ self.right) @ self.left.mT


class WrongAdjoint(lo.LowRankOperator):
    @property
    def mT(self):
        return lo.LowRankOperator(self.right, self.scale.abs(), self.left)


class ShiftedEntries(lo.LowRankOperator):
    def entries(self, rows, cols):
        return super().entries(rows, cols.roll(1))


class UnsortedValues(lo.LowRankOperator):
    def singular_values(self):
        return super().singular_values().flip(-1)


class ColumnNormsAsValues(lo.LowRankOperator):
    """Right for orthonormal factors only."""

    def singular_values(self):
        sizes = self.left.norm(dim=-2) * self.scale.abs() * self.right.norm(dim=-2)
        return sizes.sort(descending=True).values[: min(*self.shape, self.rank)]


class TruncatesColumns(lo.LowRankOperator):
    """Keeps the first columns, which are the leading ones only after an SVD."""

    def truncate(self, k):
        return lo.LowRankOperator(self.left[:, :k], self.scale[:k], self.right[:, :k])


class WrongDifference(lo.LowRankOperator):
    def __sub__(self, other):
        return self + other


class DetachedProduct(lo.LowRankOperator):
    def __matmul__(self, x):
        return lo.LowRankOperator(self.left, self.scale.detach(), self.right) @ x


class DenseProduct(lo.LowRankOperator):
    def linear(self, x):
        return x @ self.to_dense().mT


class SortsInPlace(lo.LowRankOperator):
    def thin_svd(self):
        with torch.no_grad():
            self.scale.copy_(self.scale.abs().sort(descending=True).values)
        return super().thin_svd()


class HalfPrecisionInside(lo.LowRankOperator):
    def linear(self, x):
        return super().linear(x.float()).to(x) if x.dtype == torch.float64 else super().linear(x)


# (factory, law that must notice)
BROKEN_OPERATORS = [
    (ScaledTriple, "triple"),
    (AbsoluteScale, "triple"),
    (ForgetsScale, "agreement"),
    (WrongAdjoint, "agreement"),
    (ShiftedEntries, "agreement"),
    (HalfPrecisionInside, "agreement"),
    (UnsortedValues, "singular_values"),
    (ColumnNormsAsValues, "singular_values"),
    (TruncatesColumns, "truncation"),
    (WrongDifference, "algebra"),
    (DetachedProduct, "gradients"),
    (DenseProduct, "never_dense"),
    (SortsInPlace, "purity"),
]
