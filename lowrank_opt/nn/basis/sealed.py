"""A weight that is not plain, as a tensor whose numbers are found when something computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.errors import AdapterStateError


class SealedWeight(Tensor):
    """The frozen weight of a layer, whatever it is stored in: shape, dtype, device; and numbers.

    It passes for a parameter. What computes with it gets its dense numbers, made anew and not kept;
    writing to it is refused.

    Parameters
    ----------
    module : nn.Module
        The layer.
    name : str
        Of a weight for which `storage.is_sealed`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    >>> weight = SealedWeight(layer, "weight")
    >>> weight.shape, torch.equal(weight.detach(), layer.weight)
    (torch.Size([2, 3]), True)
    """

    _is_param = True
    layer: nn.Module
    key: str

    @staticmethod
    def __new__(cls: type[SealedWeight], module: nn.Module, name: str) -> SealedWeight:  # pyright: ignore[reportSelfClsParameterName]
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            storage.shape_of(module, name),
            dtype=storage.dtype_of(module, name),
            device=storage.device_of(module, name),
        )
        made.layer, made.key = module, name
        return made

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()

    @property
    def held(self) -> object:
        """What the module has under the name, the same for weights that are tied; or the module."""
        found = self.layer._parameters.get(self.key)  # pyright: ignore[reportPrivateUsage]
        return self.layer if found is None else found

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given: tuple[tuple[Any, ...], dict[str, Any]] = (args, dict(kwargs or {}))
        written = next((x for x in _written(func, *given) if isinstance(x, SealedWeight)), None)
        if written is not None:
            raise AdapterStateError(
                f"a frozen weight that is not plain cannot be written to; got {func} for a "
                f"{type(written.layer).__name__}: write to what it is made of"
            )
        dense, named = tree_map_only(SealedWeight, _dense, given)
        return func(*dense, **named)

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"SealedWeight(shape={tuple(self.shape)}, dtype={self.dtype})"


def _written(
    func: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return what an operation writes to: what it changes in place, and its ``out=``."""
    schema: Any = func._schema  # pyright: ignore[reportFunctionMemberAccess]
    if not schema.is_mutable:
        return []
    names = [argument.name for argument in schema.arguments if argument.is_write]
    given = dict(zip((x.name for x in schema.arguments), args, strict=False)) | dict(kwargs)
    return tree_leaves([given.get(name) for name in names])


def _dense(weight: SealedWeight) -> Tensor:
    return storage.dense_weight(weight.layer, weight.key)
