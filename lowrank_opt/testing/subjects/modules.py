"""Modules of other packages: the laws of maps, on the weight that a module computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

from torch import nn

from lowrank_opt.errors import TargetError
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.foreign import ForeignTrial, Weight, foreign_subject, weight_of
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.check import AnyLaw, CheckOptions, check
from lowrank_opt.testing.search.verdict import CheckResult
from lowrank_opt.testing.subjects.parameterizations import LAWS

# What a module need not have: a zero start, an inverse, certificates, forward-mode derivatives.
_WITHOUT = frozenset(
    [
        *("zero_start", "section", "completeness", "assign", "export", "seen", "merge"),
        *("agreement", "never_dense", "certificate", "projection", "lmo", "derivatives"),
    ]
)
# Beyond, matrix exponentials and inverses of other packages leave the range of numbers.
_LARGEST = 1e2
_PROBE = (4, 3)


def module_laws(largest: float = _LARGEST) -> tuple[AnyLaw, ...]:
    """Return the laws of modules of other packages, at parameters up to a size."""
    return tuple(_moderate(law, largest) for law in LAWS if law.name not in _WITHOUT)


def _moderate(law: AnyLaw, largest: float) -> AnyLaw:
    kept = tuple(p for p in law.parameters if _within(p, largest))
    return replace(
        law,
        parameters=kept,
        free=law.free and math.isinf(largest),
        trial=foreign_subject,
        entry="check_module",
    )


def _within(parameters: FreeParameters, largest: float) -> bool:
    sizes = [size for size in parameters.magnitudes if size != 0]
    spread = parameters.structure.startswith("mixed")
    return math.isinf(largest) or (
        not spread and all(1 / largest <= size <= largest for size in sizes)
    )


MODULE_LAWS = module_laws()


def check_module(
    make: nn.Module | Callable[..., nn.Module],
    weight: Weight = "weight",
    feasible_set: FeasibleSet | Callable[..., FeasibleSet] | None = None,
    *,
    largest: float = _LARGEST,
    rtol: float | None = None,
    **options: Unpack[CheckOptions],
) -> list[CheckResult]:
    r"""Check the laws of maps on any module: torch's parametrizations, geotorch, layers of PEFT.

    The weight is asked to be in the set for all parameters, in both precisions, to have the
    derivatives that autograd says, and to be a function of parameters and buffers.

    Parameters
    ----------
    make : Module or callable
        ``make(shape, rank)`` or ``make(shape)`` returns a module whose weight is of that shape;
        ``make()``, or a module itself, is checked at its own shape. Shapes refused with a
        ValueError are left out.
    weight : str or callable
        Dotted name of the weight, or a function of the module. More than two axes are flattened
        to rows by all others.
    feasible_set : FeasibleSet or callable, optional
        The set that the weight is said to be in, or a function of the rank, or of shape and rank;
        by default the matrices of rank at most `rank`, or all if `make` takes no rank.
    largest : float
        Parameters are at most of this size, and at least of its inverse: matrix exponentials and
        inverses have no better range. ``math.inf`` asks for every finite parameter.
    rtol : float, optional
        Excess over the set that counts as rounding, relative to the set's size; by default the
        root of machine precision.
    **options
        ``profile``, ``dtype``, ``seed``, ``on_fail`` and others, as for `check_parameterization`.

    Returns
    -------
    list of CheckResult

    Raises
    ------
    BrokenLawError
        With the smallest counter-example.
    TargetError
        If what is made is no module or has no such weight, or an option is wrong.

    Examples
    --------
    >>> import math
    >>> from lowrank_opt import SchattenBall
    >>> def make(shape):
    ...     layer = nn.Linear(shape[1], shape[0], bias=False)
    ...     return nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley")
    >>> verdicts = check_module(
    ...     make,
    ...     feasible_set=lambda shape, rank: SchattenBall(math.inf, 1.0, min(shape)),
    ...     profile="quick",
    ...     only=["membership", "smoothness"],
    ... )
    >>> [v.status for v in verdicts]
    ['passed', 'passed']
    """
    trial = foreign_trial(make, weight, feasible_set, largest=largest, rtol=rtol)
    return check(module_laws(largest), trial, **options)


def foreign_trial(
    make: nn.Module | Callable[..., nn.Module],
    weight: Weight = "weight",
    feasible_set: FeasibleSet | Callable[..., FeasibleSet] | None = None,
    *,
    largest: float = _LARGEST,
    rtol: float | None = None,
) -> ForeignTrial:
    """Return what the laws of modules are tried on, or raise TargetError if it is no module."""
    given = {"weight": weight, "feasible_set": feasible_set, "largest": largest, "rtol": rtol}
    defaults = {"weight": "weight", "feasible_set": None, "largest": _LARGEST, "rtol": None}
    changed = {k: v for k, v in given.items() if v is not defaults[k] and v != defaults[k]}
    trial = ForeignTrial(make, weight, feasible_set, rtol, changed)
    if not isinstance(make, nn.Module) and not callable(make):
        raise TargetError(f"make must be a module or return one; got {type(make).__name__}")
    _probe(trial)
    return trial


def _probe(trial: ForeignTrial) -> None:
    """Raise TargetError for what can never be verified, whatever the shape."""
    given = None if trial.fixed else {"shape": _PROBE, "rank": 1}
    try:
        weight_of(trial.made(given), trial.weight)
    except TargetError:
        raise
    except AttributeError as error:
        raise TargetError(f"weight must name a tensor of the module: {error}") from None
    except Exception:
        # The law `contract` reports it, with a counter-example.
        return
