"""Parameterizations with one defect each in state, cost, certificate or set."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.parameterizations import Certificate
from lowrank_opt.parameterizations.certificate import certify
from tests.property.broken import FLOAT32, FLOAT64, OnePercentTooLarge, Product, TextbookCayley

# Purity


class NormalizesInPlace(Product):
    @torch.no_grad()
    def _balance(self):
        self.right.mul_(0.5)
        self.left.mul_(2.0)

    def factors(self):
        self._balance()
        return super().factors()


class CountsCalls(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.register_buffer("calls", torch.ones((), dtype=dtype))

    def factors(self):
        self.calls += 1
        return super().factors()


class InverseMovesParameters(Product):
    @torch.no_grad()
    def right_inverse(self, target):
        values = super().right_inverse(target)
        for name, value in values.items():
            self.get_parameter(name).copy_(value * 0.5)
        return values


class RandomFactors(Product):
    def factors(self):
        return self.operator(self.left, self.right + torch.randn_like(self.right))


class ForgottenMask(Product):
    """A random mask in a plain attribute: not in the state dict."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.mask = torch.rand(shape[0], 1, dtype=dtype)

    def factors(self):
        return self.operator(self.mask * self.left, self.right)


class Unpicklable(Product):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.activation = lambda x: x


class SharedByCopies(Product):
    def __deepcopy__(self, memo):
        twin = type(self)(self.shape, self.rank, dtype=self.left.dtype)
        twin.left, twin.right = self.left, self.right
        return twin


class AliasedBuffer(Product):
    """W minus its start, the start being a view of the parameter: steps in place move both."""

    complete = False

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.register_buffer("start", self.right.detach())

    def factors(self):
        return self.operator(self.left, self.right + self.start)


class AliasedAttribute(Product):
    """As AliasedBuffer, with nothing in the state to tell."""

    complete = False

    def factors(self):
        if not hasattr(self, "frozen"):
            self.frozen = self.left.detach()
        return self.operator(self.left + self.frozen, self.right)


class CachedFactors(Product):
    """Keeps the first factors for as long as the parameters are the same objects."""

    cache = None

    def factors(self):
        if self.cache is None:
            self.cache = (self.left.clone(), self.right.clone())
        return self.operator(*self.cache)


# Cost


class DenseInside(Product):
    def factors(self):
        U, sigma, Vh = torch.linalg.svd(self.left @ self.right.mT, full_matrices=False)
        r = self.rank
        return lo.LowRankOperator(U[:, :r], sigma[:r], Vh[:r].mT)


class DenseParameter(lo.Parameterization):
    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank)
        self.matrix = nn.Parameter(torch.randn(shape, dtype=dtype))

    def factors(self):
        eye = torch.eye(self.shape[1], dtype=self.matrix.dtype)[:, : self.rank]
        return lo.LowRankOperator(self.matrix[:, : self.rank], self.matrix.new_ones(self.rank), eye)


# Certificates and sets


class HalfCertificate(lo.HomogeneousBall):
    def certify(self):
        return certify(0.5 * self.factors().detach(), self.feasible_set)


class OptimisticCertificate(OnePercentTooLarge):
    def certify(self) -> Certificate:
        return replace(super().certify(), excess=0.0)


@dataclass(frozen=True)
class BallWith(lo.SpectralSet):
    """The spectral ball of radius one with a defect of choice."""

    rank: int
    defect: str

    def singular_value_excess(self, values):
        return (values - 1).amax()

    def project_singular_values(self, values):
        return {
            "overshoots": values.clamp_max(1.01),
            "shrinks members": 0.9 * values.clamp_max(1.0),
            "radial": values / values.amax().clamp_min(1.0),
        }.get(self.defect, values.clamp_max(1.0))

    def lmo(self, gradient):
        found = super().lmo(gradient)
        if self.defect == "maximises":
            return -found
        return 0.5 * found if self.defect == "stops inside" else found


class WithSet(TextbookCayley):
    def __init__(self, shape, rank, *, defect, dtype=None):
        super().__init__(shape, rank, dtype=dtype)
        self.defect = defect

    @property
    def feasible_set(self):
        return BallWith(self.rank, self.defect)


# (factory, law that must notice, dtype)
BROKEN_STATE = [
    (NormalizesInPlace, "purity", FLOAT64),
    (CountsCalls, "purity", FLOAT64),
    (InverseMovesParameters, "purity", FLOAT64),
    (RandomFactors, "purity", FLOAT64),
    (ForgottenMask, "copies", FLOAT64),
    (Unpicklable, "copies", FLOAT64),
    (SharedByCopies, "copies", FLOAT64),
    (AliasedBuffer, "in_place", FLOAT64),
    (AliasedAttribute, "in_place", FLOAT64),
    (CachedFactors, "in_place", FLOAT64),
    (DenseInside, "never_dense", FLOAT64),
    (DenseParameter, "never_dense", FLOAT64),
    (partial(HalfCertificate, radius=1.0), "certificate", FLOAT64),
    (partial(OptimisticCertificate, radius=1.0), "certificate", FLOAT64),
    (partial(WithSet, defect="overshoots"), "projection", FLOAT64),
    (partial(WithSet, defect="shrinks members"), "projection", FLOAT64),
    (partial(WithSet, defect="radial"), "projection", FLOAT64),
    (partial(WithSet, defect="maximises"), "lmo", FLOAT64),
    (partial(WithSet, defect="stops inside"), "lmo", FLOAT32),
]
