"""Things named in text: ``package.module:Class(radius=3.0)``, ``file.py:Class``."""

from __future__ import annotations

import ast
import importlib
import math
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lowrank_opt.errors import TargetError

FORM = "package.module:Class, file.py:Class or package.module:Class(radius=3.0)"


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
        raise TargetError(f"a target must have the form {FORM}; got {text!r}")
    return Reference(module, name, _options(f"f({inside}", text) if opened else {})


def _options(call: str, text: str) -> dict[str, object]:
    try:
        parsed = ast.parse(call, mode="eval").body
    except SyntaxError as error:
        raise TargetError(f"arguments must be Python literals in brackets; got {text!r}") from error
    assert isinstance(parsed, ast.Call), "the text is a call by construction"
    if parsed.args or any(word.arg is None for word in parsed.keywords):
        raise TargetError(f"arguments must be given by name, as in {FORM}; got {text!r}")
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


def import_module(name: str, directory: Path) -> ModuleType:
    """Import a module by its dotted name or its path, or raise TargetError with the reason."""
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
