"""Counter-examples as programs: build the module, set its parameters, show what is violated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from lowrank_opt.testing.cases.case import Factory, Subject
from lowrank_opt.testing.search.expressions import Expression, expression, tensor_code
from lowrank_opt.testing.search.shown import START_ONLY, shown_lines

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


def counter_example(subject: Subject, law: str, found: str = "") -> str:
    """Return a program that rebuilds a case, shows what is violated and checks the law there.

    It imports the factory, builds the module with the case's shape, rank and dtype, writes the
    shrunk values into the free parameters, prints the numbers that the law compares, and ends with
    the check of this one case, which raises `BrokenLawError`.

    Parameters
    ----------
    subject : Subject
        The smallest counter-example.
    law : str
    found : str
        What was found there.

    Returns
    -------
    str
        Python source. A factory that has no importable name appears as ``make = ...``.
    """
    maker = _maker(subject.make)
    lines = [
        f"# found: {' '.join(found.split())}" if found else "",
        *_imports(subject, law, maker),
        "",
        f"make = {maker.code}",
        f"case = {subject.case!r}",
        f"torch.manual_seed({subject.seed})",
        f"W = {_construction(subject)}",
        *_parameter_lines(subject, law),
        "",
        *shown_lines(law, subject, found),
        "",
        "# The law on this example alone: raises BrokenLawError.",
        f"check_{law}(make, case=case, dtype={subject.dtype}{_device(subject)})",
    ]
    return "\n".join(lines).strip().replace("\n\n\n", "\n\n")


def _imports(subject: Subject, law: str, maker: _Maker) -> list[str]:
    names = ["Case", "FreeParameters", "Member", f"check_{law}"]
    used = [name for name in names if name != "Member" or "Member(" in repr(subject.case)]
    ours = f"from lowrank_opt.testing import {', '.join(used)}"
    return list(dict.fromkeys(["import torch", ours, *maker.imports]))


def _construction(subject: Subject) -> str:
    passed = [f"dtype={subject.dtype}"] if "dtype" in subject.keywords else []
    elsewhere = str(subject.device) != "cpu"
    if elsewhere and "device" in subject.keywords:
        passed.append(f"device={str(subject.device)!r}")
    words = ", ".join([str(subject.case.shape), str(subject.case.rank), *passed])
    converted = "" if "dtype" in subject.keywords else f".to(dtype={subject.dtype})"
    moved = elsewhere and "device" not in subject.keywords
    return f"make({words}){converted}" + (f".to(device={str(subject.device)!r})" if moved else "")


def _device(subject: Subject) -> str:
    return "" if str(subject.device) == "cpu" else f", device={str(subject.device)!r}"


def _parameter_lines(subject: Subject, law: str) -> list[str]:
    """Return the lines that write the case's values into the free parameters of W."""
    if law in START_ONLY:
        return []
    try:
        module = subject.module()
        trainable = {k: p for k, p in module.named_parameters() if p.requires_grad and p.numel()}
    except Exception:
        return []
    if sum(p.numel() for p in trainable.values()) > _MAX_PRINTED:
        return ["case.parameters.fill_(W)"]
    return ["with torch.no_grad():", *_assignments(trainable)] if trainable else []


def _assignments(trainable: Mapping[str, Tensor]) -> Iterator[str]:
    for name, p in trainable.items():
        dotted = all(part.isidentifier() for part in name.split("."))
        place = f"W.{name}" if dotted else f"W.get_parameter({name!r})"
        yield from (f"    {line}" for line in f"{place}.copy_({tensor_code(p)})".splitlines())


def _maker(make: Factory) -> _Maker:
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


def program_of(entry: str) -> Callable[[Subject, str, str], str]:
    """Return a writer of counter-examples that call an entry point on one case.

    Parameters
    ----------
    entry : str
        Name of a function of `lowrank_opt.testing`.
    """

    def program(subject: Subject, law: str, found: str) -> str:
        wrapped = getattr(subject.make, "written", getattr(subject.make, "make", subject.make))
        maker = _maker(wrapped)
        lines = [
            f"# found: {' '.join(found.split())}",
            "import torch",
            f"from lowrank_opt.testing import Case, FreeParameters, Member, {entry}",
            *maker.imports,
            "",
            f"make = {maker.code}",
            f"case = {subject.case!r}",
            f"{entry}(make, only=[{law!r}], case=case, dtype={subject.dtype})",
        ]
        return "\n".join(lines)

    return program
