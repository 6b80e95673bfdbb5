"""Parameterizations with a defect in repeated calls, random numbers, state or derivatives."""

import numpy as np
import torch
from torch import nn

import lowrank_opt as lo
from tests.property.broken import Product


def twin_of(module):
    """Return a copy without what is cached."""
    twin = type(module)(module.shape, module.rank, dtype=module.left.dtype)
    twin.load_state_dict(module.state_dict())
    return twin.train(module.training)


class Caching(Product):
    """Keeps something under a key; copies and pickles start without it."""

    key = None

    def __deepcopy__(self, memo):
        return twin_of(self)

    def __getstate__(self):
        kept = {k: v for k, v in self.__dict__.items() if k not in ("cached", "key")}
        return {**kept, "key": None}

    def versions(self):
        return tuple((p._version, id(p), p.dtype) for p in (self.left, self.right))


class CachedGraph(Caching):
    """A second backward pass finds its graph freed."""

    def factors(self):
        key = (self.versions(), torch.is_grad_enabled())
        if self.key != key:
            self.key = key
            self.cached = self.left * 1.0, self.right * 1.0
        left, right = self.cached
        return lo.LowRankOperator(left, left.new_ones(self.rank), right)


class CachedWithoutGradient(Caching):
    """A call under no_grad leaves factors without a graph for the next one."""

    def factors(self):
        if self.key != self.versions():
            self.key, self.cached = self.versions(), (self.left * 1.0).unbind(-1)
            self.fresh = True
        if self.fresh and torch.is_grad_enabled():
            self.fresh = False
            return super().factors()
        left = torch.stack([x.detach() for x in self.cached], -1)
        return lo.LowRankOperator(left, left.new_ones(self.rank), self.right)


class CachedInInferenceMode(Caching):
    """A tensor of inference mode is kept, and cannot be saved for a backward pass."""

    def factors(self):
        if self.key != self.versions():
            self.key, self.cached = self.versions(), self.left.new_ones(self.rank)
        left = self.left * self.cached
        return lo.LowRankOperator(left, left.new_ones(self.rank), self.right)


class StaleAfterDataWrite(Caching):
    def factors(self):
        if self.key != self.versions():
            self.key, self.cached = self.versions(), self.right.detach().clone()
        right = self.cached + (self.right - self.right.detach())
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), right)


class StaleByAddress(Caching):
    """Knows its parameters by where they lie."""

    def factors(self):
        key = self.right.data_ptr()
        if self.key != key:
            self.key, self.cached = key, self.right.detach().clone()
        right = self.cached + (self.right - self.right.detach())
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), right)


class SeedsTorch(Product):
    def factors(self):
        torch.manual_seed(0)
        return super().factors()


class SeedsNumPy(Product):
    def right_inverse(self, target):
        np.random.seed(1)  # noqa: NPY002
        return super().right_inverse(target)


class CertifyDraws(Product):
    def certify(self):
        torch.rand(1)
        return super().certify()


class ZeroIgnoresGenerator(Product):
    def zero_(self, *, generator=None):
        return super().zero_(generator=None)


class ZeroReseedsGenerator(Product):
    def zero_(self, *, generator=None):
        if generator is not None:
            generator.manual_seed(11)
        return super().zero_(generator=generator)


class ZeroCounts(Product):
    """Every start is another one, whatever the generator."""

    started = 0

    def zero_(self, *, generator=None):
        super().zero_(generator=generator)
        ZeroCounts.started += 1
        with torch.no_grad():
            self.right.add_(0.01 * ZeroCounts.started)
        return self


class SignNotInState(Product):
    flip = 1.0

    def zero_(self, *, generator=None):
        super().zero_(generator=generator)
        self.flip = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
        return self

    def factors(self):
        return self.flip * super().factors()

    def right_inverse(self, target):
        found = super().right_inverse(target)
        return {**found, "left": self.flip * found["left"]}


class ScaleOfAssign(Product):
    """Remembers, outside the state, the size of what was assigned."""

    size = 1.0

    def assign(self, target, project=False):
        super().assign(target, project=project)
        self.size = 2.0 * self.size
        return self

    def factors(self):
        return (self.size / 2.0 if self.size > 1 else 1.0) * super().factors()

    def right_inverse(self, target):
        found, size = super().right_inverse(target), self.size / 2.0 if self.size > 1 else 1.0
        return {**found, "left": found["left"] / size}


class EvaluatesFromSnapshot(Product):
    """Switching to evaluation keeps factors that loading a state does not replace."""

    snapshot = None

    def train(self, mode=True):
        self.snapshot = None if mode else self.left.detach().clone()
        return super().train(mode)

    def factors(self):
        if self.snapshot is None or self.training:
            return super().factors()
        left = self.snapshot.to(self.left)
        return lo.LowRankOperator(left, left.new_ones(self.rank), self.right)


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
BROKEN_CALLS = [
    (CachedGraph, "repeats", F64),
    (CachedWithoutGradient, "repeats", F64),
    (CachedInInferenceMode, "repeats", F64),
    (StaleAfterDataWrite, "writes", F64),
    (StaleByAddress, "writes", F64),
    (SeedsTorch, "generators", F64),
    (SeedsNumPy, "generators", F64),
    (CertifyDraws, "generators", F64),
    (ZeroIgnoresGenerator, "generators", F64),
    (ZeroReseedsGenerator, "generators", F64),
    (ZeroCounts, "generators", F64),
    (SignNotInState, "journey", F64),
    (ScaleOfAssign, "journey", F64),
    (EvaluatesFromSnapshot, "journey", F64),
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
