"""Every public name has a docstring, its own or one inherited from what it overrides."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest

import lowrank_opt

MODULES = [
    "lowrank_opt",
    *(m.name for m in pkgutil.walk_packages(lowrank_opt.__path__, "lowrank_opt.")),
]


def public_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public functions, classes, methods and properties that a module defines."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type):
            yield name, value
            yield from ((f"{name}.{member}", getattr(value, member)) for member in _members(value))
        elif inspect.isroutine(value):
            yield name, value


def _members(owner: type) -> Iterator[str]:
    kinds = (FunctionType, classmethod, staticmethod, property)
    for name, value in vars(owner).items():
        if not name.startswith("_") and isinstance(value, kinds):
            yield name


def undocumented(module: ModuleType) -> list[str]:
    """Return the public names of a module that nothing documents."""
    return [name for name, value in public_names(module) if not inspect.getdoc(value)]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
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
