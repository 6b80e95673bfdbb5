"""Sets of turned weights, sound ones and such with one defect each, and who must notice."""

import torch

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.linalg import rotation, skew_matrices, skew_of_turn, turn_between

RADIUS = 1.2


def weight(shape, dtype):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def turned(shape, rank, *, dtype, kind=lo.OrthogonalSet):
    """Return rotations within a radius, in blocks if there can be, or products of reflections."""
    W0 = weight(shape, dtype)
    if rank % 2 == 0:
        return kind(W0, directions=rank)
    return kind(W0, RADIUS, 2 if shape[1] % 4 == 0 else 1)


class SingularValuesOnly(lo.OrthogonalSet):
    """The box that the set was declared as before: necessary, far from sufficient."""

    def excess(self, op):
        return self.box.excess(op)


class AnyDistance(lo.OrthogonalSet):
    """Forgets the radius: lengths and angles of the rows alone."""

    def excess(self, op):
        return lo.OrthogonalSet(self.weight, 2.0, self.blocks).excess(op)


class OneBlock(lo.OrthogonalSet):
    """Lets rotations mix the blocks."""

    def sample(self, shape, *, generator=None, dtype=None):
        return lo.OrthogonalSet(self.weight, self.radius).sample(
            shape, generator=generator, dtype=dtype
        )


class CutsAnglesOff(lo.OrthogonalSet):
    """A member near the nearest rotation of all, not the nearest member."""

    def project(self, op):
        if self.radius == 2:
            return super().project(op)
        turns = []
        for A, T in self._parts(op):
            K = skew_of_turn(turn_between(A, T), "cayley", self.radius)
            turns.append(rotation(K, "cayley", self.radius))
        return self._turned(turns, op.dtype)


class TurnsAsFarAsItMay(lo.OrthogonalSet):
    def sample(self, shape, *, generator=None, dtype=None):
        b = shape[1] // self.blocks
        entries = torch.randn(b * (b - 1) // 2, dtype=torch.float64, generator=generator)
        K = skew_matrices(entries / torch.linalg.matrix_norm(skew_matrices(entries, b), 2), b)
        return self._turned([rotation(K, "cayley", self.radius)] * self.blocks, dtype)


class Maximises(lo.OrthogonalSet):
    def lmo(self, gradient):
        return super().lmo(-1.0 * gradient)


class OutsideTheBall(lo.OrthogonalSet):
    """Adds R instead of R - I."""

    def project(self, op):
        return super().project(op) + lo.LowRankOperator.from_dense(self.weight.to(op.dtype))


def made(kind):
    def make(shape, rank, *, dtype):
        if kind is OneBlock and shape[1] % 4:
            raise ShapeError("the defect shows where there are blocks")
        return turned(shape, 1, dtype=dtype, kind=kind)

    make.__name__ = kind.__name__
    return make


# (factory, law that must notice)
BROKEN_TURNED_SETS = [
    (made(SingularValuesOnly), "membership"),
    (made(AnyDistance), "membership"),
    (made(OneBlock), "samples"),
    (made(CutsAnglesOff), "projection"),
    (made(TurnsAsFarAsItMay), "kinds"),
    (made(Maximises), "lmo"),
    (made(OutsideTheBall), "projection"),
]
