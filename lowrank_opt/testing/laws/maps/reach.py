"""Members that a map without a right inverse claims to reach: an optimizer goes and looks."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import dense
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Some maps come to their boundary only in the limit; maps that miss a part miss it by more.
_NEAR = 0.05
_STARTS = 6
# In turns, between which it may be near enough.
_STEPS, _TURNS = 15, 10
_LARGEST_SIDE = 8


def expect_reachable(subject: Subject, target: LowRankOperator) -> None:
    """Expect that L-BFGS, from one of several starts, comes near a member of the set."""
    W = dense(target)
    size = float(np.linalg.norm(W))
    if max(subject.case.shape) > _LARGEST_SIDE or not 1e-6 < size < 1e6:
        raise NotApplicable("no right inverse, and the case is too large for an optimizer")
    best = np.inf
    for start in range(_STARTS):
        best = min(best, _distance(subject, W, start) / size)
        if best <= _NEAR:
            return
    expect(
        False,
        f"complete is claimed without a right inverse, and L-BFGS from {_STARTS} starts came no "
        f"nearer to a member of the set than {best:.3g} times its norm",
    )


def _distance(subject: Subject, W: np.ndarray, start: int) -> float:
    """Return the smallest distance to a matrix that one run of L-BFGS finds."""
    module = subject.fresh(dtype=torch.float64, salt=start)
    if start % 2:
        FreeParameters(seed=1000 * start + subject.seed).fill_(module)
    goal, size = torch.from_numpy(W).to(subject.device), float(np.linalg.norm(W))
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(trainable, max_iter=_STEPS, line_search_fn="strong_wolfe")
    found = [np.inf]
    best = np.inf

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = _difference(module, goal).square().sum() / size**2
        value.backward()
        found.append(float(value.detach()))
        return value

    for _ in range(_TURNS):
        optimizer.step(loss)
        best = min((value for value in found if np.isfinite(value)), default=np.inf)
        if best <= _NEAR**2 or not np.isfinite(found[-1]):
            break
    return size * float(np.sqrt(best))


def _difference(module: Parameterization, goal: torch.Tensor) -> torch.Tensor:
    left, scale, right = module()
    return (left * scale).to(goal.dtype) @ right.mT.to(goal.dtype) - goal
