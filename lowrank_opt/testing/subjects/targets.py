"""What to verify, named in text, with the laws of its kind."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import nn

from lowrank_opt.completion import CompletionResult
from lowrank_opt.errors import LowRankError, RankError, ShapeError, TargetError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.case import Case, Factory
from lowrank_opt.testing.cases.sets import set_trial
from lowrank_opt.testing.search.check import AnyLaw
from lowrank_opt.testing.subjects.adapters import ADAPTER_LAWS, adapter_trial
from lowrank_opt.testing.subjects.modules import MODULE_LAWS, foreign_trial
from lowrank_opt.testing.subjects.operators import OPERATOR_LAWS
from lowrank_opt.testing.subjects.parameterizations import LAWS
from lowrank_opt.testing.subjects.references import (
    Reference,
    import_module,
    parse_reference,
)
from lowrank_opt.testing.subjects.sets import SET_LAWS
from lowrank_opt.testing.subjects.solvers import SOLVER_LAWS, solver_trial

Kind: TypeAlias = Literal["parameterization", "set", "operator", "adapter", "solver", "module"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Shapes and ranks at which a factory is tried before the laws are asked.
_PROBES = (((4, 3), 1), ((4, 3), 2), ((3, 3), 3), ((1, 1), 1), ((16, 16), 4))
_CLASSES = (Parameterization, FeasibleSet, LowRankOperator)
# What the message of a TypeError says when a call does not fit, whoever is called.
_MISFITS = ("unexpected keyword argument", "missing", "positional argument", "multiple values")


@dataclass(frozen=True)
class Target:
    """Something to verify.

    Parameters
    ----------
    name : str
        As it was written.
    make : object
        What the laws are tried on: for parameterizations ``make(shape, rank)``.
    known : mapping from law to reason
        Laws that are known not to hold.
    listed : bool
        Whether the name has a line in the table of methods.
    laws : tuple of Law
        What is tried on it.
    """

    name: str
    make: object
    known: Mapping[str, str] = field(default_factory=dict[str, str])
    listed: bool = False
    laws: tuple[AnyLaw, ...] = field(default_factory=lambda: LAWS)


def load_target(
    text: str,
    *,
    directory: Path | None = None,
    kind: Kind | None = None,
    weight: str | None = None,
    feasible_set: str | None = None,
) -> Target:
    """Import what a name stands for and return it as a target, with the laws of its kind.

    Parameters
    ----------
    text : str
        ``package.module:Class``, ``file.py:Class``, either with keyword arguments in brackets.
    directory : Path, optional
        Searched for modules first, and the folder of relative paths; the current one by default.
    kind : str, optional
        One of `KINDS`. By default what it is: parameterizations and functions
        ``make(shape, rank)`` that return them, feasible sets as classes or instances, classes
        derived from `LowRankOperator`, classes and objects of solvers, and functions of
        ``observations``, which are solvers too; modules
        of other packages if a `weight` is named. A parameterization is tried as an adapter if
        that is said.
    weight : str, optional
        Name of the weight of a module of another package.
    feasible_set : str, optional
        Name of the set of a module's weight or of a solver's results.

    Raises
    ------
    TargetError
        If there is no such module or name, if importing it fails, or if it is of no such kind or
        needs arguments that are not given.

    Examples
    --------
    >>> load_target("lowrank_opt:NBLoRA(radius=3.0)").make((4, 3), 2).feasible_set
    SchattenBall(p=inf, radius=3.0, rank=2)
    """
    folder = Path.cwd() if directory is None else directory
    reference = parse_reference(text)
    module = import_module(reference.module, folder)
    found = _attribute(module, reference.name)
    make = _with_options(found, reference)
    asked = kind or _kind_of(found, weight)
    declared = None if feasible_set is None else _set_of(feasible_set, folder)
    if asked == "module":
        named = "weight" if weight is None else weight
        made = foreign_trial(cast("Callable[..., nn.Module]", make), named, declared)
        return Target(text, made, laws=MODULE_LAWS)
    if asked == "solver":
        made = make() if isinstance(found, type) and callable(make) else make
        solve = cast("Callable[..., CompletionResult]", made)
        return Target(text, solver_trial(solve, declared), laws=SOLVER_LAWS)
    if asked == "set":
        return _set_target(text, found, make)
    if asked == "operator":
        return Target(text, make, laws=OPERATOR_LAWS)
    if asked is None:
        raise TargetError(_refusal(module, reference.name, found))
    _check_factory(text, found, cast("Factory", make))
    if asked == "adapter":
        return Target(text, adapter_trial(cast("Factory", make)), laws=ADAPTER_LAWS)
    return Target(text, make)


def _with_options(found: object, reference: Reference) -> object:
    if not reference.options:
        return found
    if not callable(found):
        raise TargetError(f"only what is called takes arguments; {reference.name} is not callable")
    return partial(found, **reference.options)


def _kind_of(found: object, weight: str | None) -> Kind | None:
    """Return the kind of a thing, None if it is none."""
    if weight is not None:
        return "module"
    if isinstance(found, FeasibleSet) or _is_a(found, FeasibleSet):
        return "set"
    if _is_a(found, LowRankOperator):
        return "operator"
    if _is_a(found, Parameterization):
        return "parameterization"
    if isinstance(found, Solver):
        # A class too: the protocol asks for members alone.
        return "solver"
    if isinstance(found, type | nn.Module) or not callable(found):
        return None
    return "solver" if _first_parameter(found) == "observations" else "parameterization"


def _first_parameter(make: Callable[..., object]) -> str:
    try:
        return next(iter(inspect.signature(make).parameters), "")
    except (TypeError, ValueError):
        return ""


def _is_a(found: object, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


def _set_of(text: str, folder: Path) -> FeasibleSet | Callable[..., FeasibleSet]:
    """Return the set, or the function of rank or shape and rank, that a name stands for."""
    reference = parse_reference(text)
    found = _attribute(import_module(reference.module, folder), reference.name)
    if not isinstance(found, FeasibleSet) and not callable(found):
        raise TargetError(f"a feasible set must be one or return one; got {text!r}")
    return cast("Callable[..., FeasibleSet]", _with_options(found, reference))


def _set_target(text: str, found: object, make: object) -> Target:
    if inspect.isabstract(found):
        raise TargetError(f"a target must define all methods of a set; {text!r} is abstract")
    try:
        _ = set_trial(make, Case((4, 3), 2), torch.float64, torch.device("cpu")).feasible_set
    except (TypeError, LowRankError) as error:
        raise TargetError(
            f"make(rank) must be enough to build the set {text!r}; got {type(error).__name__}: "
            f"{error}: give the arguments, as in Class(radius=3.0), or a function make(rank)"
        ) from None
    return Target(text, make, laws=SET_LAWS)


def _attribute(module: ModuleType, name: str) -> object:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(f"{module.__name__} has no {name!r}; {_suggestion(module, name)}")
        found = getattr(found, part)
    return found


def _refusal(module: ModuleType, name: str, found: object) -> str:
    instance = "" if isinstance(found, type) else f", an instance of {type(found).__name__}"
    if _is_a(found, nn.Module) or isinstance(found, nn.Module):
        return (
            f"{name} is a module and no Parameterization: name its weight, as in --weight weight, "
            "to verify the set that its weight is in"
        )
    return (
        "a target must be a Parameterization, a FeasibleSet, a LowRankOperator, a solver or a "
        f"function make(shape, rank); got {name}{instance}; {_suggestion(module, name)}"
    )


def _suggestion(module: ModuleType, name: str) -> str:
    classes = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, _CLASSES) and not inspect.isabstract(value)
    ]
    near = difflib.get_close_matches(name, classes, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(classes[:8])}" if classes else "it has none of these"


def _check_factory(text: str, found: object, make: Factory) -> None:
    """Refuse what can never give a parameterization, whatever the shape."""
    if inspect.isabstract(found):
        raise TargetError(f"a target must define factors(); {text!r} is abstract")
    try:
        inspect.signature(make).bind((4, 3), 2)
    except TypeError as error:
        raise _misfit(text, error) from None
    except ValueError:
        # A partial with arguments that do not fit has no signature: the call says why.
        pass
    _probe(text, make)


def _misfit(text: str, error: TypeError) -> TargetError:
    return TargetError(
        f"make(shape, rank) must be enough to build {text!r}; got TypeError: {error}: give the "
        "arguments, as in Class(radius=3.0), or a function make(shape, rank)"
    )


def _probe(text: str, make: Factory) -> None:
    refusal: LowRankError | None = None
    for shape, rank in _PROBES:
        try:
            made: object = make(shape, rank)
        except LowRankError as error:
            refusal = error if refusal is None or not _about_size(error) else refusal
            continue
        except TypeError as error:
            # Arguments that a constructor passes on, and that do not fit there.
            if any(word in str(error) for word in _MISFITS):
                raise _misfit(text, error) from None
            return
        except Exception:
            # A defect of the class: the law `contract` reports it, with a counter-example.
            return
        if not isinstance(made, Parameterization):
            raise TargetError(_no_parameterization(text, made))
        return
    if refusal is not None and not _about_size(refusal):
        raise TargetError(f"{text!r} cannot be built: {refusal}")


def _no_parameterization(text: str, made: object) -> str:
    what = f"make(shape, rank) must return a Parameterization; {text!r} returned "
    what += type(made).__name__
    module = isinstance(made, nn.Module)
    return what + (": name its weight, as in --weight weight, to verify that" if module else "")


def _about_size(error: LowRankError) -> bool:
    return isinstance(error, (ShapeError, RankError))
