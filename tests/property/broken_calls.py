"""Parameterizations with a defect in repeated calls, random numbers, state or derivatives."""

import numpy as np
import torch

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


class OtherWithoutGradients(Product):
    """Half of W where no gradient is recorded."""

    def factors(self):
        return (1.0 if torch.is_grad_enabled() else 0.5) * super().factors()


class OtherInInferenceMode(Product):
    def factors(self):
        return (0.5 if torch.is_inference_mode_enabled() else 1.0) * super().factors()


class OtherWhereFrozen(Product):
    def factors(self):
        return (1.0 if self.left.requires_grad else 0.5) * super().factors()


class WiderWhileTraining(lo.HomogeneousBall):
    """Declares twice the ball while training."""

    def __init__(self, shape, rank, *, dtype=None):
        super().__init__(shape, rank, radius=1.0, dtype=dtype)

    @property
    def feasible_set(self):
        return lo.SchattenBall(1, 2.0 if self.training else 1.0, self.rank)


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


F64 = torch.float64
# (factory, law that must notice, dtype)
BROKEN_CALLS = [
    (CachedGraph, "repeats", F64),
    (CachedWithoutGradient, "repeats", F64),
    (CachedInInferenceMode, "repeats", F64),
    (StaleAfterDataWrite, "writes", F64),
    (StaleByAddress, "writes", F64),
    (OtherWithoutGradients, "purity", F64),
    (OtherInInferenceMode, "purity", F64),
    (OtherWhereFrozen, "purity", F64),
    (WiderWhileTraining, "purity", F64),
    (SeedsTorch, "generators", F64),
    (SeedsNumPy, "generators", F64),
    (CertifyDraws, "generators", F64),
    (ZeroIgnoresGenerator, "generators", F64),
    (ZeroReseedsGenerator, "generators", F64),
    (ZeroCounts, "generators", F64),
    (SignNotInState, "journey", F64),
    (ScaleOfAssign, "journey", F64),
    (EvaluatesFromSnapshot, "journey", F64),
]
