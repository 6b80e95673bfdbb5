"""Counter-examples as programs: build the module, set its parameters, show what is violated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from string import Template
from textwrap import dedent
from typing import Any

from torch import Tensor

from lowrank_opt.testing.cases.case import Subject, Trial
from lowrank_opt.testing.search.expressions import Expression, expression, tensor_code

# What is shown of laws that have nothing of their own to show: of a parameterization, of the rest.
_SHOW_MAP = """
print("set:", W.feasible_set)
print("singular values of W:", W().singular_values().tolist())
"""
_SHOW_OTHER = """
print("checked:", make)
print("at:", case)
"""
# Parameters with more entries are filled by the case instead of being written out.
_MAX_PRINTED = 60


@dataclass(frozen=True)
class _Maker:
    """How a program gets hold of the factory.

    Parameters
    ----------
    imports : tuple of str
    code : str
        An expression; ``...`` where nothing importable names the factory.
    """

    imports: tuple[str, ...]
    code: str

    @property
    def is_unnamed(self) -> bool:
        """Whether the reader has to fill it in, on a line of its own."""
        return self.code.startswith("...")


def program(entry: str, law: str, trial: Trial[Any], found: str, show: str = "") -> str:
    """Return a program that shows what is violated, and checks the law there.

    It imports what was passed, shows the numbers that the law compares, and ends with the check of
    this one case, which raises `BrokenLawError`; whatever happens while showing, it gets there.

    Parameters
    ----------
    entry : str
        The function of `lowrank_opt.testing` that checks this kind of object.
    law : str
    trial : Trial
        The smallest counter-example.
    found : str
        What was found there.
    show : str
        A template of Python: see `Law`. By default what is checked, and for a parameterization
        its set and singular values.

    Returns
    -------
    str
        Python source. An object that no import and no expression gives appears as ``make = ...``.
    """
    written = getattr(trial.make, "written", trial.make)
    maker, options = _maker(written), _options(trial.make)
    lines = [
        f"# found: {' '.join(found.split())}" if found else "",
        *_imports(entry, [maker, *options.values()]),
        "",
        f"make = {maker.code}",
        *(f"{name} = {option.code}" for name, option in options.items() if option.is_unnamed),
        f"case = {trial.case!r}",
        *_shown(trial, show),
        "",
        "# The law on this example alone: raises BrokenLawError.",
        _call(entry, law, trial, options),
    ]
    return "\n".join(lines).strip()


def _call(entry: str, law: str, trial: Trial[Any], options: Mapping[str, _Maker]) -> str:
    words = [
        f"only=[{law!r}], case=case, dtype={trial.dtype}",
        *([] if str(trial.device) == "cpu" else [f"device={str(trial.device)!r}"]),
        *(f"{name}={name if m.is_unnamed else m.code}" for name, m in options.items()),
    ]
    return f"{entry}(make, {', '.join(words)})"


def _options(make: object) -> dict[str, _Maker]:
    """Return the options of the entry point that differ from its defaults, as expressions."""
    given: Mapping[str, object] = getattr(make, "options", {}) if hasattr(make, "written") else {}
    return {name: _maker(value) for name, value in given.items()}


def _imports(entry: str, makers: Sequence[_Maker]) -> list[str]:
    ours = f"from lowrank_opt.testing import Case, FreeParameters, Member, {entry}"
    return list(dict.fromkeys(["import torch", ours, *(x for m in makers for x in m.imports)]))


def _shown(trial: Trial[Any], show: str) -> list[str]:
    """Return the lines that show what is violated, and go on when they fail."""
    subject = trial if isinstance(trial, Subject) else None
    show = show or (_SHOW_OTHER if subject is None else _SHOW_MAP)
    m, n = trial.case.shape
    values: dict[str, object] = {"m": m, "n": n, "dtype": trial.dtype, "seed": trial.seed}
    if subject is not None:
        values["fresh"] = _construction(subject)
    body = [
        *(_setup(subject) if subject is not None else []),
        *Template(dedent(show)).safe_substitute(values).strip().splitlines(),
    ]
    return [
        "",
        "",
        "def show():",
        *(f"    {line}" if line.strip() else "" for line in body),
        "",
        "",
        "try:",
        "    show()",
        "except Exception as error:",
        '    print("what happens:", repr(error))',
    ]


def _setup(subject: Subject) -> list[str]:
    return [
        f"torch.manual_seed({subject.seed})",
        f"W = {_construction(subject)}",
        *_parameter_lines(subject),
        "",
    ]


def _construction(subject: Subject) -> str:
    passed = [f"dtype={subject.dtype}"] if "dtype" in subject.keywords else []
    elsewhere = str(subject.device) != "cpu"
    if elsewhere and "device" in subject.keywords:
        passed.append(f"device={str(subject.device)!r}")
    words = ", ".join([str(subject.case.shape), str(subject.case.rank), *passed])
    converted = "" if "dtype" in subject.keywords else f".to(dtype={subject.dtype})"
    moved = elsewhere and "device" not in subject.keywords
    return f"make({words}){converted}" + (f".to(device={str(subject.device)!r})" if moved else "")


def _parameter_lines(subject: Subject) -> list[str]:
    """Return the lines that write the case's values into the free parameters of W."""
    if subject.case.parameters.structure == "start":
        return []
    try:
        module = subject.module()
        trainable = {k: p for k, p in module.named_parameters() if p.requires_grad and p.numel()}
    except Exception:
        return ["case.parameters.fill_(W)"]
    if sum(p.numel() for p in trainable.values()) > _MAX_PRINTED:
        return ["case.parameters.fill_(W)"]
    return ["with torch.no_grad():", *_assignments(trainable)] if trainable else []


def _assignments(trainable: Mapping[str, Tensor]) -> Iterator[str]:
    for name, p in trainable.items():
        dotted = all(part.isidentifier() for part in name.split("."))
        place = f"W.{name}" if dotted else f"W.get_parameter({name!r})"
        yield from (f"    {line}" for line in f"{place}.copy_({tensor_code(p)})".splitlines())


def _maker(make: object) -> _Maker:
    """Return an expression for a factory, with the imports it needs."""
    written = getattr(make, "source_code", None)
    found = written() if callable(written) else expression(make)
    if isinstance(found, Expression):
        return _Maker(found.imports, found.code)
    inner = make.func if isinstance(make, partial) else make
    name = getattr(inner, "__qualname__", type(inner).__name__)
    return _Maker((), f"...  # {name} of {_place(inner)}")


def _place(function: object) -> str:
    try:
        _, line = inspect.getsourcelines(function)  # pyright: ignore[reportArgumentType]
        return f"{inspect.getsourcefile(function)}, line {line}"  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):
        return str(getattr(function, "__module__", "a module without a name"))
