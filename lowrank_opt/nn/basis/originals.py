"""The classes that the authors of modules gave them, whether they are adapted or not."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# The attribute by which an adapted class tells the class that it stands for.
ORIGINAL = "__lowrank_original__"
# The one name that an adapted module has besides those of its author.
STORE = "lowrank_adapters"


def type_name(module_type: type) -> str:
    """Return the name under which a type is known and recorded in files."""
    return f"{module_type.__module__}.{module_type.__qualname__}"


def original_type(module: nn.Module | type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module's author gave it, whether it is adapted or not."""
    own = module if isinstance(module, type) else type(module)
    return getattr(own, ORIGINAL, own)


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module of a model once, in order, without what adapters have in it."""
    return _modules_of(model, set())


def _modules_of(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield module
    for key, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
        if part is not None and key != STORE:
            yield from _modules_of(part, seen)


def seen_as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """Return the module as one of another class: the same attributes, in one place."""
    view = object.__new__(kind)
    object.__setattr__(view, "__dict__", module.__dict__)
    return view
