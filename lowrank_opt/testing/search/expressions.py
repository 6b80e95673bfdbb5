"""Values as Python expressions, with the imports that a program needs for them."""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator

# Objects that take more bytes are no expressions to read.
_MAX_PICKLED = 4000


@dataclass(frozen=True)
class Expression:
    """A value, written out.

    Parameters
    ----------
    code : str
        A Python expression.
    imports : tuple of str
        The lines it needs before, without repetitions.
    """

    code: str
    imports: tuple[str, ...] = ()


def expression(value: object) -> Expression | None:
    """Return an expression for a value, or None if something in it has no importable name.

    Written out are numbers, strings, tensors, containers of them, classes and functions with a
    name in a module, and `functools.partial` of those.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> expression(partial(NBLoRA, radius=float("inf"))).code
    'partial(NBLoRA, radius=float("inf"))'
    """
    match value:
        case partial():
            return _partial(value)
        case Tensor():
            return Expression(tensor_code(value), ("import torch",))
        case float() if not math.isfinite(value):
            return Expression(f'float("{value}")')
        case torch.dtype():
            return Expression(str(value), ("import torch",))
        case list() | tuple():
            return _sequence(cast("Sequence[object]", value))
        case dict():
            return _mapping(cast("Mapping[object, object]", value))
        case None | bool() | int() | float() | str() | bytes():
            return Expression(repr(value))
        case type():
            return _named(value)
        case _ if is_dataclass(value):
            return _record(value) or _pickled(value)
        case _:
            return _named(value) or _pickled(value)


def tensor_code(x: Tensor) -> str:
    """Return an expression of a tensor's exact values, one row a line."""
    values, dtype = x.detach().cpu().tolist(), x.dtype
    if x.ndim != 2 or len(values) < 2:
        return f"torch.tensor({_number_code(values)}, dtype={dtype})"
    rows = ",\n    ".join(_number_code(row) for row in values)
    return f"torch.tensor([\n    {rows},\n], dtype={dtype})"


def operator_code(op: LowRankOperator) -> str:
    """Return an expression of an operator's exact factors, on one line."""
    parts = (
        f"torch.tensor({_number_code(x.detach().cpu().tolist())}, dtype={x.dtype})" for x in op
    )
    return f"LowRankOperator({', '.join(parts)})"


def _number_code(values: object) -> str:
    text = repr(values)
    return text.replace("nan", 'float("nan")').replace("inf", 'float("inf")')


def _partial(value: partial[object]) -> Expression | None:
    inner = expression(value.func)
    words = [expression(a) for a in value.args]
    named = {k: expression(v) for k, v in value.keywords.items()}
    parts = [inner, *words, *named.values()]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    code = [p.code for p in known[: 1 + len(words)]]
    code += [f"{k}={v.code}" for k, v in named.items() if v is not None]
    return Expression(
        f"partial({', '.join(code)})", _united(("from functools import partial",), known)
    )


def _sequence(values: Sequence[object]) -> Expression | None:
    parts = [expression(v) for v in values]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    inside = ", ".join(p.code for p in known)
    comma = "," if isinstance(values, tuple) and len(values) == 1 else ""
    opened, closed = ("(", ")") if isinstance(values, tuple) else ("[", "]")
    return Expression(f"{opened}{inside}{comma}{closed}", _united((), known))


def _mapping(values: Mapping[object, object]) -> Expression | None:
    pairs = [(expression(k), expression(v)) for k, v in values.items()]
    known = [(k, v) for k, v in pairs if k is not None and v is not None]
    if len(known) < len(pairs):
        return None
    inside = ", ".join(f"{k.code}: {v.code}" for k, v in known)
    return Expression(f"{{{inside}}}", _united((), [x for pair in known for x in pair]))


def _record(value: object) -> Expression | None:
    """Return the construction of a dataclass from its fields."""
    kind = _named(type(value))
    found = [(f.name, expression(getattr(value, f.name))) for f in fields(cast("Any", value))]
    parts = [(name, part) for name, part in found if part is not None]
    if kind is None or len(parts) < len(found):
        return None
    try:
        accepted = inspect.signature(type(value)).parameters
    except (TypeError, ValueError):
        return None
    if not all(name in accepted for name, _ in parts):
        return None
    words = ", ".join(f"{name}={part.code}" for name, part in parts)
    return Expression(f"{kind.code}({words})", _united((), [kind, *(p for _, p in parts)]))


def _pickled(value: object) -> Expression | None:
    """Return an expression for an object that is no code but travels as bytes."""
    if isinstance(value, ModuleType | FunctionType):
        return None
    kind = _named(type(value))
    try:
        data = pickle.dumps(value)
    except Exception:
        return None
    if kind is None or len(data) > _MAX_PICKLED:
        return None
    return Expression(f"pickle.loads({data!r})", _united(("import pickle",), [kind]))


def _named(value: object) -> Expression | None:
    name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", "")
    if module == "__main__":
        return _of_main(name)
    if not name or "<" in name or not _leads_to(value, module, name):
        return None
    line = f"from {module} import {name.partition('.')[0]}"
    return Expression(name, (*_path_lines(module), line))


def _leads_to(value: object, module: str, name: str) -> bool:
    """Whether a name is that of the object: classes made by functions have names that are not."""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value or (isinstance(value, MethodType) and found == value)


def _of_main(name: str) -> Expression | None:
    """Return the import of a name of the running script, by the name of its file."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or "<" in name or not Path(file).stem.isidentifier():
        return None
    path = Path(file).resolve()
    lines = ("import sys", f"sys.path.insert(0, {str(path.parent)!r})")
    return Expression(name, (*lines, f"from {path.stem} import {name.partition('.')[0]}"))


def _united(first: tuple[str, ...], parts: Iterable[Expression]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *(line for part in parts for line in part.imports)]))


def _path_lines(module: str) -> tuple[str, ...]:
    """Return the lines without which a module that is not installed cannot be imported."""
    top = module.partition(".")[0]
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or top in sys.stdlib_module_names or top in _installed():
        return ()
    path = Path(file).resolve()
    depth = module.count(".") + (path.name == "__init__.py")
    return ("import sys", f"sys.path.insert(0, {str(path.parents[depth])!r})")


@lru_cache(maxsize=1)
def _installed() -> frozenset[str]:
    return frozenset(importlib.metadata.packages_distributions()) | {"lowrank_opt"}
