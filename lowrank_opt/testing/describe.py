"""Names of factories, and counter-examples as code that runs."""

from __future__ import annotations

import inspect
from functools import partial

import torch

from lowrank_opt.testing.case import Factory, Subject

# Parameters with more entries are named by their seed alone.
_MAX_PRINTED = 12


def describe(make: Factory) -> str:
    """Return a short readable name, e.g. ``NBLoRA(radius=3.0)``.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> describe(partial(NBLoRA, radius=3.0))
    'NBLoRA(radius=3.0)'
    """
    if not isinstance(make, partial):
        return getattr(make, "__name__", type(make).__name__)
    words = [_short(a) for a in make.args] + [f"{k}={_short(v)}" for k, v in make.keywords.items()]
    return f"{describe(make.func)}({', '.join(words)})"


def counter_example(subject: Subject, law: str) -> str:
    """Return lines of Python that rebuild the case, show it and run the check on it alone."""
    options = f"dtype={subject.dtype}, device={str(subject.device)!r}"
    lines = [
        "import torch",
        f"from lowrank_opt.testing import Case, FreeParameters, Member, check_{law}",
        *_factory_lines(subject.make),
        f"case = {subject.case!r}",
        f"W = case.build(make, {options})",
        *_parameter_lines(subject),
        f"check_{law}(make, case=case, {options})",
    ]
    return "\n".join(lines)


def _factory_lines(make: Factory) -> list[str]:
    inner = make.func if isinstance(make, partial) else make
    name, module = getattr(inner, "__qualname__", ""), getattr(inner, "__module__", "")
    if not name.isidentifier():
        return [f"make = ...  # {name or type(make).__name__} of {_place(inner) or module}"]
    lines = [f"from {module} import {name}"]
    if not isinstance(make, partial):
        return [*lines, f"make = {name}"]
    words = [repr(a) for a in make.args] + [f"{k}={_code(v)}" for k, v in make.keywords.items()]
    return [
        "from functools import partial",
        *lines,
        f"make = partial({', '.join([name, *words])})",
    ]


def _parameter_lines(subject: Subject) -> list[str]:
    try:
        parameters = dict(subject.module().named_parameters())
    except Exception:
        return []
    if sum(p.numel() for p in parameters.values()) > _MAX_PRINTED:
        return []
    return [f"# W.{name} = {p.tolist()}" for name, p in parameters.items()]


def _code(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(value)


def _short(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    return getattr(value, "__name__", repr(value))


def _place(function: object) -> str:
    try:
        _, line = inspect.getsourcelines(function)  # pyright: ignore[reportArgumentType]
        return f"{inspect.getsourcefile(function)}, line {line}"  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):
        return ""
