"""Feasible sets with one defect each, and who must notice."""

from dataclasses import dataclass, replace

import torch

import lowrank_opt as lo


@dataclass(frozen=True)
class Ball(lo.SpectralSet):
    """The sound spectral ball of radius two, from which defects are made."""

    rank: int

    def singular_value_excess(self, values):
        return values.amax() - 2.0

    def project_singular_values(self, values):
        return values.clamp_max(2.0)

    @property
    def typical_size(self):
        return 2.0


class Overshoots(Ball):
    def project_singular_values(self, values):
        return values.clamp_max(2.002)


class MovesMembers(Ball):
    def project_singular_values(self, values):
        return 0.999 * values.clamp_max(2.0)


class RadialInsteadOfNearest(Ball):
    def project_singular_values(self, values):
        return values * (2.0 / values.amax().clamp_min(2.0))


class IgnoresRank(Ball):
    def excess(self, op):
        return max(0.0, float(op.singular_values()[0]) - 2.0)


class OnePercentLoose(lo.SchattenBall):
    """excess() forgives one percent."""

    def excess(self, op):
        found = super().excess(op)
        return 0.0 if found < 0.01 * self.radius else found


class RelativeExcess(lo.SchattenBall):
    def excess(self, op):
        return super().excess(op) / self.radius


class ContainsNaN(Ball):
    def contains(self, op, *, rtol=None):
        return not self.excess(op) > 1e-9


class RefusesBoundary(Ball):
    def contains(self, op, *, rtol=None):
        return super().contains(op, rtol=rtol) and float(op.singular_values()[0]) < 1.99


class SampleOutside(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        return 1.01 * super().sample(shape, generator=generator, dtype=dtype)


class SampleIgnoresGenerator(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        return super().sample(shape, dtype=dtype)


class SampleInFloat32(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        return super().sample(shape, generator=generator, dtype=torch.float32)


class Maximises(Ball):
    def lmo(self, gradient):
        return -super().lmo(gradient)


class StopsInside(Ball):
    def lmo(self, gradient):
        return 0.99 * super().lmo(gradient)


class OneComponentOnly(Ball):
    """The oracle of the nuclear ball: a member, but not the best."""

    def lmo(self, gradient):
        op = super().lmo(gradient)
        scale = torch.where(torch.arange(op.rank) == 0, op.scale, 0.0)
        return lo.LowRankOperator(op.left, scale.to(op.scale), op.right)


class OverflowsInProjection(lo.SchattenBall):
    """Squares singular values of any size."""

    def project(self, op):
        U, sigma, V = op.thin_svd()
        k = min(self.rank, len(sigma))
        size = sigma[:k].square().sum().sqrt()
        values = sigma[:k] * (self.radius / size.clamp_min(self.radius))
        return lo.LowRankOperator(U[:, :k], values, V[:, :k])


class WritesToArgument(Ball):
    def project(self, op):
        op.scale.clamp_(max=2.0)
        return super().project(op)


def frobenius(kind):
    """Return a factory of Frobenius balls of radius three."""

    def make(rank):
        return replace(kind(2.0, 1.0, rank), radius=3.0)

    make.__name__ = kind.__name__
    return make


# (factory, law that must notice)
BROKEN_SETS = [
    (Overshoots, "projection"),
    (MovesMembers, "projection"),
    (RadialInsteadOfNearest, "projection"),
    (IgnoresRank, "rank"),
    (frobenius(OnePercentLoose), "membership"),
    (frobenius(RelativeExcess), "membership"),
    (ContainsNaN, "contract"),
    (RefusesBoundary, "membership"),
    (SampleOutside, "samples"),
    (SampleIgnoresGenerator, "samples"),
    (SampleInFloat32, "contract"),
    (Maximises, "lmo"),
    (StopsInside, "lmo"),
    (OneComponentOnly, "lmo"),
    (frobenius(OverflowsInProjection), "sizes"),
    (WritesToArgument, "purity"),
]
