"""What to verify, named in text: ``package.module:Class(radius=3.0)``, ``file.py:Class``."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, cast

import torch

from lowrank_opt.errors import LowRankError, RankError, ShapeError, TargetError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.case import Case, Factory
from lowrank_opt.testing.cases.sets import set_trial
from lowrank_opt.testing.search.check import AnyLaw
from lowrank_opt.testing.subjects.operators import OPERATOR_LAWS
from lowrank_opt.testing.subjects.parameterizations import LAWS
from lowrank_opt.testing.subjects.sets import SET_LAWS

Sets: TypeAlias = Callable[..., FeasibleSet]
Operators: TypeAlias = Callable[..., LowRankOperator]

# Shapes and ranks at which a factory is tried before the laws are asked.
_PROBES = (((4, 3), 1), ((4, 3), 2), ((3, 3), 3), ((1, 1), 1), ((16, 16), 4))
_KINDS = (Parameterization, FeasibleSet, LowRankOperator)
_FORM = "package.module:Class, file.py:Class or package.module:Class(radius=3.0)"


@dataclass(frozen=True)
class Target:
    """A factory to verify.

    Parameters
    ----------
    name : str
        As it was written.
    make : callable
        ``make(shape, rank)`` returns what the laws are tried on.
    known : mapping from law to reason
        Laws that are known not to hold.
    listed : bool
        Whether the name is one of `lowrank_opt.testing.subjects.library`.
    laws : tuple of Law
        What is tried on it.
    """

    name: str
    make: object
    known: Mapping[str, str] = field(default_factory=dict[str, str])
    listed: bool = False
    laws: tuple[AnyLaw, ...] = field(default_factory=lambda: LAWS)


@dataclass(frozen=True)
class Reference:
    """The parts of a target's name.

    Parameters
    ----------
    module : str
        Dotted name, or path that ends with ``.py``.
    name : str
        Of the class or function, with dots for nested ones.
    options : mapping
        Keyword arguments of the constructor.
    """

    module: str
    name: str
    options: Mapping[str, object]


def parse_reference(text: str) -> Reference:
    """Return the parts of a target's name; arguments are literals, and nothing is evaluated.

    Raises
    ------
    TargetError
        If the text has another form, or an argument is no literal.

    Examples
    --------
    >>> parse_reference("shapes.balls:Ball(radius=3.0, p=inf)")
    Reference(module='shapes.balls', name='Ball', options={'radius': 3.0, 'p': inf})
    """
    head, opened, inside = text.strip().partition("(")
    module, _, name = head.strip().rpartition(":")
    parts = name.split(".")
    if not module or not all(part.isidentifier() for part in parts):
        raise TargetError(f"a target must have the form {_FORM}; got {text!r}")
    return Reference(module, name, _options(f"f({inside}", text) if opened else {})


def load_target(text: str, *, directory: Path | None = None) -> Target:
    """Import what a name stands for and return it as a target, with the laws of its kind.

    Parameterizations, and functions ``make(shape, rank)`` that return them; feasible sets, as
    classes or as instances; classes derived from `LowRankOperator`.

    Parameters
    ----------
    text : str
        ``package.module:Class``, ``file.py:Class``, either with keyword arguments in brackets.
    directory : Path, optional
        Searched for modules first, and the folder of relative paths; the current one by default.

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
    reference = parse_reference(text)
    module = _import(reference.module, Path.cwd() if directory is None else directory)
    found = _attribute(module, reference.name)
    if isinstance(found, FeasibleSet):
        return Target(text, found, laws=SET_LAWS)
    make = partial(found, **reference.options) if reference.options else found
    if _is_a(found, LowRankOperator):
        return Target(text, make, laws=OPERATOR_LAWS)
    if _is_a(found, FeasibleSet):
        return _set_target(text, found, cast("Sets", make))
    _check_factory(text, found, make)
    return Target(text, make)


def _is_a(found: object, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


def _set_target(text: str, found: object, make: Sets) -> Target:
    if inspect.isabstract(found):
        raise TargetError(f"a target must define all methods of a set; {text!r} is abstract")
    target = Target(text, make, laws=SET_LAWS)
    try:
        _ = set_trial(make, Case((4, 3), 2), torch.float64, torch.device("cpu")).feasible_set
    except (TypeError, LowRankError) as error:
        raise TargetError(
            f"make(rank) must be enough to build the set {text!r}; got {type(error).__name__}: "
            f"{error}: give the arguments, as in Class(radius=3.0), or a function make(rank)"
        ) from None
    return target


def _options(call: str, text: str) -> dict[str, object]:
    try:
        parsed = ast.parse(call, mode="eval").body
    except SyntaxError as error:
        raise TargetError(f"arguments must be Python literals in brackets; got {text!r}") from error
    assert isinstance(parsed, ast.Call), "the text is a call by construction"
    if parsed.args or any(word.arg is None for word in parsed.keywords):
        raise TargetError(f"arguments must be given by name, as in {_FORM}; got {text!r}")
    return {str(word.arg): _literal(word.value, text) for word in parsed.keywords}


class _Infinity(ast.NodeTransformer):
    """Writes the names inf and nan as numbers, which have no literal."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        numbers = {"inf": math.inf, "nan": math.nan}
        return ast.Constant(numbers[node.id]) if node.id in numbers else node


def _literal(node: ast.expr, text: str) -> object:
    try:
        return ast.literal_eval(_Infinity().visit(node))
    except ValueError:
        raise TargetError(
            f"arguments must be literals such as 3.0, [1, 2] or 'qr'; got {ast.unparse(node)!r} in "
            f"{text!r}: write a function make(shape, rank) and verify that"
        ) from None


def _import(name: str, directory: Path) -> ModuleType:
    base, dotted = _located(name, directory) if name.endswith(".py") else (directory, name)
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{dotted}.".startswith(f"{error.name}."):
            raise TargetError(
                f"there is no module {error.name!r} in {base} or on the path; check the name, "
                "change to its folder or install it"
            ) from None
        raise _import_failed(dotted, error) from error
    except Exception as error:
        raise _import_failed(dotted, error) from error


def _located(name: str, directory: Path) -> tuple[Path, str]:
    """Return the folder from which a file is imported, and its dotted name there."""
    path = (directory / name).resolve()
    if not path.is_file():
        raise TargetError(f"there is no file {path}; check the path")
    parts, base = [path.stem], path.parent
    while (base / "__init__.py").is_file():
        parts, base = [base.name, *parts], base.parent
    return base, ".".join(parts).removesuffix(".__init__")


def _import_failed(name: str, error: Exception) -> TargetError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    reason = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return TargetError(f"importing {name} failed with {type(error).__name__}: {reason}{place}")


def _attribute(module: ModuleType, name: str) -> Factory | FeasibleSet:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(f"{module.__name__} has no {name!r}; {_suggestion(module, name)}")
        found = getattr(found, part)
    if isinstance(found, FeasibleSet) or any(_is_a(found, kind) for kind in _KINDS):
        return cast("Factory", found)
    if isinstance(found, type) or not callable(found) or isinstance(found, Parameterization):
        kind = "" if isinstance(found, type) else f", an instance of {type(found).__name__}"
        raise TargetError(
            "a target must be a Parameterization, a FeasibleSet, a LowRankOperator or a function "
            f"make(shape, rank); "
            f"got {name}{kind}; {_suggestion(module, name)}"
        )
    return cast("Factory", found)


def _suggestion(module: ModuleType, name: str) -> str:
    classes = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, _KINDS) and not inspect.isabstract(value)
    ]
    near = difflib.get_close_matches(name, classes, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(classes[:8])}" if classes else "it has none of these"


def _check_factory(text: str, found: Factory, make: Factory) -> None:
    """Refuse what can never give a parameterization, whatever the shape."""
    if inspect.isabstract(found):
        raise TargetError(f"a target must define factors(); {text!r} is abstract")
    try:
        inspect.signature(make).bind((4, 3), 2)
    except TypeError as error:
        raise TargetError(
            f"make(shape, rank) must be enough to build {text!r}; got TypeError: {error}: give the "
            "arguments, as in Class(radius=3.0), or a function make(shape, rank)"
        ) from None
    except ValueError:
        return
    _probe(text, make)


def _probe(text: str, make: Factory) -> None:
    refusal: LowRankError | None = None
    for shape, rank in _PROBES:
        try:
            made: object = make(shape, rank)
        except LowRankError as error:
            refusal = error if refusal is None or not _about_size(error) else refusal
            continue
        except Exception:
            # A defect of the class: the law `contract` reports it, with a counter-example.
            return
        if not isinstance(made, Parameterization):
            raise TargetError(
                f"make(shape, rank) must return a Parameterization; {text!r} returned "
                f"{type(made).__name__}"
            )
        return
    if refusal is not None and not _about_size(refusal):
        raise TargetError(f"{text!r} cannot be built: {refusal}")


def _about_size(error: LowRankError) -> bool:
    return isinstance(error, (ShapeError, RankError))
