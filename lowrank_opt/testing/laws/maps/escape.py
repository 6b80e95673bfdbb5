"""An optimizer that wants to leave the set, and cannot."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import SpectralSet
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import Chart
from lowrank_opt.testing.cases.oracle import Array, dense, is_finite
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

_STEPS = 20
_LEARNING_RATE = 0.4
# At zero singular values a norm has no gradient.
_NOT_ZERO = 1e-30
# Singular values of parallel columns, relative to the largest: rounding only.
_PARALLEL = 1e-6


def _escape(subject: Subject) -> None:
    module = subject.module()
    chart = subject.chart(module)
    if not chart.bounded or not isinstance(chart.core, SpectralSet):
        raise NotApplicable("the set is not a bounded set of singular values")
    together = subject.case.parameters.structure == "parallel"
    optimizer = _optimizer(module, together=together)
    for step in range(_STEPS):
        op = module.factors()
        expect(is_finite(op), f"after {step} steps towards the boundary the factors are not finite")
        W = dense(op)
        excess = chart.excess(W)
        allowed = chart.tolerance(W, subject.dtype, module.feasible_set.rank)
        expect(
            excess <= allowed,
            f"after {step} steps of Adam towards larger norms, W leaves the set by {excess:.3e}; "
            f"rounding explains {allowed:.1e}",
        )
        _step(op, optimizer, _outwards(chart, chart.core, W, together=together))


def _optimizer(module: Parameterization, *, together: bool) -> torch.optim.Optimizer:
    """Return Adam; for columns that are to stay parallel, steps along the gradient itself."""
    if together:
        return torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.8)
    # In half precision Adam's own 1e-8 is zero, and so may a gradient be.
    tiny = max(torch.finfo(p.dtype).tiny for p in module.parameters())
    return torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE, eps=max(1e-8, tiny))


def _outwards(chart: Chart, core: SpectralSet, W: Array, *, together: bool) -> Array:
    """Return a direction in which the excess of W grows, shape (m, n).

    `together` keeps to the leading singular vectors: parallel columns stay parallel.
    """
    U, sigma, Vh = np.linalg.svd(chart.pull(W), full_matrices=False)
    k = min(core.rank, len(sigma))
    values = torch.tensor(sigma[:k] + _NOT_ZERO, requires_grad=True)
    (slope,) = torch.autograd.grad(core.singular_value_excess(values), values)
    used = slope.numpy() * (sigma[:k] > _PARALLEL * sigma[0]) if together else slope.numpy()
    direction = (U[:, :k] * used) @ Vh[:k]
    return chart.push(direction) - chart.push(np.zeros_like(direction))


def _step(op: LowRankOperator, optimizer: torch.optim.Optimizer, direction: Array) -> None:
    left, scale, right = op
    G = torch.from_numpy(direction.copy()).to(left)
    optimizer.zero_grad()
    # <G, W>, with the factors of W.
    (-((G @ right) * (left * scale).to(left.dtype)).sum()).backward()
    optimizer.step()


_SHOW = """
print("excess at the start:", W.feasible_set.excess(W.factors().detach()))
# The check takes steps of Adam from here, towards larger norms.
"""
check_escape: Law[Subject] = Law(
    "escape",
    "An optimizer that climbs the norm of W stays in the set.",
    _escape,
    parameters=(
        FreeParameters("normal"),
        FreeParameters("normal", (10.0,)),
        FreeParameters("parallel"),
    ),
    sides=(2, 6),
    max_examples=4,
    show=_SHOW,
    needs=("contract", "membership", "smoothness"),
)
LAWS = (check_escape,)
