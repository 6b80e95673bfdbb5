"""Parameterizations with a defect in what they promise of W, in derivatives or special places."""

import torch
from torch import nn

import lowrank_opt as lo
from tests.property.broken import Product


class CertifiesAnotherSet(lo.HomogeneousBall):
    def certify(self, **options):
        wider = lo.HomogeneousBall(
            self.shape, self.rank, radius=10 * self.feasible_set.radius, dtype=self.left.dtype
        )
        return lo.Parameterization.certify(wider, **options)


class ExportDoesNotShrink(lo.HomogeneousBall):
    def export(self, dtype):
        return self.factors().detach().to(dtype=dtype)


class ExportIgnoresDtype(lo.HomogeneousBall):
    def export(self, dtype):
        return super().export(torch.float32)


class ExportHalves(lo.HomogeneousBall):
    def export(self, dtype):
        return 0.5 * super().export(dtype)


class AssignHalves(Product):
    def assign(self, target, project=False):
        super().assign(target, project=project)
        if project:
            with torch.no_grad():
                self.left.mul_(0.5)
        return self


class AssignWritesHalf(lo.HomogeneousBall):
    """Writes before it finds that a target is refused."""

    def assign(self, target, project=False):
        with torch.no_grad():
            self.left.mul_(0.5)
        return super().assign(target, project=project)


class AssignProjectsAlways(lo.HomogeneousBall):
    def assign(self, target, project=False):
        return super().assign(target, project=True)


class AssignReplaces(Product):
    """Puts new parameters in the place of those that an optimizer holds."""

    def assign(self, target, project=False):
        super().assign(target, project=project)
        self.left = nn.Parameter(self.left.detach().clone())
        return self


class ResidualSquared(Product):
    def residual(self, target):
        return super().residual(target) ** 2


class SeesEverything(Product):
    def seen_factors(self, rows, cols):
        return self.factors()


class DetachedEntriesOperator(lo.LowRankOperator):
    def entries(self, rows, cols):
        return lo.LowRankOperator(self.left.detach(), self.scale, self.right).entries(rows, cols)


class NoGradientThroughEntries(Product):
    def factors(self):
        return DetachedEntriesOperator(*super().factors())


class DetachedAdjointOperator(lo.LowRankOperator):
    @property
    def mT(self):
        return lo.LowRankOperator(self.right.detach(), self.scale, self.left)


class NoGradientThroughAdjoint(Product):
    def factors(self):
        return DetachedAdjointOperator(*super().factors())


class Square(torch.autograd.Function):
    """x**2, with a forward-mode derivative of half the size."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return x * t


class HalfForwardMode(Product):
    def factors(self):
        return lo.LowRankOperator(
            Square.apply(self.left), self.left.new_ones(self.rank), self.right
        )

    right_inverse = lo.Parameterization.right_inverse
    zero_ = lo.Parameterization.zero_
    complete = False


class FirstOrderSquare(torch.autograd.Function):
    """x**2, whose derivative counts as a constant from there on."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * g


class SecondDerivativeLost(HalfForwardMode):
    def factors(self):
        left = FirstOrderSquare.apply(self.left)
        return lo.LowRankOperator(left, left.new_ones(self.rank), self.right)


class DetachedSlope(HalfForwardMode):
    """Right gradients by a trick that second derivatives do not see."""

    def factors(self):
        value = self.left.detach() ** 2
        left = value + 2 * self.left.detach() * (self.left - self.left.detach())
        return lo.LowRankOperator(left, left.new_ones(self.rank), self.right)


class Lazy(Product):
    """Creates a parameter at the first call."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.gain = None

    def factors(self):
        if self.gain is None:
            self.gain = nn.Parameter(self.left.new_ones(self.rank))
        return lo.LowRankOperator(self.left, self.gain, self.right)


class Uninitialized(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.gain = nn.UninitializedParameter()


class Antiparallel(lo.HomogeneousBall):
    """Leaves its ball where two columns cancel."""

    def factors(self):
        b = self.left
        hit = self.rank > 1 and bool((b[:, 0] == -b[:, 1]).all()) and bool(b.any())
        return (1.05 if hit else 1.0) * super().factors()


class EqualColumns(lo.HomogeneousBall):
    def factors(self):
        b = self.left
        hit = self.rank > 1 and bool((b[:, 0] == b[:, -1]).all()) and bool(b.any())
        return (1.05 if hit else 1.0) * super().factors()


class OrthogonalColumns(lo.HomogeneousBall):
    def factors(self):
        gram = self.left.mT @ self.left
        off = gram - torch.diag(torch.diagonal(gram))
        hit = self.rank > 1 and bool(off.abs().max() < 1e-12) and bool(gram.trace() > 0)
        return (1.05 if hit else 1.0) * super().factors()


class AllNegative(lo.HomogeneousBall):
    def factors(self):
        hit = self.left.numel() > 3 and bool((self.left < 0).all())
        return (1.05 if hit else 1.0) * super().factors()


class LeadingBlockChart(lo.Parameterization):
    """[I; B] C [I, D]: matrices with a singular leading block are not reached."""

    complete = True

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank)
        m, n = shape
        self.B = nn.Parameter(torch.randn(m - rank, rank, dtype=dtype))
        self.C = nn.Parameter(torch.randn(rank, rank, dtype=dtype))
        self.D = nn.Parameter(torch.randn(n - rank, rank, dtype=dtype))

    def factors(self):
        eye = torch.eye(self.rank, dtype=self.C.dtype)
        left = torch.cat((eye, self.B)) @ self.C
        return lo.LowRankOperator(left, left.new_ones(self.rank), torch.cat((eye, self.D)))

    def right_inverse(self, target):
        W, r = lo.LowRankOperator.to_dense(target).double(), self.rank
        inverse = torch.linalg.pinv(W[:r, :r], rtol=1e-12)
        return {"B": W[r:, :r] @ inverse, "C": W[:r, :r], "D": (inverse @ W[:r, r:]).mT}


class InverseNeedsGaps(Product):
    """Loses a part of the target where singular values are equal."""

    def right_inverse(self, target):
        found = super().right_inverse(target)
        s = torch.linalg.svdvals(target.to_dense().double())[: self.rank]
        tied = len(s) > 1 and float(s[1]) > 0 and float((s[0] - s[1]) / s[0]) < 1e-9
        return {**found, "left": found["left"] * (1.01 if tied else 1.0)}


class InverseDropsSmallValues(Product):
    """Takes singular values below a millionth of the largest for noise."""

    def right_inverse(self, target):
        left, scale, right = target.to(dtype=torch.float64).thin_svd()
        scale = scale.where(scale > 1e-6 * scale.amax(), 0)
        return super().right_inverse(lo.LowRankOperator(left, scale, right))


def ball(kind):
    """Return a factory of nuclear balls of radius one."""

    def make(shape, rank, *, dtype=None):
        return kind(shape, rank, radius=1.0, dtype=dtype)

    make.__name__ = kind.__name__
    return make


F64 = torch.float64
# (factory, law that must notice, dtype)
BROKEN_PROMISES = [
    (ball(CertifiesAnotherSet), "certificate", F64),
    (ball(ExportDoesNotShrink), "export", F64),
    (ball(ExportIgnoresDtype), "export", F64),
    (ball(ExportHalves), "export", F64),
    (AssignHalves, "assign", F64),
    (ball(AssignWritesHalf), "assign", F64),
    (ball(AssignProjectsAlways), "assign", F64),
    (AssignReplaces, "assign", F64),
    (ResidualSquared, "assign", F64),
    (SeesEverything, "seen", F64),
    (NoGradientThroughEntries, "slopes", F64),
    (NoGradientThroughAdjoint, "slopes", F64),
    (HalfForwardMode, "derivatives", F64),
    (SecondDerivativeLost, "derivatives", F64),
    (DetachedSlope, "derivatives", F64),
    (Lazy, "contract", F64),
    (Uninitialized, "contract", F64),
    (ball(Antiparallel), "membership", F64),
    (ball(EqualColumns), "membership", F64),
    (ball(OrthogonalColumns), "membership", F64),
    (ball(AllNegative), "membership", F64),
    (LeadingBlockChart, "completeness", F64),
    (InverseNeedsGaps, "completeness", F64),
    (InverseDropsSmallValues, "completeness", F64),
]
