"""Operators that are right in the plain products and wrong in another view of the same matrix."""

import torch
from scipy.sparse.linalg import LinearOperator

import lowrank_opt as lo


class OnceOnly(lo.LowRankOperator):
    """An entry that is asked for twice is right once."""

    def entries(self, rows, cols):
        values, seen = super().entries(rows, cols), set()
        pairs = zip(rows.tolist(), cols.tolist(), strict=True)
        first = [not (pair in seen or seen.add(pair)) for pair in pairs]
        return values * torch.tensor(first, dtype=values.dtype)


class SortedEntries(lo.LowRankOperator):
    """Entries in the order of rows and columns, whatever order was asked for."""

    def entries(self, rows, cols):
        order = (rows * self.shape[1] + cols).argsort()
        return super().entries(rows[order], cols[order])


class FirstOfBatch(lo.LowRankOperator):
    def linear(self, x):
        return super().linear(x if x.ndim < 3 else x[:1].expand_as(x))


class FlatBatch(lo.LowRankOperator):
    """A batch of inputs comes back flat."""

    def linear(self, x):
        return super().linear(x).flatten(0, -2) if x.ndim > 2 else super().linear(x)


class OneTripleForAll(lo.LowRankOperator):
    """Of a batch of triples, the first scale counts for all."""

    def linear(self, x):
        if self.scale.ndim == 1:
            return super().linear(x)
        scale = self.scale[:1].unsqueeze(-2)
        return ((x @ self.right) * scale) @ self.left.mT


class ScipyAdjoint(lo.LowRankOperator):
    def to_scipy(self):
        A = super().to_scipy()
        return LinearOperator(
            A.shape, matvec=A.matvec, rmatvec=lambda y: 2 * A.rmatvec(y), dtype=A.dtype
        )


class ScipyBlocks(lo.LowRankOperator):
    """Blocks of vectors are multiplied in the wrong sign."""

    def to_scipy(self):
        A = super().to_scipy()
        return LinearOperator(
            A.shape,
            matvec=A.matvec,
            rmatvec=A.rmatvec,
            matmat=lambda x: -A.matmat(x),
            rmatmat=A.rmatmat,
            dtype=A.dtype,
        )


class OtherNorms(lo.LowRankOperator):
    """Right at p = 1, 2 and infinity."""

    def schatten_norm(self, p=2.0):
        return super().schatten_norm(p if p in (1.0, 2.0, float("inf")) else 2.0)


class KyFanOfTwo(lo.LowRankOperator):
    def ky_fan_norm(self, k):
        return super().ky_fan_norm(min(k, 2))


class FirstSlopeOnly(lo.LowRankOperator):
    """The gradient of norms is that of the first singular value."""

    def singular_values(self):
        s = super().singular_values()
        return torch.cat((s[..., :1], s[..., 1:].detach()), -1)


class ScaleDetachedInNorms(lo.LowRankOperator):
    def singular_values(self):
        return lo.LowRankOperator(self.left, self.scale.detach(), self.right).singular_values()


class InputDetached(lo.LowRankOperator):
    def linear(self, x):
        return super().linear(x.detach())


class DuplicatesDetached(lo.LowRankOperator):
    """Gradients of entries stop after as many as the matrix has."""

    def entries(self, rows, cols):
        values, count = super().entries(rows, cols), self.shape[0] * self.shape[1]
        return torch.cat((values[:count], values[count:].detach()))


class SharesClones(lo.LowRankOperator):
    def clone(self):
        return self


class AbsoluteFactors(lo.LowRankOperator):
    """Negative scalars lose their sign."""

    def __mul__(self, factor):
        return super().__mul__(abs(factor))

    __rmul__ = __mul__


class DenseInFloat32(lo.LowRankOperator):
    """The dense matrix forgets the scale, in float32 only."""

    def to_dense(self):
        return self.left @ self.right.mT if self.dtype == torch.float32 else super().to_dense()


class ConvertsThroughHalf(lo.LowRankOperator):
    def to(self, *, dtype=None, device=None):
        half = self.left.to(torch.bfloat16), self.scale, self.right
        parts = half if dtype == torch.float32 else self
        return lo.LowRankOperator(*(x.to(dtype=dtype, device=device) for x in parts))


class LongProducts(lo.LowRankOperator):
    """Of many columns the last ones do not count."""

    def linear(self, x):
        return super().linear(x if x.shape[-1] < 20 else x * (torch.arange(x.shape[-1]) < 20))


class KeepsGradients(lo.LowRankOperator):
    def detach(self):
        return self


class NegativeInHalf(lo.LowRankOperator):
    def linear(self, x):
        return -super().linear(x) if x.dtype == torch.bfloat16 else super().linear(x)


class ScipyOfFloat32(lo.LowRankOperator):
    """The numbers are right, what is said of them is not."""

    def to_scipy(self):
        A = super().to_scipy()
        return LinearOperator(A.shape, matvec=A.matvec, rmatvec=A.rmatvec, dtype="float32")


class FromDenseReversed(lo.LowRankOperator):
    """Columns of a truncated SVD meet the wrong partners."""

    @classmethod
    def from_dense(cls, matrix, rank=None):
        left, scale, right = lo.LowRankOperator.from_dense(matrix, rank)
        return cls(left if rank is None else left.flip(1), scale, right)


class NormsOverflow(lo.LowRankOperator):
    def schatten_norm(self, p=2.0):
        values = self.singular_values()
        return values.pow(p).sum().pow(1 / p) if p < float("inf") else values.amax()


# (factory, law that must notice)
BROKEN_OPERATOR_VIEWS = [
    (OnceOnly, "agreement"),
    (SortedEntries, "agreement"),
    (FirstOfBatch, "agreement"),
    (FlatBatch, "agreement"),
    (OneTripleForAll, "batches"),
    (ScipyAdjoint, "agreement"),
    (ScipyBlocks, "agreement"),
    (OtherNorms, "singular_values"),
    (KyFanOfTwo, "singular_values"),
    (FirstSlopeOnly, "gradients"),
    (ScaleDetachedInNorms, "gradients"),
    (InputDetached, "gradients"),
    (DuplicatesDetached, "gradients"),
    (SharesClones, "algebra"),
    (AbsoluteFactors, "algebra"),
    (DenseInFloat32, "elsewhere"),
    (ConvertsThroughHalf, "algebra"),
    (LongProducts, "elsewhere"),
    (KeepsGradients, "algebra"),
    (NegativeInHalf, "elsewhere"),
    (ScipyOfFloat32, "agreement"),
    (FromDenseReversed, "truncation"),
    (NormsOverflow, "singular_values"),
]
