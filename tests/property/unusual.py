"""Sound parameterizations of unusual build, which no law may refuse."""

import numpy as np
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.linalg import normalize_columns


class Bare(lo.Parameterization):
    """No keywords, no right inverse, no zero start, incomplete."""

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        self.left = nn.Parameter(torch.randn(shape[0], rank))
        self.right = nn.Parameter(torch.randn(shape[1], rank))

    def factors(self):
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), self.right)


class Trilinear(Bare):
    """A product of three parameters: beyond any dtype where they are huge."""

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        self.gain = nn.Parameter(torch.randn(rank))

    def factors(self):
        return lo.LowRankOperator(self.left * self.gain, self.left.new_ones(self.rank), self.right)


class Buffers(Bare):
    """Integer and random buffers, one from NumPy's generator; one frozen parameter."""

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        self.register_buffer("order", torch.randperm(shape[0]))
        self.register_buffer("gains", torch.from_numpy(np.random.rand(rank)).float() + 0.5)  # noqa: NPY002
        self.frozen = nn.Parameter(torch.randn(rank), requires_grad=False)

    def factors(self):
        gains = self.gains + self.frozen
        return lo.LowRankOperator(self.left[self.order], gains, self.right)


class Symmetric(lo.Parameterization):
    """Square matrices only, both factors one parameter, under two names."""

    def __init__(self, shape, rank):
        if shape[0] != shape[1]:
            raise ShapeError(f"square matrices only; got {shape}")
        super().__init__(shape, rank)
        self.left = nn.Parameter(torch.randn(shape[0], rank))
        self.right = self.left

    def factors(self):
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), self.right)


class OwnUnboundedSet(lo.SpectralSet):
    def __init__(self, rank):
        self.rank = rank

    def singular_value_excess(self, values):
        return values.new_zeros(())

    def project_singular_values(self, values):
        return values


class InOwnSet(Bare):
    @property
    def feasible_set(self):
        return OwnUnboundedSet(self.rank)


class ExtraState(Bare):
    """Carries a note in its state dict that is no tensor."""

    def get_extra_state(self):
        return {"note": "first"}

    def set_extra_state(self, state):
        assert state["note"] == "first"


class OneColumnMore(Bare):
    """More columns than its rank: the last one is zero."""

    def factors(self):
        left, right = (torch.cat((x, 0 * x[:, :1]), 1) for x in (self.left, self.right))
        return lo.LowRankOperator(left, left.new_ones(self.rank + 1), right)


class Containers(lo.Parameterization):
    """Parameters in containers and a number; a start without chance; an inverse with a past."""

    complete = True

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        self.named = nn.ParameterDict({"left": nn.Parameter(torch.zeros(shape[0], rank))})
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(shape[1])) for _ in range(rank)])
        self.gain = nn.Parameter(torch.ones(()))

    def factors(self):
        left, right = self.gain * self.named["left"], torch.stack(list(self.listed), 1)
        return lo.LowRankOperator(left, left.new_ones(self.rank), right)

    def right_inverse(self, target):
        U, sigma, V = self.svd_of(target)
        # The sizes stay where they were, within reason.
        size = self.listed[0].detach().double().norm().clamp(0.5, 2.0)
        rows = {f"listed.{k}": V[:, k] * size for k in range(self.rank)}
        return {"named.left": U * (sigma / size), "gain": torch.ones_like(self.gain), **rows}

    @torch.no_grad()
    def zero_(self, *, generator=None):
        self.named["left"].zero_()
        self.gain.fill_(1.0)
        for k, p in enumerate(self.listed):
            p.copy_(torch.linspace(k + 1, 1, len(p)))
        return self


class Kinked(Bare):
    """Not smooth where an entry is zero, as at its start, and not continuous where a column is."""

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        nn.init.zeros_(self.left)

    @property
    def feasible_set(self):
        return lo.SchattenBall(1, 1.0, self.rank)

    def factors(self):
        leaky = torch.relu(self.left.double()) + 0.1 * self.left.double()
        b, a = (normalize_columns(x) for x in (leaky, self.right.double().tril()))
        scale = b.new_full((self.rank,), (1 - 2.0**-50) / self.rank)
        return lo.LowRankOperator(b, scale, a).to(dtype=self.left.dtype)


class CompleteWithoutInverse(Bare):
    complete = True


UNUSUAL = [
    Bare,
    Trilinear,
    Buffers,
    Symmetric,
    InOwnSet,
    ExtraState,
    OneColumnMore,
    Containers,
    Kinked,
    CompleteWithoutInverse,
]
