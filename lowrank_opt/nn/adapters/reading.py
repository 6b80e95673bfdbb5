"""What a reader gets for a weight that is computed."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

import torch
from torch import Tensor, nn

from lowrank_opt.nn.basis.errors import AdapterStateError

_FACTS = (
    "dtype", "device", "shape", "ndim", "layout", "is_cuda", "requires_grad", "is_meta",
    "is_sparse", "is_quantized", "names",
)  # fmt: skip
_QUESTIONS = ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "element_size")
_ALLOWED = {getattr(Tensor, name).__get__ for name in _FACTS if hasattr(Tensor, name)} | {
    getattr(Tensor, name) for name in _QUESTIONS
}
# x += y and its kin, and x[i] = y.
_WRITING = {f"__i{name}__" for name in (
    "add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
    "lshift", "rshift",
)} | {"__setitem__"}  # fmt: skip
_NODE = Tensor.grad_fn.__get__  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
_HOOKS = Tensor._backward_hooks  # pyright: ignore[reportPrivateUsage]
# These end in an underscore too, and change no number.
_HARMLESS = {"retain_grad", "share_memory_", "is_shared"}


class RoutedWeight(Tensor):
    """A weight that is another one for each sample: it has a dtype and a shape, and no numbers.

    Modules may look at the dtype of a layer before they call it; what computes with its weight
    must be refused.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func not in _ALLOWED:
            raise AdapterStateError(
                "per_sample needs layers that are called; got a module that computes with the "
                "weight of an adapted layer, where each sample has another: run the model once "
                "for each adapter"
            )
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **(kwargs or {}))


def without_numbers(weight: Tensor) -> Tensor:
    """Return the facts of a weight that is another one for each sample."""
    return weight.detach().as_subclass(RoutedWeight)


class _Facts(RoutedWeight):
    """The facts of an adapted weight, for who asks for nothing else."""

    _is_param = True


def facts_of(weight: Tensor) -> Tensor:
    """Return the dtype, the shape and the class of a parameter."""
    return weight.detach().as_subclass(_Facts)


class _ReadOnly(Tensor):
    """A tensor that is computed at each access: to write to it would be lost, and is refused."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = kwargs or {}
        if any(isinstance(x, _ReadOnly) for x in _written(func, args, given)):
            raise _refusal(func)
        found = cls._called(func, types, args, given)
        if func == _NODE and found is None and isinstance(args[0], EffectiveWeight):
            # Asked by modules that register a parameter; sums have no node of the graph.
            raise _refusal(func)
        if isinstance(found, Tensor):
            return _guarded(found, args)
        if isinstance(found, (tuple, list)):
            kept = (_guarded(x, args) if isinstance(x, Tensor) else x for x in found)
            plain = type(found) in (tuple, list)
            return type(found)(kept) if plain else found
        if hasattr(found, "setflags"):
            # A numpy array of the same memory.
            found.setflags(write=False)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        return found

    @classmethod
    def _called(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> object:
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **kwargs)


class EffectiveWeight(_ReadOnly):
    """The present value of an adapted weight, which passes for the parameter that it is of.

    So libraries that look parameters up by name, or tie weights once more, find what they expect.
    Attributes besides those of a tensor are the parameter's own.
    """

    _is_param = True

    def __getattr__(self, name: str) -> object:
        base = self.__dict__.get("lowrank_base")
        if name.startswith("__") or base is None:
            raise AttributeError(name)
        return getattr(base, name)

    def __setattr__(self, name: str, value: object) -> None:
        own = hasattr(Tensor, name)
        object.__setattr__(self if own else self.__dict__["lowrank_base"], name, value)

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Parameter:
        return nn.Parameter(_plain(self).clone(), requires_grad=False)

    def __reduce_ex__(self, protocol: object) -> object:
        return _plain(self).__reduce_ex__(protocol)  # pyright: ignore[reportArgumentType]


def standing_for(total: Tensor, base: Tensor) -> Tensor:
    """Return an effective weight that passes for a parameter, and knows which one it is of.

    Unless it is a sum, it is no leaf of the graph: torch refuses to register or to optimize it.
    """
    if torch.compiler.is_compiling() or _is_read_by_a_layer_of_torch():
        # After a break of the graph, for a recurrent layer say, this is compiled on its own.
        return total
    if type(total) not in (Tensor, nn.Parameter):
        total._is_param = True  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        total.lowrank_base = base  # pyright: ignore[reportAttributeAccessIssue]
        return _read_only(total)
    with torch.enable_grad():
        covered = total.as_subclass(EffectiveWeight)
    vars(covered)["lowrank_base"] = base
    return covered


def _read_only(x: Tensor) -> Tensor:
    """Return a tensor of a foreign class, sharded or quantised, as one that is not written to."""
    # Such classes hold tensors in attributes, which `as_subclass` would leave behind. Objects of
    # some are laid out in a way of their own.
    with suppress(TypeError):
        x.__class__ = _read_only_type(type(x))
    return x


@functools.cache
def _read_only_type(kind: type[Tensor]) -> type[Tensor]:
    """Return the class that tensors of a foreign class become when they are not written to."""
    if issubclass(kind, _ReadOnly):
        return kind

    def called(cls: type, func: object, types: object, args: object, kwargs: object) -> object:
        return kind.__torch_function__(func, types, args, kwargs)  # pyright: ignore[reportArgumentType]

    members: dict[str, object] = {"_called": classmethod(called), "lowrank_kind": kind}
    for name in ("to_local", "full_tensor"):
        if hasattr(kind, name):
            members[name] = _giving_read_only(getattr(kind, name))
    return types.new_class(
        kind.__name__, (_ReadOnly, kind), exec_body=lambda ns: ns.update(members)
    )


def _giving_read_only(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def read(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return method(self, *args, **kwargs).as_subclass(_ReadOnly)

    return read


def sum_standing_for(total: Tensor, base: Tensor) -> Tensor:
    """Return a sum that lasts as such a weight, the same one at each access."""
    if torch.compiler.is_compiling() or _is_read_by_a_layer_of_torch():
        return total
    known = vars_of(total).get("lowrank_cover")
    if isinstance(known, _ReadOnly) and is_of(known, base):
        return known
    covered = standing_for(total.detach(), base)
    vars(total)["lowrank_cover"] = covered
    return covered


def _is_read_by_a_layer_of_torch() -> bool:
    """Whether the forward of a layer of torch asks: those read weights, and do not write to them.

    A tensor of another class would turn off the fused kernels of its encoders, and with them the
    last bits of the base model.
    """
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and (
        frame.f_code.co_name == "__getattr__"
        or frame.f_globals.get("__name__", "").startswith("lowrank_opt.nn.")
    ):
        frame = frame.f_back
    home = str(frame.f_globals.get("__name__", ""))
    return frame.f_code.co_name == "forward" and home.startswith("torch.nn.modules.")


def check_reader(frame: FrameType) -> None:
    """Raise AdapterStateError if a weight is read to be replaced, by what tells only afterwards.

    ``torch.nn.utils.weight_norm`` and its kin read a weight, delete it, and register others.
    """
    home = str(frame.f_globals.get("__name__", ""))
    if frame.f_code.co_name == "apply" and home.startswith("torch.nn.utils."):
        raise AdapterStateError(
            f"an adapted weight cannot be replaced by a computed one; got {home}: call it before "
            "adapting, or unload(model) first"
        )


def is_of(value: object, base: Tensor | None) -> bool:
    """Whether a value is a parameter itself, or stands for it."""
    return base is not None and (value is base or vars_of(value).get("lowrank_base") is base)


def vars_of(value: object) -> Mapping[str, object]:
    """Return the attributes that a tensor has of its own."""
    return getattr(value, "__dict__", {})


def _written(
    func: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Iterable[object]:
    """Yield what a function of torch writes to."""
    name = getattr(func, "__name__", "").partition(".")[0]
    inside = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
    if name == "__set__":
        # The gradient of what is no leaf is None already, and so is what hooks it has.
        inside = args[1] is not None and getattr(func, "__self__", None) is not _HOOKS
    if inside or name in _WRITING or kwargs.get("inplace") is True:
        yield from _flat(args[:1])
        yield from (() if args else kwargs.values())
    yield from _flat((kwargs.get("out"),))


def _flat(values: Iterable[object]) -> Iterable[object]:
    for x in values:
        yield from x if isinstance(x, (tuple, list)) else (x,)


def _guarded(found: Tensor, args: tuple[object, ...]) -> Tensor:
    """Return a tensor of the same memory as what it was made from as one that is not written to."""
    guarded = [x for x in _flat(args) if isinstance(x, _ReadOnly)]
    kinds = (Tensor, *(getattr(type(x), "lowrank_kind", Tensor) for x in guarded))
    if type(found) not in kinds or not any(_memory(found) & _memory(x) for x in guarded):
        return found
    return found.as_subclass(_ReadOnly) if type(found) is Tensor else _read_only(found)


def _memory(x: Tensor) -> set[int]:
    """Return where the numbers of a tensor, or of those that it consists of, begin."""
    flatten = getattr(x, "__tensor_flatten__", None)
    if flatten is not None:
        parts = (getattr(x, name) for name in flatten()[0])
        return {place for part in parts if isinstance(part, Tensor) for place in _memory(part)}
    try:
        place = _plain(x).untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        # Inside a transform of torch.func there is no memory to speak of.
        return set()
    return {place} - {0}


def _plain(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
        return x.detach().as_subclass(Tensor)


def _refusal(func: Callable[..., object]) -> AdapterStateError:
    name = getattr(func, "__name__", "a function").strip("_")
    owner = getattr(getattr(func, "__self__", None), "__name__", "")
    return AdapterStateError(
        f"an adapted weight is W0 + dW, computed at each access, and cannot be written to; got "
        f"{owner or name!r}: write to the base weight within disabled(model), call unload(model) "
        "first, or take a copy, weight.detach().clone()"
    )
