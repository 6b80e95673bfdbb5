"""Whether modules consist of what they consisted of: few looks, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

# Of a module: itself, its class, its attributes, its parts, and the names of its tensors.
_Seen: TypeAlias = tuple[nn.Module, type, dict[str, Any], dict[str, Any], list[str]]


def is_hooked(own: dict[str, Any]) -> bool:
    """Whether hooks wait for calls of a module, given its attributes, or for gradients."""
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


class Standing:
    """Modules with all their parts, as they stand: equal attributes, the same names and parts.

    Tensors are neither held nor compared: they are found again.

    Parameters
    ----------
    modules : sequence of nn.Module

    Examples
    --------
    >>> layer = nn.Sequential(nn.Linear(2, 1))
    >>> standing = Standing([layer])
    >>> [tuple(x.shape) for x in standing.numbers([layer])]
    [(1, 2), (1,)]
    >>> layer[0].in_features = 3
    >>> standing.numbers([layer])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = [*modules]
        self._seen: list[_Seen] = [_seen(part) for x in modules for part in _parts(x)]
        registered = self._registered() or []
        # Last first: each is taken out of a list of all.
        self._absent = [i for i, x in enumerate(registered) if x is None][::-1]

    def numbers(self, modules: Sequence[nn.Module]) -> list[Tensor | None] | None:
        """Return the tensors of modules, in order; None unless they are these, unhooked.

        One that has been taken out since is None in its place.
        """
        if [*map(id, modules)] != [*map(id, self._modules)]:
            return None
        found = self._registered()
        for i in self._absent if found is not None else ():
            if found.pop(i) is not None:  # pyright: ignore[reportOptionalMemberAccess]
                return None
        return found

    def _registered(self) -> list[Tensor | None] | None:
        found: list[Tensor | None] = []
        for part, kind, attributes, parts, names in self._seen:
            own = part.__dict__
            if type(part) is not kind or is_hooked(own) or own["_modules"] != parts:
                return None
            parameters, buffers = own["_parameters"], own["_buffers"]
            if [*parameters, *buffers] != names or not _are_equal(own, attributes):
                return None
            found += parameters.values()
            found += buffers.values()
        return found


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its parts, as often as they are in it."""
    yield module
    for part in module._modules.values():  # pyright: ignore[reportPrivateUsage]
        if part is not None:
            yield from _parts(part)


def _seen(part: nn.Module) -> _Seen:
    own = part.__dict__
    names = [*own["_parameters"], *own["_buffers"]]
    return part, type(part), dict(own), dict(own["_modules"]), names


def _are_equal(own: dict[str, Any], known: dict[str, Any]) -> bool:
    try:
        # The same objects need no look inside.
        return own == known
    except (RuntimeError, TypeError, ValueError):
        # An attribute has become an array, which compares number by number.
        return False
