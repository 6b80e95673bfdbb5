"""Parameterizations whose defect shows at one value, in one dtype, or the second time only."""

from functools import cached_property

import torch

import lowrank_opt as lo
from tests.property.broken import FLOAT64, Product
from tests.property.broken_calls import twin_of


class OtherSlopeInFloat32(Product):
    """Values are right in every dtype, gradients in float64 only."""

    def factors(self):
        left = self.left
        if left.dtype == torch.float32:
            left = left + 0.01 * (left - left.detach())
        return self.operator(left, self.right)


class OtherInHalfPrecision(Product):
    def factors(self):
        half = self.left.dtype in (torch.float16, torch.bfloat16)
        return self.operator(self.left * (1.02 if half else 1.0), self.right)


class JumpsAtZero(Product):
    """Another value where a factor is exactly zero."""

    def factors(self):
        pair = (x if bool(x.any()) else x + 1e-3 for x in (self.left, self.right))
        return self.operator(*pair)


class FlatAtZero(Product):
    """The identity as ``|x| sign(x)``, whose gradient vanishes at zero."""

    def factors(self):
        return self.operator(self.left, self.right.abs() * self.right.sign())


class CopiesOfCopies(Product):
    generation = 0

    def __deepcopy__(self, memo):
        twin = twin_of(self)
        twin.generation = self.generation + 1
        return twin

    def factors(self):
        return (1.0 if self.generation < 2 else 0.9) * super().factors()


class LoadsOnce(Product):
    """What is loaded a second time is added to the first."""

    loaded = False

    def _load_from_state_dict(self, state, prefix, *others):
        super()._load_from_state_dict(state, prefix, *others)
        if self.loaded:
            self.left.data.mul_(2.0)
        self.loaded = True


class BalancesLargeOnes(Product):
    """Moves the size of one factor to the other, in place, once it is large."""

    @torch.no_grad()
    def factors(self):
        peak = self.right.abs().amax()
        if bool(peak > 1e3):
            self.right.div_(peak)
            self.left.mul_(peak)
        with torch.enable_grad():
            return super().factors()


class DropsGradients(Product):
    """A call under no_grad, to evaluate, loses the gradients that are being accumulated."""

    def factors(self):
        if not torch.is_grad_enabled():
            self.left.grad = None
        return super().factors()


class ReadsStorage(Product):
    """Takes the numbers of a parameter in the order in which they lie in memory."""

    def factors(self):
        rows, cols = self.left.shape
        return self.operator(self.left.as_strided((rows, cols), (cols, 1)), self.right)


class OtherForBatchesOperator(lo.LowRankOperator):
    def linear(self, x):
        y = super().linear(x)
        return 1.01 * y if x.ndim >= 4 else y


class OtherForBatches(Product):
    def operator(self, left, right):
        return OtherForBatchesOperator(left, left.new_ones(left.shape[1]), right)


class CertifiesTheFirst(lo.HomogeneousBall):
    """Proves something about the W that it was asked about first."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, radius=1.0, dtype=dtype)

    @cached_property
    def first(self):
        return super().certify()

    def certify(self):
        return self.first


class AssignFreezes(Product):
    def assign(self, target, project=False):
        super().assign(target, project=project)
        self.right.requires_grad_(False)
        return self


class AssignLenient(lo.HomogeneousBall):
    """Takes targets that are outside by two in a thousand, without being told to project."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, radius=1.0, dtype=dtype)

    def assign(self, target, project=False):
        op = self.operator_of(target)
        return super().assign(target, project=project or self.feasible_set.contains(op, rtol=2e-3))


class KeepsWhatItHasAtZero(Product):
    def right_inverse(self, target):
        found = super().right_inverse(target)
        if bool(found["left"].any()):
            return found
        return {"left": self.left.detach().clone(), "right": self.right.detach().clone()}


# (factory, law that must notice, dtype)
BROKEN_RARELY = [
    (OtherSlopeInFloat32, "dtype", FLOAT64),
    (OtherInHalfPrecision, "dtype", FLOAT64),
    (JumpsAtZero, "smoothness", FLOAT64),
    (FlatAtZero, "smoothness", FLOAT64),
    (CopiesOfCopies, "copies", FLOAT64),
    (LoadsOnce, "copies", FLOAT64),
    (BalancesLargeOnes, "purity", FLOAT64),
    (DropsGradients, "purity", FLOAT64),
    (ReadsStorage, "writes", FLOAT64),
    (OtherForBatches, "agreement", FLOAT64),
    (CertifiesTheFirst, "journey", FLOAT64),
    (AssignFreezes, "journey", FLOAT64),
    (AssignLenient, "assign", FLOAT64),
    (KeepsWhatItHasAtZero, "completeness", FLOAT64),
]
