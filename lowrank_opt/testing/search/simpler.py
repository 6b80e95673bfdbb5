"""Cases that are easier to read than a counter-example: small, with plain numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from lowrank_opt.testing.cases.case import Case
from lowrank_opt.testing.cases.parameters import FreeParameters

_PLAIN = (
    FreeParameters("constant"),
    FreeParameters("one_hot"),
    *(FreeParameters("normal", seed=seed) for seed in range(3)),
)
_LARGEST = 3
_SEEDS = 3


def simpler_cases(case: Case, *, smallest: int = 1) -> Iterator[Case]:
    """Yield cases that are simpler than the given one, the simplest first.

    Shapes up to 3 x 3, parameters of ones, one-hot and normal, then the case's own with other
    seeds; the target's kind stays. Shrinking by Hypothesis keeps the kind of the parameters and
    can only lower their seed; these cases change it.

    Parameters
    ----------
    case : Case
    smallest : int
        Sides below are left out.

    Examples
    --------
    >>> next(simpler_cases(Case((2, 1), 1)))
    Case((1, 1), 1, FreeParameters('constant', (1.0,), seed=0))
    """
    own = [replace(case.parameters, seed=seed) for seed in range(_SEEDS)]
    fixed = case.parameters.structure in ("start", "zero")
    options = own if fixed else [*_PLAIN, *own]
    sizes = product(range(smallest, _LARGEST + 1), repeat=2)
    for m, n in sorted(sizes, key=lambda size: (sum(size), size)):
        for rank in range(1, min(m, n) + 1):
            for values in options:
                target = replace(case.target, seed=values.seed)
                candidate = Case((m, n), rank, values, target)
                if _complexity(candidate) < _complexity(case):
                    yield candidate


def same_kind(found: str, other: str) -> bool:
    """Whether two findings differ in numbers only.

    Examples
    --------
    >>> same_kind("W leaves the set by 1.0e-02", "W leaves the set by 3")
    True
    """
    return _without_numbers(found) == _without_numbers(other)


def _complexity(case: Case) -> tuple[int, int, int, int]:
    p = case.parameters
    plain = replace(p, seed=0)
    kinds = [replace(q, seed=0) for q in _PLAIN]
    kind = kinds.index(plain) if plain in kinds else len(kinds)
    return sum(case.shape), case.rank, kind, p.seed


def _without_numbers(text: str) -> str:
    return re.sub(r"[-+]?(\d[\w.+-]*|nan|inf)", "#", text)
