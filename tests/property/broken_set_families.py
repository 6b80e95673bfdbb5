"""Sets wrong in what is made from them, in long gradients, in frames, sizes and tolerances."""

import math
from dataclasses import replace

import torch

import lowrank_opt as lo
from tests.property.broken_set_views import nuclear
from tests.property.broken_sets import Ball, frobenius


class MaximisesWide(Ball):
    def lmo(self, gradient):
        found = super().lmo(gradient)
        return -found if gradient.shape[1] > 3 * gradient.shape[0] else found


class MaximisesFloat32(Ball):
    def lmo(self, gradient):
        found = super().lmo(gradient)
        return -found if gradient.dtype == torch.float32 else found


class Saturates(Ball):
    """The excess is never above one."""

    def excess(self, op):
        return min(1.0, super().excess(op))


class SaturatesInItsOwnWords(Ball):
    def singular_value_excess(self, values):
        return super().singular_value_excess(values).clamp_max(1.0)


class ForgivesAThousandth(Ball):
    def excess(self, op):
        found = super().excess(op)
        return 0.0 if found < 1e-3 else found


class ForgivesAMillionth(Ball):
    def excess(self, op):
        found = super().excess(op)
        return 0.0 if found < 1e-6 else found


class UnitOfMillions(Ball):
    """Compares the excess with a million times the size of the set."""

    def unit(self, op):
        return 1e6 * super().unit(op)


class SizeIsNotUnit(Ball):
    @property
    def size(self):
        return 3.0

    def unit(self, op):
        return 2.0


class SamplesOneRightFrame(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        left, scale, right = super().sample(shape, generator=generator, dtype=dtype)
        return lo.LowRankOperator(left, scale, torch.eye(*right.shape).to(right))


class SamplesOneRightSpace(Ball):
    """The right singular vectors turn, within the first axes."""

    def sample(self, shape, *, generator=None, dtype=None):
        op = super().sample(shape, generator=generator, dtype=dtype)
        k = op.rank
        turn = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64)).Q
        frame = torch.eye(*op.right.shape).to(op.right) @ turn.to(op.right)
        return lo.LowRankOperator(op.left, op.scale, frame)


class ScaledTooSmall(lo.SchattenBall):
    def scaled(self, factor):
        return super().scaled(factor if factor == 1 else 0.999 * factor)


class ScaledTooLarge(lo.SchattenBall):
    def scaled(self, factor):
        return super().scaled(factor if factor == 1 else 1.001 * factor)


class RankOfOneLess(lo.SchattenBall):
    def with_rank(self, rank):
        return super().with_rank(max(1, rank - 1))


class LargerWithRank(lo.SchattenBall):
    def with_rank(self, rank):
        return replace(super().with_rank(rank), radius=1.1 * self.radius)


class ShrinksWhenTruncated(lo.SchattenBall):
    def truncated(self, rank):
        return replace(self.with_rank(rank), radius=0.99 * self.radius)


class SmallBound(lo.SchattenBall):
    @property
    def frobenius_bound(self):
        return 0.999 * super().frobenius_bound


class LargeBound(lo.SchattenBall):
    @property
    def frobenius_bound(self):
        return 1.1 * super().frobenius_bound


class BoundOfOneValue(lo.SchattenBall):
    """The radius, as for p below two."""

    @property
    def frobenius_bound(self):
        return self.radius


class AverageTooSmall(lo.SchattenBall):
    def averaged(self, sets, weights, *, rank):
        found = super().averaged(sets, weights, rank=rank)
        return found.scaled(0.99)


class AverageOfSameNorms(lo.SchattenBall):
    """Takes the order of the first for that of all."""

    def averaged(self, sets, weights, *, rank):
        found = super().averaged(sets, weights, rank=rank)
        return replace(found, p=self.p) if isinstance(found, lo.SchattenBall) else found


class AverageTooLarge(lo.SchattenBall):
    def averaged(self, sets, weights, *, rank):
        found = super().averaged(sets, weights, rank=rank)
        return (
            self.resized(radius=1.01 * found.radius, rank=found.rank)
            if isinstance(found, lo.SchattenBall)
            else found
        )


class SidesOfTheLargest(lo.SchattenBall):
    """The largest radius, as if all norms were spectral."""

    def side_by_side(self, sets, sizes):
        found = super().side_by_side(sets, sizes)
        radii = (w * s.radius for s, w in zip(sets, sizes, strict=True))
        return None if found is None else replace(found, radius=max(radii))


class OnlyRank(Ball):
    @property
    def only_rank(self):
        return True


class ProjectsFloat32Inside(Ball):
    def project(self, op):
        found = super().project(op)
        return 0.9 * found if op.dtype == torch.float32 else found


class ScaleIsPositive(Ball):
    """Negative scales do not count."""

    def excess(self, op):
        return super().excess(lo.LowRankOperator(op.left, op.scale.clamp_min(0), op.right))


class ForgivesGradients(Ball):
    def excess(self, op):
        return 0.0 if op.left.requires_grad else super().excess(op)


class MaximisesHuge(Ball):
    """Gradients of a million are maximised."""

    def lmo(self, gradient):
        found, G = super().lmo(gradient), gradient
        huge = isinstance(G, torch.Tensor) and float(G.to_dense().abs().max()) > 1e6
        return -found if huge else found


class MaximisesRankOne(Ball):
    def lmo(self, gradient):
        found, G = super().lmo(gradient), gradient
        dense = isinstance(G, torch.Tensor) and not G.is_sparse and min(G.shape) > 1
        return -found if dense and int(torch.linalg.matrix_rank(G)) == 1 else found


class SamplesHalfOutside(Ball):
    def sample(self, shape, *, generator=None, dtype=None):
        found = super().sample(shape, generator=generator, dtype=dtype)
        return 3.0 * found if dtype == torch.bfloat16 else found


class ForgivesTails(Ball):
    """Values after the rank do not count if they are small."""

    def excess(self, op):
        values, k = op.singular_values(), self.rank
        tail = float(values[k]) if len(values) > k else 0.0
        return max(0.0, float(values[0]) - 2.0, tail if tail > 1e-4 else 0.0)


class HalvesWithoutWeight(lo.SchattenBall):
    def averaged(self, sets, weights, *, rank):
        found = super().averaged(sets, weights, rank=rank)
        return found if all(weights) else found.scaled(0.5)


def spectral(kind):
    """Return a factory of spectral balls of radius three."""

    def make(rank):
        return kind(math.inf, 3.0, rank)

    make.__name__ = kind.__name__
    return make


# (factory, law that must notice)
BROKEN_SET_FAMILIES = [
    (MaximisesWide, "long"),
    (MaximisesFloat32, "lmo"),
    (Saturates, "membership"),
    (SaturatesInItsOwnWords, "membership"),
    (ForgivesAThousandth, "membership"),
    (ForgivesAMillionth, "membership"),
    (UnitOfMillions, "membership"),
    (SizeIsNotUnit, "attributes"),
    (SamplesOneRightFrame, "kinds"),
    (SamplesOneRightSpace, "kinds"),
    (nuclear(ScaledTooSmall), "multiples"),
    (nuclear(ScaledTooLarge), "multiples"),
    (nuclear(RankOfOneLess), "ranks"),
    (nuclear(LargerWithRank), "ranks"),
    (frobenius(ShrinksWhenTruncated), "ranks"),
    (nuclear(SmallBound), "frobenius"),
    (frobenius(LargeBound), "frobenius"),
    (spectral(BoundOfOneValue), "frobenius"),
    (nuclear(AverageTooSmall), "averages"),
    (nuclear(AverageOfSameNorms), "averages"),
    (frobenius(AverageTooLarge), "averages"),
    (nuclear(SidesOfTheLargest), "side_by_side"),
    (OnlyRank, "attributes"),
    (ProjectsFloat32Inside, "long"),
    (ScaleIsPositive, "triples"),
    (ForgivesGradients, "triples"),
    (MaximisesHuge, "lmo"),
    (MaximisesRankOne, "lmo"),
    (SamplesHalfOutside, "samples"),
    (ForgivesTails, "rank"),
    (nuclear(HalvesWithoutWeight), "averages"),
]
