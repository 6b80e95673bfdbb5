"""Matrices, observations and parameterizations for the tests of kernels and completion."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lowrank_opt as lo
from lowrank_opt.observations import Observations
from tests.builders import normal as normal
from tests.builders import seeded as seeded


def observe(matrix: Tensor, share: float, *, weights: bool = False, seed: int = 1) -> Observations:
    m, n = matrix.shape
    cells = torch.randperm(m * n, generator=seeded(seed))[: round(share * m * n)]
    w = normal(len(cells), seed=seed).abs() + 0.1 if weights else None
    return Observations(cells // n, cells % n, matrix[cells // n, cells % n], (m, n), w)


def ball(shape: tuple[int, int], rank: int, radius: float) -> lo.HomogeneousBall:
    return lo.HomogeneousBall(shape, rank, radius=radius, dtype=torch.float64, generator=seeded())


def factored(shape: tuple[int, int], rank: int) -> lo.Factored:
    return lo.Factored(shape, rank, dtype=torch.float64, generator=seeded())


def tensors_in(tree: object) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class LargestAllocation(TorchDispatchMode):
    """Remembers the largest number of elements of any new tensor; views are not new."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in tensors_in((args, kwargs))}
        new = [x for x in tensors_in(out) if x.untyped_storage().data_ptr() not in old]
        self.numel = max([self.numel, *(x.numel() for x in new)])
        return out
