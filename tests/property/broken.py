"""Parameterizations with one defect each in the map or its right inverse, and who must notice."""

import math
from functools import partial

import torch
from torch import Tensor, nn

import lowrank_opt as lo

FLOAT64, FLOAT32 = torch.float64, torch.float32


class Product(lo.Parameterization):
    """A sound product of two factors, from which defects are made."""

    complete = True

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank)
        self.left = nn.Parameter(torch.zeros(shape[0], rank, dtype=dtype))
        self.right = nn.Parameter(torch.randn(shape[1], rank, dtype=dtype))

    def operator(self, left: Tensor, right: Tensor) -> lo.LowRankOperator:
        return lo.LowRankOperator(left, left.new_ones(left.shape[1]), right)

    def factors(self):
        return self.operator(self.left, self.right)

    def right_inverse(self, target):
        U, sigma, V = self.svd_of(target)
        return {"left": U * sigma, "right": V}

    @torch.no_grad()
    def zero_(self, *, generator=None):
        self.left.zero_()
        self.right.copy_(torch.randn(self.right.shape, generator=generator))
        return self


# Contract, membership, rank


class TransposedFactors(Product):
    def factors(self):
        return self.operator(self.right, self.left)


class DictInsteadOfOperator(Product):
    def forward(self):
        return dict(self.named_parameters())


class OnePercentTooLarge(lo.HomogeneousBall):
    def factors(self):
        return 1.01 * super().factors()


class SignedValues(lo.NBLoRA):
    """The bound of NB-LoRA needs s >= 0."""

    def value_limits(self):
        bounds = super().value_limits()
        return bounds if self.spread is None else bounds * self.spread.sign()


class TextbookCayley(Product):
    """(I - Z)(I + Z)^{-1} in the dtype of the parameters: no shift, no float64, no polish."""

    complete = False

    @property
    def feasible_set(self):
        return lo.SchattenBall(math.inf, 1.0, self.rank)

    def factors(self):
        rows = torch.cat((self.right, self.left))
        r, n = self.rank, self.shape[1]
        X, Y = rows[:r], rows[r:]
        Z, eye = X - X.mT + Y.mT @ Y, torch.eye(r, dtype=Y.dtype)
        M = torch.linalg.inv_ex(eye + Z).inverse
        G = torch.cat((2 * M - eye, -2 * Y @ M))
        return 2.0 * self.operator(G[n:], G[:n])


class UnderflowingNorms(Product):
    """b / |b| with |b| from squares, which vanish for entries near 1e-160."""

    complete = False

    @property
    def feasible_set(self):
        return lo.SchattenBall(1, 2.0, self.rank)

    def factors(self):
        b, a = (x / x.square().sum(0).sqrt() for x in (self.left, self.right))
        return (2.0 / self.rank) * self.operator(b, a)


class NormalizedProduct(Product):
    """A fixed Frobenius norm reached by dividing by it: not a number at 0."""

    complete = False

    @property
    def feasible_set(self):
        return lo.SchattenBall(2, 1.0, self.rank)

    def factors(self):
        size = (self.left.square().sum() * self.right.square().sum()).sqrt()
        return (1 / size) * self.operator(self.left, self.right)


class OneColumnTooMany(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.extra = nn.Parameter(torch.randn(sum(shape), 1, dtype=dtype))

    def factors(self):
        m = self.shape[0]
        left, right = (self.left, self.extra[:m]), (self.right, self.extra[m:])
        return self.operator(torch.cat(left, 1), torch.cat(right, 1))


class RankOfNoMatrix(Product):
    @property
    def feasible_set(self):
        return lo.RankAtMost(self.rank + min(self.shape))


# Agreement, dtype, derivatives, zero start


class NotTransposed(lo.LowRankOperator):
    @property
    def mT(self):
        return lo.LowRankOperator(self.right, 1.01 * self.scale, self.left)


class ShiftedEntries(lo.LowRankOperator):
    def entries(self, rows, cols):
        return super().entries(rows, cols.flip(0))


class WrongAdjoint(Product):
    def operator(self, left, right):
        return NotTransposed(left, left.new_ones(left.shape[1]), right)


class WrongEntries(Product):
    def operator(self, left, right):
        return ShiftedEntries(left, left.new_ones(left.shape[1]), right)


class DoubleDense(lo.LowRankOperator):
    def to_dense(self):
        return 2 * super().to_dense()


class MergesTwice(Product):
    def operator(self, left, right):
        return DoubleDense(left, left.new_ones(left.shape[1]), right)


class ScaledWhileTraining(Product):
    def forward(self):
        return self.factors() * (1.1 if self.training else 1.0)


class LeaksFloat64(Product):
    def factors(self):
        return self.operator(self.left.double(), self.right.double())


class IgnoresDtype(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank)


class DetachedFactor(Product):
    def factors(self):
        return self.operator(self.left, self.right.detach())


class DetachedNorm(lo.HomogeneousBall):
    """The size of the factors as a constant: values are right, gradients are not."""

    def factors(self):
        op, size = super().factors(), super().factors().scale.detach()
        return lo.LowRankOperator(op.left, size, op.right)


class OnePercentGradient(Product):
    def factors(self):
        left = self.left.clone()
        if left.requires_grad:
            left.register_hook(lambda g: 1.01 * g)
        return self.operator(left, self.right)


class RootAtZero(Product):
    """The gradient of sqrt(x^2) at 0 is not a number."""

    complete = False

    def factors(self):
        return self.operator(self.left.square().sum(0).sqrt() * self.left, self.right)


class EpsilonStart(Product):
    @torch.no_grad()
    def zero_(self, *, generator=None):
        super().zero_(generator=generator)
        self.left.fill_(1e-12)
        return self


class StuckStart(Product):
    @torch.no_grad()
    def zero_(self, *, generator=None):
        self.left.zero_()
        self.right.zero_()
        return self


# Right inverses


class StatefulInverse(Product):
    """Keeps the target and gives it back: a right inverse in name only."""

    kept = None

    def right_inverse(self, target):
        self.kept = self.operator_of(target)
        return {"left": self.left.detach(), "right": self.right.detach()}

    def factors(self):
        return super().factors() if self.kept is None else self.kept


class UnscaledInverse(Product):
    """Roots of the singular values on one side only."""

    def right_inverse(self, target):
        U, sigma, V = self.svd_of(target)
        return {"left": U * sigma.sqrt(), "right": V}


class SoftmaxValues(lo.NBLoRA):
    """Softmax cannot make a value zero: members on the boundary of lower rank are missed."""

    def value_limits(self):
        assert self.spread is not None
        return self._set.radius * self.spread.softmax(0).double()

    def right_inverse(self, target):
        values = super().right_inverse(target)
        values["spread"] = (values["spread"] / values["spread"].sum()).clamp_min(1e-9).log()
        return values


class NonFiniteInverse(Product):
    """Divides by singular values that may be zero."""

    def right_inverse(self, target):
        U, sigma, V = self.svd_of(target)
        return {"left": U * sigma, "right": V * (sigma / sigma)}


# (factory, law that must notice, dtype)
BROKEN_MAPS = [
    (TransposedFactors, "contract", FLOAT64),
    (DictInsteadOfOperator, "contract", FLOAT64),
    (partial(OnePercentTooLarge, radius=1.0), "membership", FLOAT64),
    (partial(OnePercentTooLarge, radius=1e-3, p=3), "membership", FLOAT32),
    (partial(SignedValues, radius=1.0, p=2), "escape", FLOAT64),
    (partial(OnePercentTooLarge, radius=1.0), "escape", FLOAT32),
    (TextbookCayley, "membership", FLOAT32),
    (UnderflowingNorms, "membership", FLOAT64),
    (NormalizedProduct, "membership", FLOAT32),
    (OneColumnTooMany, "rank", FLOAT64),
    (RankOfNoMatrix, "rank", FLOAT64),
    (WrongAdjoint, "agreement", FLOAT64),
    (WrongEntries, "agreement", FLOAT32),
    (MergesTwice, "agreement", FLOAT64),
    (MergesTwice, "merge", FLOAT64),
    (ScaledWhileTraining, "merge", FLOAT32),
    (LeaksFloat64, "dtype", FLOAT32),
    (IgnoresDtype, "dtype", FLOAT64),
    (DetachedFactor, "smoothness", FLOAT64),
    (DetachedFactor, "smoothness", FLOAT32),
    (partial(DetachedNorm, radius=1.0), "smoothness", FLOAT64),
    (OnePercentGradient, "smoothness", FLOAT32),
    (RootAtZero, "smoothness", FLOAT64),
    (UnderflowingNorms, "smoothness", FLOAT64),
    (EpsilonStart, "zero_start", FLOAT64),
    (StuckStart, "zero_start", FLOAT64),
    (StatefulInverse, "section", FLOAT64),
    (StatefulInverse, "completeness", FLOAT64),
    (UnscaledInverse, "section", FLOAT64),
    (UnscaledInverse, "completeness", FLOAT32),
    (NonFiniteInverse, "completeness", FLOAT64),
    (partial(SoftmaxValues, radius=1.0, p=1), "completeness", FLOAT64),
    (StatefulInverse, "purity", FLOAT64),
]
