"""Where an unbounded map may overflow: no program can keep a product of several huge numbers."""

from __future__ import annotations

import torch

from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.search.verdict import NotApplicable

# A product of as many parameters is asked to stay in the range of the dtype.
_FACTORS = 4


def excuse_overflow(subject: Subject, module: Parameterization) -> None:
    """Raise NotApplicable where an unbounded set leaves no way around inf.

    W of a bounded set is a number for every finite parameter, and has to be. W of an unbounded set
    may be a product of three or four parameters, which is not representable for huge ones.
    """
    if subject.chart(module).bounded:
        return
    limit = torch.finfo(subject.dtype).max ** (1 / _FACTORS)
    if any(float(p.detach().abs().amax()) > limit for p in module.parameters() if p.numel()):
        raise NotApplicable(f"a product of {_FACTORS} parameters is beyond {subject.dtype}")
