"""What may be allocated: factors, never the matrix."""

from __future__ import annotations

from contextlib import suppress

import torch

from lowrank_opt.errors import DenseMaterializationError, NoRightInverseError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.dense_guard import forbid_dense
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import Violation


def _never_dense(subject: Subject) -> None:
    module, (m, n) = subject.module(), subject.case.shape
    stored = max(t.numel() for t in (*module.parameters(), *module.buffers()))
    if stored >= m * n:
        raise Violation(f"a parameter or buffer has {stored} elements for a {m} x {n} matrix")
    x, rows = subject.normal(4, n), torch.arange(min(m, n), device=subject.device)
    try:
        with forbid_dense((m, n)):
            op = module()
            (op.linear(x).sum() + op.entries(rows, rows).sum()).backward()
            module.certify()
            _invert(module)
            _start_at_zero(module)
            module.eval()().linear(x)
    except DenseMaterializationError as error:
        raise Violation(str(error)) from error


def _invert(module: Parameterization) -> None:
    with suppress(NoRightInverseError):
        module.right_inverse(module.factors().detach())


def _start_at_zero(module: Parameterization) -> None:
    with suppress(NotImplementedError):
        module.zero_()


_SHOW = """
from lowrank_opt.testing import forbid_dense

stored = max(x.numel() for x in (*W.parameters(), *W.buffers()))
print("largest stored tensor:", stored, "numbers; the matrix has", $m * $n)
with forbid_dense(W):
    W().linear(torch.ones(4, $n, dtype=$dtype)).sum().backward()
    W.certify()
"""
check_never_dense: Law[Subject] = Law(
    "never_dense",
    "Forward, backward, certificate, right inverse and zero start allocate no m x n numbers.",
    _never_dense,
    parameters=(FreeParameters("normal"),),
    sides=(80, 97),
    max_rank=3,
    max_examples=3,
    show=_SHOW,
    needs=("contract", "membership", "section"),
)
LAWS = (check_never_dense,)
