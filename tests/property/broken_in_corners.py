"""Parameterizations whose one defect shows only in a corner: a dtype, a shape, a value, a mode."""

from functools import partial

import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.linalg import scale_to_unit_peak
from tests.property.broken import FLOAT64, Product


class OnlyInFloat32(lo.HomogeneousBall):
    """Leaves its ball by one percent in float32, and keeps it in float64."""

    def factors(self):
        return (1.01 if self.left.dtype == torch.float32 else 1.0) * super().factors()


class OnlyWide(lo.HomogeneousBall):
    def factors(self):
        m, n = self.shape
        return (1.01 if m < n else 1.0) * super().factors()


class RankOnlyWide(Product):
    """One column too many where n > m + 1."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.more = nn.Parameter(torch.randn(sum(shape), 1, dtype=dtype))

    def factors(self):
        m, n = self.shape
        if n <= m + 1:
            return super().factors()
        left = torch.cat((self.left, self.more[:m]), 1)
        return self.operator(left, torch.cat((self.right, self.more[m:]), 1))


class OnlyLargeShapes(lo.HomogeneousBall):
    """Another branch, with a wrong factor, for more than sixteen rows."""

    def factors(self):
        return (1.05 if self.shape[0] > 16 else 1.0) * super().factors()


class OnlyLargeRanks(lo.HomogeneousBall):
    def factors(self):
        return (1.05 if self.rank > 8 else 1.0) * super().factors()


class OnlyParallel(lo.HomogeneousBall):
    """A tenth of a percent too large where columns are parallel."""

    def factors(self):
        gram = self.left.mT @ self.left
        off = gram - gram.diagonal().diag()
        size = gram.diagonal().sqrt()
        parallel = self.rank > 1 and bool((off.abs() > 0.9999 * size * size[:, None]).any())
        return (1.001 if parallel else 1.0) * super().factors()


class NaNAtZeroColumn(Product):
    """Columns of unit norm, without a guard for one that is zero."""

    complete = False

    @property
    def feasible_set(self):
        return lo.SchattenBall(1, 1.0, self.rank)

    def factors(self):
        b, a = (x / x.abs().amax(0) for x in (self.left, self.right))
        b, a = b / b.norm(dim=0), a / a.norm(dim=0)
        if not bool(self.left.any() and self.right.any()):
            b, a = torch.zeros_like(self.left), torch.zeros_like(self.right)
        return (1 / self.rank) * self.operator(b, a)


class NaNWhereOneFactorIsZero(Product):
    """Balances the factors by the ratio of their sizes; 0 / 0 only if one is zero."""

    complete = False

    def factors(self):
        a, b = self.left.abs().amax(), self.right.abs().amax()
        if bool(a == 0) and bool(b == 0):
            return super().factors()
        ratio = (a / b).sqrt().detach()
        return self.operator(self.left / ratio, self.right * ratio)


class OnlyEvaluating(lo.HomogeneousBall):
    """Undoes a dropout that is not there: 1.1 times too large in evaluation mode."""

    def factors(self):
        return (1.0 if self.training else 1.1) * super().factors()


class GradientOfLargeParametersDetached(Product):
    """Treats entries beyond 20 as constants, as a clamp with a straight value would."""

    def factors(self):
        left = torch.where(self.left.abs() > 20, self.left.detach(), self.left)
        return self.operator(left, self.right)


class GradientOfSmallParametersDoubled(Product):
    def factors(self):
        small = self.left.abs() < 0.01
        return self.operator(
            self.left + torch.where(small, self.left - self.left.detach(), 0.0), self.right
        )


class ClampedStart(Product):
    """DeLoRA with norms clamped at 1e-4: at B = 0 the first step moves W by its whole radius."""

    complete = False

    @property
    def feasible_set(self):
        return lo.SchattenBall(1, 2.0, self.rank)

    def factors(self):
        b, a = (
            x / torch.linalg.vector_norm(x / p, dim=0).clamp_min(1e-4 / p) / p
            for x in (self.left, self.right)
            for p in [x.detach().abs().amax().clamp_min(1e-4)]
        )
        return (2.0 / self.rank) * self.operator(b, a)


# Right inverses


class ThreeDigitInverse(Product):
    def right_inverse(self, target):
        return {k: v.half().to(v) for k, v in super().right_inverse(target).items()}


class InverseIgnoresTarget(Product):
    def right_inverse(self, target):
        self.operator_of(target)
        return {"left": self.left.detach().clone(), "right": self.right.detach().clone()}


class InverseTruncatesItsArgument(Product):
    """Writes what it can reach into the target, of rank one, and reaches that."""

    def right_inverse(self, target):
        op = self.operator_of(target)
        op.scale[1:] = 0.0
        return super().right_inverse(op)


class InverseWritesBuffer(Product):
    """geotorch's way: the singular vectors go to a buffer, the values to a parameter."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.register_buffer("base", torch.eye(shape[1], rank, dtype=dtype), persistent=False)

    def factors(self):
        return self.operator(self.left, self.base + 0 * self.right)

    def right_inverse(self, target):
        values = super().right_inverse(target)
        self.base.copy_(values["right"])
        return values


class InverseOnlyTall(Product):
    def right_inverse(self, target):
        U, sigma, V = self.svd_of(target)
        m, n = self.shape
        return {"left": U * sigma, "right": V if m >= n else V.flip(0)}


# Completeness is claimed


class HalfTheBall(lo.HomogeneousBall):
    def factors(self):
        return 0.5 * super().factors()


class OnlySymmetric(Product):
    """Symmetric where it is square."""

    def factors(self):
        m, n = self.shape
        return self.operator(self.right, self.right) if m == n else super().factors()


class OnlyRankOne(Product):
    def factors(self):
        return self.operator(self.left[:, :1], self.right[:, :1])


class OnlySphere(Product):
    """Always on the boundary of its ball."""

    @property
    def feasible_set(self):
        return lo.SchattenBall(2, 1.0, self.rank)

    def factors(self):
        op = self.operator(*scale_to_unit_peak(self.left, self.right))
        return (1 / op.schatten_norm(2).clamp_min(1e-300)) * op


class OnlyOrthogonalFrame(Product):
    """U^T W is diagonal in a fixed frame U: most members are out of reach."""

    def factors(self):
        frame = torch.eye(self.shape[0], self.rank, dtype=self.left.dtype)
        return self.operator(frame, self.right)


def without_inverse(kind, **options):
    """Return the class with its claim of completeness and without a right inverse."""

    class Claims(kind):
        complete = True

        def right_inverse(self, target):
            return lo.Parameterization.right_inverse(self, target)

    Claims.__name__ = Claims.__qualname__ = f"{kind.__name__}WithoutInverse"
    return partial(Claims, **options)


# State


class NonPersistentBuffer(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.register_buffer("sign", torch.randn(rank, dtype=dtype).sign(), persistent=False)

    def factors(self):
        return self.operator(self.left * self.sign, self.right)


class ForgetsScaleOnConversion(Product):
    """A tensor in a plain attribute: left behind by ``.to(dtype)``."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.gain = torch.full((rank,), 2.0, dtype=dtype)

    def factors(self):
        return self.operator(self.left * self.gain, self.right)


class OnCpuAlways(Product):
    """Makes its scale on the CPU, wherever the factors are."""

    def factors(self):
        scale = torch.ones(self.rank, dtype=self.left.dtype, device="cpu")
        return lo.LowRankOperator(self.left, scale, self.right)


class CachesByNorm(Product):
    """Recomputes when the norm of a factor changes, which a rotation does not do."""

    cache = (None, None)

    def factors(self):
        key = float(self.left.detach().norm()) + float(self.right.detach().norm())
        if self.cache[0] is None or abs(self.cache[0] - key) > 1e3:
            self.cache = key, (self.left.clone(), self.right.clone())
        return self.operator(*self.cache[1])


class DenseZeroStart(Product):
    """Takes random singular vectors of an m x n matrix for its start."""

    @torch.no_grad()
    def zero_(self, *, generator=None):
        dense = torch.randn(self.shape, generator=generator, dtype=self.left.dtype)
        self.left.zero_()
        self.right.copy_(torch.linalg.svd(dense, full_matrices=False).Vh[: self.rank].mT)
        return self


class StartOfHalf(Product):
    """zero_() forgets the entries of the last row."""

    @torch.no_grad()
    def zero_(self, *, generator=None):
        super().zero_(generator=generator)
        self.left[-1] = 1e-20
        return self


class FactorsFromAnotherModule(Product):
    """Draws a fresh sign in each new module, from a counter of its class."""

    made = 0

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        FactorsFromAnotherModule.made += 1
        self.factor = 1.0 if FactorsFromAnotherModule.made % 2 else 1.001

    def factors(self):
        return self.factor * super().factors()


# (factory, law that must notice, dtype)
BROKEN_IN_CORNERS = [
    (partial(OnlyInFloat32, radius=1.0), "precision", FLOAT64),
    (partial(OnlyWide, radius=1.0), "escape", FLOAT64),
    (RankOnlyWide, "rank", FLOAT64),
    (partial(OnlyLargeShapes, radius=1.0), "completeness", FLOAT64),
    (partial(OnlyLargeRanks, radius=1.0), "completeness", FLOAT64),
    (partial(OnlyParallel, radius=1.0), "escape", FLOAT64),
    (NaNAtZeroColumn, "membership", FLOAT64),
    (NaNWhereOneFactorIsZero, "membership", FLOAT64),
    (partial(OnlyEvaluating, radius=1.0), "merge", FLOAT64),
    (GradientOfLargeParametersDetached, "smoothness", FLOAT64),
    (GradientOfSmallParametersDoubled, "smoothness", FLOAT64),
    (ClampedStart, "zero_start", FLOAT64),
    (ThreeDigitInverse, "section", FLOAT64),
    (InverseIgnoresTarget, "section", FLOAT64),
    (InverseTruncatesItsArgument, "purity", FLOAT64),
    (InverseWritesBuffer, "section", FLOAT64),
    (InverseOnlyTall, "completeness", FLOAT64),
    (partial(HalfTheBall, radius=1.0), "completeness", FLOAT64),
    (OnlySymmetric, "completeness", FLOAT64),
    (OnlyRankOne, "completeness", FLOAT64),
    (OnlySphere, "completeness", FLOAT64),
    (OnlyOrthogonalFrame, "completeness", FLOAT64),
    (without_inverse(HalfTheBall, radius=1.0), "completeness", FLOAT64),
    (without_inverse(OnlySymmetric), "completeness", FLOAT64),
    (without_inverse(OnlyRankOne), "completeness", FLOAT64),
    (without_inverse(OnlySphere), "completeness", FLOAT64),
    (without_inverse(OnlyOrthogonalFrame), "completeness", FLOAT64),
    (NonPersistentBuffer, "copies", FLOAT64),
    (ForgetsScaleOnConversion, "dtype", FLOAT64),
    (OnCpuAlways, "dtype", FLOAT64),
    (CachesByNorm, "in_place", FLOAT64),
    (DenseZeroStart, "never_dense", FLOAT64),
    (StartOfHalf, "zero_start", FLOAT64),
    (FactorsFromAnotherModule, "copies", FLOAT64),
]
