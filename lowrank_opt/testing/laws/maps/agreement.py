"""One matrix, however it is applied; one map, however it is called; merging changes nothing."""

from __future__ import annotations

import torch

from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import dense, magnitude, to_array
from lowrank_opt.testing.cases.parameters import MODERATE, TAME
from lowrank_opt.testing.laws.views import SHOW_VIEWS, compare, expect_agreement, roundings
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect


@torch.no_grad()
def _agreement(subject: Subject) -> None:
    expect_agreement(subject, subject.module()())


def _merge(subject: Subject) -> None:
    module, (m, n) = subject.module(), subject.case.shape
    base, x = subject.normal(m, n, salt=3), subject.normal(n, salt=4)
    module.train()
    forward = base @ x + module().linear(x)
    module.eval()
    truth, size = dense(module.factors()), magnitude(module.factors())
    W, X = to_array(base), to_array(x)
    scale = (abs(W) + size) @ abs(X)
    compare(subject, "x W0^T + linear(x) while training", forward, (W + truth) @ X, scale)
    merged = base + module().to_dense()
    compare(subject, "x (W0 + dW)^T after merging", merged @ x, (W + truth) @ X, scale)
    restored = to_array(merged - module().to_dense()) - W
    drift, allowed = abs(restored).max(), roundings(subject) * (abs(W) + size).max()
    expect(drift <= allowed, f"merging and taking the merge back changes W0 by {drift:.1e}")


_SHOW_MERGE = """
op = W.train()().detach()
print("forward while training:", op.linear(torch.eye($n, dtype=$dtype)).mT.tolist())
op = W.eval()().detach()
print("merged:", op.to_dense().tolist())
print("product of the factors:", ((op.left * op.scale) @ op.right.mT).tolist())
"""
check_agreement: Law[Subject] = Law(
    "agreement",
    "@, mT, linear and entries are those of the dense product; <Wx, y> = <x, W^T y>.",
    _agreement,
    show=SHOW_VIEWS,
    parameters=MODERATE,
    needs=("contract",),
)
check_merge: Law[Subject] = Law(
    "merge",
    "A layer's forward with W0 and W apart equals that with W0 + W merged, while training too.",
    _merge,
    show=_SHOW_MERGE,
    parameters=TAME,
    needs=("contract", "agreement", "purity"),
)
LAWS = (
    check_agreement,
    check_merge,
)
