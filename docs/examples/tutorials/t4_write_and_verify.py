"""
Write your own parameterization, and have it verified
=====================================================

You have a formula that keeps a matrix in a set. Here it becomes a class that trains, completes and adapts like the built-in
ones, and a suite of laws looks for what is wrong with it.
"""

# %%
# The map
# -------
# A ball in the Frobenius norm: the product of two factors, divided by their sizes. One method gives the factors, one
# property the set.

import torch
from torch import nn

import lowrank_opt as lo


class FirstTry(lo.Parameterization):
    def __init__(self, shape: tuple[int, int], rank: int, *, radius: float = 1.0) -> None:
        super().__init__(shape, rank)
        self.radius = radius
        self.left = nn.Parameter(torch.zeros(shape[0], rank))
        self.right = nn.Parameter(torch.randn(shape[1], rank))

    @property
    def feasible_set(self) -> lo.FeasibleSet:
        return lo.SchattenBall(p=2, radius=self.radius, rank=self.rank)

    def factors(self) -> lo.LowRankOperator:
        size = self.left.norm() * self.right.norm()  # at least the norm of the product
        return lo.LowRankOperator(self.left, (self.radius / size).expand(self.rank), self.right)


# %%
# The laws
# --------
# ``check_membership`` draws parameters of every size and shape, looks at where they lead, and prints the smallest case that
# leads out, as a program.

from lowrank_opt.testing import BrokenLawError, check_membership

try:
    check_membership(FirstTry, profile="quick")
except BrokenLawError as error:
    print(error)

# %%
# Zero has no direction: the start is not finite. A second try divides by the size only where it is above one. The power of
# two that ``scale_to_unit_peak`` divides by, exactly, keeps the squares of huge numbers from overflowing.

from lowrank_opt.linalg import working_dtype


class Ball(FirstTry):
    def factors(self) -> lo.LowRankOperator:
        left, right = (x.to(working_dtype(x)) for x in (self.left, self.right))
        peaks = [x.abs().amax().clamp(min=1.0) for x in (left, right)]
        left, right = (x / peak for x, peak in zip((left, right), peaks, strict=True))
        size = (left.norm() * right.norm()).clamp(min=1 / peaks[0] / peaks[1])
        left, right = left.to(self.left.dtype), right.to(self.left.dtype)
        return lo.LowRankOperator(
            left, (self.radius / size).to(left.dtype).expand(self.rank), right
        )

    def right_inverse(self, target: lo.LowRankOperator) -> dict[str, torch.Tensor]:
        u, sigma, v = self.svd_of(target)
        return {"left": u * sigma / self.radius, "right": v}


check_membership(Ball, profile="quick")
print("never leaves its ball")

# %%
# Does it reach every member? ``right_inverse`` claims so: parameters for a given matrix. Its law does not believe it.

from lowrank_opt.testing import check_section

try:
    check_section(Ball, profile="quick")
except BrokenLawError as error:
    print(str(error).splitlines()[0])

# %%
# Right: the sizes of *both* factors count, and ``v`` has norm :math:`\\sqrt r`. With singular values shared between the
# factors, :math:`\\|U\\Sigma^{1/2}\\|\\,\\|V\\Sigma^{1/2}\\|` is the nuclear norm, not the Frobenius norm: what this map
# fills is the *nuclear* ball. The laws found that the set was misnamed.


class NuclearBall(Ball):
    complete = True

    @property
    def feasible_set(self) -> lo.FeasibleSet:
        return lo.SchattenBall(p=1, radius=self.radius, rank=self.rank)

    def right_inverse(self, target: lo.LowRankOperator) -> dict[str, torch.Tensor]:
        u, sigma, v = self.svd_of(target)
        root = (sigma / self.radius).sqrt()
        return {"left": u * root, "right": v * root}


check_section(NuclearBall, profile="quick")
print("reaches every member")

# %%
# More laws at once. Without ``only`` all of them: that of derivatives then stops at parameters where ``clamp`` has its
# kink, which this map does have. ``parametrize_with_checks`` does the same inside pytest.

from lowrank_opt.testing import check_parameterization

laws = ["membership", "rank", "section", "completeness", "never_dense", "copies"]
for verdict in check_parameterization(NuclearBall, profile="quick", only=laws):
    print(verdict.check, verdict.status)

# %%
# Use it
# ------

generator = torch.Generator().manual_seed(0)
truth = torch.randn(30, 2, generator=generator) @ torch.randn(2, 20, generator=generator)
seen = torch.rand(30, 20, generator=generator) < 0.5
observations = lo.Observations.from_dense(truth.where(seen, torch.nan))
result = lo.complete(
    observations, NuclearBall((30, 20), 4, radius=60.0), bias=None, max_iterations=300
)
print(result.status.value, "nuclear norm", float(result.operator.schatten_norm(1)))
