"""Every public name has a docstring, its own or one inherited from what it overrides."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest
from _pytest.doctest import _get_checker

import lowrank_opt

MODULES = [
    "lowrank_opt",
    *(m.name for m in pkgutil.walk_packages(lowrank_opt.__path__, "lowrank_opt.")),
]


def undocumented(module: ModuleType) -> list[str]:
    """Return the public functions, classes, methods and properties that nothing documents."""
    return [name for name, documented in _public_names(module) if not documented]


def _public_names(module: ModuleType) -> Iterator[tuple[str, bool]]:
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type | FunctionType):
            yield name, bool(value.__doc__)
        if isinstance(value, type):
            yield from _members(value)


def _members(owner: type) -> Iterator[tuple[str, bool]]:
    kinds = (FunctionType, classmethod, staticmethod, property)
    for name, value in vars(owner).items():
        if not name.startswith("_") and isinstance(value, kinds):
            overridden = (vars(base).get(name) for base in owner.__mro__)
            yield f"{owner.__name__}.{name}", any(f.__doc__ for f in overridden if f is not None)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert [] == undocumented(module)


def test_checker_catches_missing_docstrings() -> None:
    module = ModuleType("sample")
    source = '''
class Base:
    """Documented."""
    def said(self):
        """Documented."""
    def unsaid(self): ...

class Derived(Base):
    """Documented."""
    def said(self): ...
    @property
    def mute(self): ...

def function(): ...
'''
    exec(source, vars(module))
    assert ["Base.unsaid", "Derived.mute", "function"] == undocumented(module)


@pytest.mark.parametrize(
    ("got", "same"),
    [
        ("tensor([1., -0.])", True),
        ("tensor([1.0000, 3e-08])", True),
        ("tensor([0., 0.])", False),
        ("tensor([1., 0.01])", False),
    ],
)
def test_examples_tell_whole_numbers_apart(got: str, same: bool) -> None:
    number = doctest.OPTIONFLAGS_BY_NAME["NUMBER"]
    assert same == _get_checker().check_output("tensor([1., 0.])\n", f"{got}\n", number)
