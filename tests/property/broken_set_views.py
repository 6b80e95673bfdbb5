"""Feasible sets that are wrong in samples, gradients of other forms, spectral forms, tolerances."""

import scipy.sparse as sp
import torch

import lowrank_opt as lo
from tests.property.broken_sets import Ball


class SamplesInside(Ball):
    """Never on the boundary, never of lower rank."""

    def sample(self, shape, *, generator=None, dtype=None):
        op = lo.SchattenBall(torch.inf, 0.5, self.rank).sample(
            shape, generator=generator, dtype=torch.float64
        )
        values = 0.2 + 0.1 * op.scale
        return lo.LowRankOperator(op.left, values, op.right).to(
            dtype=dtype or torch.get_default_dtype()
        )


class SamplesOnBoundary(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        op = super().sample(shape, generator=generator, dtype=dtype)
        return lo.LowRankOperator(op.left, torch.full_like(op.scale, 2.0), op.right)


class SamplesOnAxes(Ball):
    """The singular vectors are always the same."""

    def sample(self, shape, *, generator=None, dtype=None):
        left, scale, right = super().sample(shape, generator=generator, dtype=dtype)
        return lo.LowRankOperator(*(torch.eye(*x.shape).to(x) for x in (left,)), scale, right)


class SampleReseeds(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        if generator is not None:
            generator.manual_seed(7)
        return super().sample(shape, generator=generator, dtype=dtype)


class SampleIgnoresDtypeDefault(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        return super().sample(shape, generator=generator, dtype=dtype or torch.float64)


class MaximisesSparse(Ball):
    def lmo(self, gradient):
        found = super().lmo(gradient)
        return -found if sp.issparse(gradient) else found


class MaximisesSparseTensors(Ball):
    def lmo(self, gradient):
        found = super().lmo(gradient)
        sparse = isinstance(gradient, torch.Tensor) and gradient.is_sparse
        return -found if sparse else found


class LargerSpectralForm(lo.SchattenBall):
    """Certificates and exports are made for twice the radius."""

    def as_spectral(self, op):
        return op, lo.SchattenBall(self.p, 2 * self.radius, self.rank)


class SpectralFormOfHalf(lo.SchattenBall):
    def as_spectral(self, op):
        return 0.5 * op, lo.SchattenBall(self.p, self.radius, self.rank)


class IgnoresRtol(Ball):
    def contains(self, op, *, rtol=None):
        return super().contains(op)


class AbsoluteRtol(lo.SchattenBall):
    """Compares the excess with rtol, not with rtol times the unit."""

    def contains(self, op, *, rtol=None):
        return super().contains(op, rtol=None if rtol is None else rtol / self.unit(op))


class SeedsGlobally(Ball):
    def project(self, op):
        torch.manual_seed(0)
        return super().project(op)


class WritesToGradient(Ball):
    def lmo(self, gradient):
        found = super().lmo(gradient)
        if isinstance(gradient, torch.Tensor):
            gradient.clamp_(min=0)
        return found


def nuclear(kind):
    """Return a factory of nuclear balls of radius three."""

    def make(rank):
        return kind(1.0, 3.0, rank)

    make.__name__ = kind.__name__
    return make


# (factory, law that must notice)
BROKEN_SET_VIEWS = [
    (SamplesInside, "kinds"),
    (SamplesOnBoundary, "kinds"),
    (SamplesOnAxes, "kinds"),
    (SampleReseeds, "samples"),
    (SampleIgnoresDtypeDefault, "contract"),
    (MaximisesSparse, "lmo"),
    (MaximisesSparseTensors, "lmo"),
    (nuclear(LargerSpectralForm), "views"),
    (nuclear(SpectralFormOfHalf), "views"),
    (IgnoresRtol, "membership"),
    (nuclear(AbsoluteRtol), "membership"),
    (SeedsGlobally, "purity"),
    (WritesToGradient, "purity"),
]
