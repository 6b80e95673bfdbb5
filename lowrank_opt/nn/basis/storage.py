r"""Frozen weights of any storage: what a layer computes with, however it holds it.

A weight is *plain* if it is a parameter that holds its numbers in floats of 16 bits or more. Other
layers compute it when they are called - by a parametrization, by a hook, as pruned ones do - or
hold it in few bits, in a tensor of a class of its own or in a code that their forward alone can
read. All of them are bases of adapters, by one rule: a frozen base is what has a forward, a shape
and a dtype to compute in. Its numbers are found without knowing who wrote it: what a reader of
the attribute gets, decoded if it can decode itself, or else what the layer's own forward makes of
the columns of the identity.
"""

from __future__ import annotations

import inspect
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_opt.nn.basis.originals import modules_of, original_type

# Columns of the identity that a forward gets at once.
_BLOCK = 1024


def is_plain(weight: object) -> bool:
    """Whether something is a parameter that holds its numbers as they are.

    Examples
    --------
    >>> is_plain(nn.Parameter(torch.ones(2, 2)))
    True
    >>> is_plain(nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False))
    False
    """
    if not isinstance(weight, nn.Parameter) or is_lazy(weight):
        return False
    return weight.is_floating_point() and weight.itemsize > 1 and not _decodes(weight)


def is_ordinary(module: nn.Module) -> bool:
    """Whether a module certainly has no weight that is not plain; for most that is told at once."""
    own = module.__dict__
    if own["_buffers"] or own["_forward_pre_hooks"] or "parametrizations" in own["_modules"]:
        return False
    given = (p for p in own["_parameters"].values() if p is not None)
    return all(type(p) is nn.Parameter and p.itemsize > 1 and p.is_floating_point() for p in given)


def is_sealed(module: nn.Module, name: str) -> bool:
    """Whether a layer computes with a weight that is there and not plain."""
    held = module._parameters.get(name)  # pyright: ignore[reportPrivateUsage]
    if is_plain(held) or (held is not None and is_lazy(held)):
        return False
    return _shown(module, name) is not None or is_coded(module, name)


def is_coded(module: nn.Module, name: str) -> bool:
    """Whether only the forward of a linear layer knows the numbers of its weight.

    Such a layer tells its sizes, has a forward of its own, and holds tensors of few bits, and no
    parameter that has all the numbers.
    """
    sizes = _sizes(module)
    if name != "weight" or sizes is None:
        return False
    if original_type(module).forward in (nn.Linear.forward, nn.Module.forward):
        return False
    if _shown(module, name) is not None:
        return False
    parts = list(modules_of(module))
    parameters = [p for part in parts for p in part.parameters(recurse=False)]
    tensors = [*parameters, *(x for part in parts for x in part.buffers(recurse=False))]
    whole = any(is_lazy(p) or (is_plain(p) and p.numel() >= prod(sizes)) for p in parameters)
    return not whole and any(x.ndim > 1 and _is_code(x) for x in tensors)


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a weight is no tensor of the module: made at each call, or each time it is read."""
    kept = (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
    return not any(name in tensors for tensors in kept) and _shown(module, name) is not None


def is_narrow(module: nn.Module, name: str) -> bool:
    """Whether a sum with a weight would need more memory than the weight, or another dtype."""
    shown = _shown(module, name)
    return shown is None or _decodes(shown)


def shape_of(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of a sealed weight."""
    shown = _shown(module, name)
    if shown is not None:
        return tuple(shown.shape)
    sizes = _sizes(module)
    assert sizes is not None, "a sealed weight is shown, or its layer tells its sizes"
    return sizes


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    m, n = (getattr(module, size, None) for size in ("out_features", "in_features"))
    return (m, n) if type(m) is int and type(n) is int and min(m, n) > 0 else None


def dtype_of(module: nn.Module, name: str) -> torch.dtype:
    """Return the dtype in which a layer computes with a sealed weight."""
    shown = _shown(module, name)
    own = getattr(module, "compute_dtype", None)
    bias = _bias(module)
    found = (shown, bias, *module.buffers(recurse=False))
    dtypes = [own, *(x.dtype for x in found if x is not None)]
    floats = (x for x in dtypes if isinstance(x, torch.dtype) and x.is_floating_point)
    return next((x for x in floats if x.itemsize > 1), torch.get_default_dtype())


def device_of(module: nn.Module, name: str) -> torch.device:
    """Return where a sealed weight is."""
    held = module._parameters.get(name)  # pyright: ignore[reportPrivateUsage]
    tensors = (held, *module.parameters(recurse=False), *module.buffers(recurse=False))
    return next((x.device for x in tensors if x is not None), torch.device("cpu"))


@torch.no_grad()
def dense_weight(module: nn.Module, name: str) -> Tensor:
    """Return the numbers of a sealed weight: m x n of them, in the dtype it is computed with."""
    shown = _shown(module, name)
    if shown is not None:
        return (shown.dequantize() if _decodes(shown) else shown).detach()
    m, n = shape_of(module, name)
    if device_of(module, name).type == "meta":
        return torch.empty(m, n, dtype=dtype_of(module, name), device="meta")
    eye = torch.eye(n, dtype=dtype_of(module, name), device=device_of(module, name))
    return torch.cat([linear_part(module, x) for x in eye.split(_BLOCK)]).mT.contiguous()


def linear_part(module: nn.Module, x: Tensor) -> Tensor:
    """Return what the own forward of a linear layer makes of an input, less its bias."""
    twin = _twin(module)
    forward = original_type(module).forward
    if _bias(module) is None:
        return forward(twin, x) - forward(twin, torch.zeros_like(x[:1]))
    # Without it, nothing is rounded that the bias would have hidden.
    for kept in (twin._parameters, twin._buffers):  # pyright: ignore[reportPrivateUsage]
        kept |= {"bias": None} if "bias" in kept else {}
    return forward(twin, x)


def constant_part(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a linear layer makes of zeros, of the width and in the dtype of an input."""
    return original_type(module).forward(_twin(module), x.new_zeros(1, x.shape[-1]))[0]


def fault_of(module: nn.Module) -> str | None:
    """Return why updates cannot be added to what a layer returns that reads a code, or None.

    Its forward must take floats, be affine - to a tenth, for inputs may be rounded to few bits -
    and pass gradients to its input.
    """
    _, n = shape_of(module, "weight")
    x = torch.arange(2.0 * n, device=device_of(module, "weight"))
    if x.is_meta:
        return None
    a, b = x.cos().to(dtype_of(module, "weight")).view(2, -1)
    inputs = torch.stack([torch.zeros_like(a), a, b, a + b]).requires_grad_()
    try:
        with torch.enable_grad():
            y = original_type(module).forward(_twin(module), inputs)
            torch.autograd.grad(y.sum(), inputs)
    except Exception as error:
        # Of another package, and of any kind.
        return f"its own forward must take floats and pass gradients; {error}"
    at_zero, at_a, at_b, at_sum = y.detach().double()
    gap, size = (at_sum - at_a - at_b + at_zero).norm(), at_a.norm() + at_b.norm()
    return "its own forward is not linear" if bool(gap > size / 10) else None


def _bias(module: nn.Module) -> Tensor | None:
    kept = (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
    return next((x["bias"] for x in kept if x.get("bias") is not None), None)


def _is_code(x: Tensor) -> bool:
    return x.dtype is not torch.bool and not (x.dtype.is_floating_point and x.itemsize > 1)


def _decodes(x: Tensor) -> bool:
    return type(x).dequantize is not Tensor.dequantize


def _shown(module: nn.Module, name: str) -> Tensor | None:
    """Return what the author's class reads under a name, if that is a matrix of floats."""
    kept = (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
    held = next((x[name] for x in kept if name in x), None)
    if held is None:
        held = _parametrized(module, name)
    if held is None:
        held = _hooked(module, name)
    if held is None or is_lazy(held) or held.ndim < 2 or not held.is_floating_point():
        return None
    return held if held.itemsize > 1 or _decodes(held) else None


@torch.no_grad()
def _parametrized(module: nn.Module, name: str) -> Tensor | None:
    computing = module._modules.get("parametrizations")  # pyright: ignore[reportPrivateUsage]
    found = computing._modules.get(name) if computing is not None else None  # pyright: ignore[reportPrivateUsage]
    if found is None:
        return None
    # Spectral norms take a step of their power method whenever they are read in training.
    modes = [(part, part.training) for part in found.modules()]
    try:
        return found.eval()()
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def _hooked(module: nn.Module, name: str) -> Tensor | None:
    """Return a weight that hooks of torch set as an attribute before each call."""
    if not isinstance(module.__dict__.get(name), Tensor):
        return None
    twin = _twin(module)
    twin.training = False
    for hook in hooks_of_torch(module):
        hook(twin, ())  # pyright: ignore[reportCallIssue]
    return twin.__dict__[name]


def hooks_of_torch(module: nn.Module) -> dict[object, int]:
    """Return the hooks of `torch.nn.utils` that compute tensors of a module, with their keys."""
    return {
        hook: key
        for key, hook in module._forward_pre_hooks.items()  # pyright: ignore[reportPrivateUsage]
        if any(cls.__module__.startswith("torch.nn.utils.") for cls in inspect.getmro(type(hook)))
    }


def _twin(module: nn.Module) -> nn.Module:
    """Return a module of the author's class with the same tensors, and attributes of its own.

    Layers of other packages note things at a call, and some pack their weights anew when they are
    not trained; the module itself is left as it is.
    """
    twin = object.__new__(original_type(module))
    parts = {key: dict(module.__dict__[key]) for key in ("_parameters", "_buffers", "_modules")}
    object.__setattr__(twin, "__dict__", {**module.__dict__, **parts, "training": True})
    return twin
