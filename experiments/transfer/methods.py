"""Ways to adapt a trained network: all of it, its head alone, updates of this library and of PEFT.

Every update of rank r has at most as many trained numbers as LoRA of that rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt

Shape = tuple[int, int]
Prepare = Callable[[nn.Module, str, int, int], object]
LORA, HEAD, FULL = "LoRA", "head alone", "all weights"


@dataclass(frozen=True)
class Method:
    """A way to adapt.

    Parameters
    ----------
    name : str
    prepare : callable
        Given a network, a regular expression for its layers, a rank and a seed, installs what is
        trained and freezes the rest, in place.
    bounded : bool
        Whether the norm of the update is bounded, by a number that is not trained.
    peer : bool
        Whether it is PEFT's.
    """

    name: str
    prepare: Prepare
    bounded: bool = False
    peer: bool = False


def _nothing(network: nn.Module, targets: str, rank: int, seed: int) -> None:
    network.requires_grad_(False)


def _everything(network: nn.Module, targets: str, rank: int, seed: int) -> None:
    network.requires_grad_(True)


def _update(make: Callable[..., lo.Parameterization], *, magnitude: bool = False) -> Prepare:
    def prepare(network: nn.Module, targets: str, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def build(shape: Shape, weight: Tensor, generator: torch.Generator) -> lo.Parameterization:
            return make(shape, rank, weight=weight, generator=generator)

        adapt(network, build, targets=targets, generator=generator, magnitude=magnitude)

    return prepare


def _of_shape(
    kind: Callable[..., lo.Parameterization], *, magnitude: bool = False, **options: float
) -> Prepare:
    """Return an update of a class that does not look at the weight."""

    def make(
        shape: Shape, rank: int, *, weight: Tensor, generator: torch.Generator
    ) -> lo.Parameterization:
        return kind(shape, rank, generator=generator, **options)

    return _update(make, magnitude=magnitude)


def _nora(
    shape: Shape, rank: int, *, weight: Tensor, generator: torch.Generator
) -> lo.Parameterization:
    # Half of the singular directions, and the inner rank that spends the numbers of LoRA on them.
    outer = max(min(shape) // 2, 1)
    inner = min(max(rank * sum(shape) // (2 * outer), 1), outer)
    return lo.nora(weight, inner, outer_rank=outer, generator=generator)


def _lora_xs(
    shape: Shape, rank: int, *, weight: Tensor, generator: torch.Generator
) -> lo.Parameterization:
    side = min(math.isqrt(rank * sum(shape)), *shape)
    return lo.lora_xs(weight, side, generator=generator)


def _of_peft(config: str, **options: object) -> Prepare:
    def prepare(network: nn.Module, targets: str, rank: int, seed: int) -> None:
        import peft  # pyright: ignore[reportMissingImports]

        given: dict[str, Any] = {"r": rank, "target_modules": targets, **options}
        if config == "LoraConfig":
            # A factor of one before the product, as ours has.
            given["lora_alpha"] = rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(getattr(peft, config)(**given), network)

    return prepare


RADII = (0.5, 2.0, 8.0)
# Columns of one rotation, as many as PEFT's has.
_BLOCK = 8


def _ball(kind: Callable[..., lo.Parameterization], radius: float) -> Method:
    name = f"{kind.__name__}, radius {radius:g}"
    return Method(name, _of_shape(kind, radius=radius), bounded=True)


def _balls() -> tuple[Method, ...]:
    return (
        *(_ball(lo.NBLoRA, radius) for radius in RADII),
        _ball(lo.HomogeneousBall, 4 * RADII[1]),
        _ball(lo.DeLoRA, 4 * RADII[1]),
    )


def _turned(radius: float) -> Method:
    def make(
        shape: Shape, rank: int, *, weight: Tensor, generator: torch.Generator
    ) -> lo.Parameterization:
        return lo.oft(weight, blocks=shape[1] // _BLOCK, radius=radius)

    return Method(f"oft, radius {radius:g}", _update(make), bounded=True)


_OURS = (
    Method(HEAD, _nothing),
    Method(FULL, _everything),
    Method(LORA, _of_shape(lo.Factored)),
    Method("DoRA", _of_shape(lo.Factored, magnitude=True)),
    *_balls(),
    Method("NoRA", _update(_nora)),
    Method("LoRA-XS", _update(_lora_xs)),
)
_PEFT = (
    Method("LoRA of PEFT", _of_peft("LoraConfig"), peer=True),
    Method("DoRA of PEFT", _of_peft("LoraConfig", use_dora=True), peer=True),
    Method("DeLoRA of PEFT", _of_peft("DeloraConfig", delora_lambda=8), peer=True),
    Method("OFT of PEFT", _of_peft("OFTConfig", r=0, oft_block_size=_BLOCK), peer=True),
)


def methods() -> dict[str, Method]:
    """Return all methods by name; those of PEFT if it is installed."""
    found = (*_OURS, *(_PEFT if find_spec("peft") is not None else ()))
    return {method.name: method for method in found}


def bounded_families(rank: int, radius: float) -> dict[str, Method]:
    """Return LoRA, every kind of ball that this library has, and PEFT's methods, by name.

    `radius` is one of the spectral norm. Balls of other norms get the smallest radius with which
    they hold that one at a rank of `rank`: ``sqrt(rank) * radius`` for the Frobenius norm, ``rank *
    radius`` for the nuclear norm. A rotation R has ``|R - I| <= 0.5``; the largest has 2.
    """
    spectral = (lo.NBLoRA, lo.SpectralLoRA, lo.Contractions, lo.polar)
    nuclear = (lo.HomogeneousBall, lo.DeLoRA, lo.SimplexRankOnes)
    found = (
        Method(LORA, _of_shape(lo.Factored)),
        *(_ball(kind, radius) for kind in spectral),
        _ball(lo.RadialBall, math.sqrt(rank) * radius),
        *(_ball(kind, rank * radius) for kind in nuclear),
        _turned(0.5),
        *(_PEFT if find_spec("peft") is not None else ()),
    )
    return {method.name: method for method in found}
