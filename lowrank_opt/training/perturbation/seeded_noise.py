"""Noise that is stored as a seed: added to a weight in forward, drawn again in backward."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True, eq=False)
class SeededNoise:
    """Gaussian noise on one weight: ``std * N(0, 1)``, N drawn from `seed` alone.

    Parameters
    ----------
    std : Tensor
        Broadcasts to the weight.
    seed : int
    """

    std: Tensor
    seed: int

    def normal(self, weight: Tensor) -> Tensor:
        """Draw N in the shape of the weight; the global generators are not touched."""
        g = torch.Generator(weight.device).manual_seed(self.seed)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.randn(weight.shape, generator=g, dtype=dtype, device=weight.device)

    def perturb(self, weight: Tensor) -> Tensor:
        """Return ``weight + std N``, differentiable in both, keeping neither N nor the sum."""
        return _add_noise(weight, self.std, self)


def mix_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part, the same in every process.

    Examples
    --------
    >>> mix_seed(0, 1, "a") == mix_seed(0, 1, "a"), mix_seed(0, 1, "a") == mix_seed(0, 2, "a")
    (True, False)
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class _Context(FunctionCtx):
    noise: SeededNoise
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]


class _AddNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, weight: Tensor, std: Tensor, noise: SeededNoise) -> Tensor:
        ctx.noise = noise
        ctx.save_for_backward(weight, std)
        return _sum(weight, noise)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (g,) = gradients
        weight, std = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return g, None, None
        return g, (g * ctx.noise.normal(weight)).sum_to_size(std.shape).to(std.dtype), None


def _add_noise(weight: Tensor, std: Tensor, noise: SeededNoise) -> Tensor:
    result = _AddNoise.apply(weight, std, noise)
    assert isinstance(result, Tensor), "an autograd function of one output returns it"
    return result


def _sum(weight: Tensor, noise: SeededNoise) -> Tensor:
    return noise.normal(weight).mul_(noise.std.detach()).add_(weight).to(weight.dtype)


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How to make a perturbed weight, or a view of it, again."""

    weight: Tensor
    noise: SeededNoise
    version: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def cook(self) -> Tensor:
        if self.weight._version != self.version:
            raise RuntimeError(
                "a perturbed weight must not change between forward and backward; it was modified "
                "in place: call backward before the optimizer's step"
            )
        perturbed = _sum(self.weight, self.noise)
        return perturbed.as_strided(self.size, self.stride, self.offset)


@contextmanager
def regenerated(perturbed: Tensor, weight: Tensor, noise: SeededNoise) -> Generator[None]:
    """Within this block autograd saves a recipe instead of `perturbed` and of its views.

    Any operation may read the perturbed weight; backward makes it again from `weight` and the
    seed, bit by bit the same. Other saved tensors are left alone.
    """
    storage, weight = perturbed.untyped_storage().data_ptr(), weight.detach()
    version = weight._version

    def pack(x: Tensor) -> Tensor | _Recipe:
        if x.layout != torch.strided or x.untyped_storage().data_ptr() != storage:
            return x
        return _Recipe(weight, noise, version, tuple(x.shape), x.stride(), int(x.storage_offset()))

    def unpack(x: Tensor | _Recipe) -> Tensor:
        return x.cook() if isinstance(x, _Recipe) else x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
