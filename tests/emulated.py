"""Another device, emulated on the CPU: refuses what a GPU refuses, counts what one waits for.

Tensors of the device type "lazy" hold CPU tensors inside and compute with those. Mixing them with
CPU tensors of one axis or more, or reading them with NumPy, raises, as it does on CUDA; each
transfer to the host (`.cpu()`, `.item()`, `float`, `bool`, `.tolist()`, `nonzero`, masks) is noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")
# What needs a number, or the size of a result, on the host.
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "equal"}
_MAY_MIX = {"_to_copy", "copy_", "index", "index_put_", "index_put", "_index_put_impl_"}
_AT_ONCE = {
    "_conj": torch.ops.aten.conj_physical.default,
    "_neg_view": torch.ops.aten.neg.default,
}


class Elsewhere(Tensor):
    """A tensor on the emulated device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner})"

    def __tensor_flatten__(self):
        return ["inner"], None

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("tensors of the emulated device live in `emulated_device()` only")


class _Device(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, Elsewhere) for x in tensors)
        name = func._schema.name.split("::")[1]
        asked = kwargs.get("device")
        to_there = asked is not None and torch.device(asked).type == DEVICE.type
        if not (there or to_there):
            return func(*args, **kwargs)
        stays = to_there or (there and asked is None)
        if there and (name in _READS or not stays or _by_mask(name, args)):
            self.reads.append(name)
        if there and name not in _MAY_MIX:
            self._check_together(name, tensors)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        inside = tree_map(_inner, (args, kwargs))
        # Below the mode nothing looks at the bits of views that are conjugate or negative.
        func = _AT_ONCE.get(name, func)
        if name == "copy_" and not isinstance(args[0], Elsewhere):
            self.reads.append(name)
        out = func(*inside[0], **inside[1])
        return self._outside(func, out, args, inside[0]) if stays else out

    def _check_together(self, name, tensors):
        here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim > 0]
        if here:
            raise RuntimeError(
                f"{name}: expected all tensors on one device; got shapes "
                f"{[tuple(x.shape) for x in tensors]}, those of {[tuple(x.shape) for x in here]} "
                "on the CPU"
            )

    def _outside(self, func, out, args, inside):
        # What a function writes to, and returns, is the tensor that came in.
        known = {
            id(i): o
            for i, o in zip(tree_leaves(inside), tree_leaves(args), strict=True)
            if isinstance(o, Elsewhere)
        }

        def wrap(x):
            if not isinstance(x, Tensor):
                return x
            old = known.get(id(x))
            return Elsewhere(x) if old is None else old

        return tree_map(wrap, out)


def _by_mask(name: str, args) -> bool:
    """Whether the size of a result depends on a mask."""
    if name not in {"index", "index_put_", "index_put"}:
        return False
    masks = [x for x in args[1] if isinstance(x, Tensor) and x.dtype == torch.bool]
    return name == "index" and bool(masks)


def _inner(x):
    return x.inner if isinstance(x, Elsewhere) else x


@contextmanager
def emulated_device() -> Iterator[list[str]]:
    """Let tensors be on `DEVICE`; yield the transfers to the host so far, which may be cleared."""
    mode, before = _Device(), torch._C._only_lift_cpu_tensors()
    # torch.tensor(..., device=) would make its tensor below the mode.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with mode:
            yield mode.reads
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
