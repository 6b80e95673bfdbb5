"""Adapted linear layers whose cost is compared: every method of the catalog, and PEFT's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_opt.nn import adapt, adapted_weights, merge
from lowrank_opt.parameterizations import Parameterization, WeightDecomposed
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.example import Example

Shape = tuple[int, int]
LORA = "Factored"


@dataclass(frozen=True)
class Layer:
    """A linear layer, adapted or bare.

    Parameters
    ----------
    name : str
    module : nn.Module
        Computes from (tokens, n) to (tokens, m).
    parts : list of Parameterization
        What is evaluated in a forward pass.
    merged : callable
        Returns a module with the adapter merged in.
    """

    name: str
    module: nn.Module
    parts: list[Parameterization]
    merged: Callable[[], nn.Module]

    def trained(self) -> int:
        """Return the number of trained numbers."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def stored_bytes(self) -> int:
        """Return the bytes of the state beside the base weight: parameters and buffers."""
        base = base_weight(self.module)
        state = self.module.state_dict(keep_vars=True).values()
        return sum(x.nbytes for x in state if x is not base)


def base_weight(module: nn.Module) -> Tensor:
    """Return the frozen weight: the one parameter that is not trained."""
    return next(p for p in module.parameters() if not p.requires_grad)


def layers(shape: Shape, rank: int, names: Iterable[str] | None = None) -> list[Layer]:
    """Return the bare layer and all adapted ones, or those of some names; float32, random.

    Methods of PEFT are there if it is installed. Examples of the catalog with three bounds are
    left out: they fix the rank, and cost what those with a radius do.
    """
    own = {method.name: method for method in examples()}
    return [
        Layer("bare", bare(shape), [], lambda: bare(shape)),
        *(
            _ours(own[n], shape, rank) if n in own else _peer(n, shape, rank)
            for n in chosen_names(names)
        ),
    ]


def chosen_names(names: Iterable[str] | None = None) -> list[str]:
    """Return the methods that can be measured here: all, or LoRA and those of some names."""
    found = [method.name for method in examples() if "(bounds)" not in method.name]
    found += _PEERS if find_spec("peft") is not None else []
    return found if names is None else [name for name in found if name in {LORA, *names}]


def peer_version() -> str:
    """Return the version of PEFT, or that there is none."""
    return version("peft") if find_spec("peft") is not None else "not installed"


def bare(shape: Shape) -> nn.Linear:
    """Return a frozen linear layer, the same at each call."""
    m, n = shape
    layer = nn.Linear(n, m, bias=False).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(layer.weight, std=n**-0.5, generator=generator)
    return layer


def _ours(method: Example, shape: Shape, rank: int) -> Layer:
    module = adapted(method.name, bare(shape), shape, rank)
    parts = [member for found in adapted_weights(module) for member in found.updates]

    def merged() -> nn.Module:
        merge(module)
        return module

    return Layer(method.name, module, parts, merged)


def adapted(name: str, module: nn.Module, shape: Shape, rank: int) -> nn.Module:
    """Adapt every weight of a module, all of one shape, with a method of the catalog; away from 0.

    Parameters
    ----------
    name : str
    module : nn.Module
    shape : (int, int)
    rank : int
    """
    (method,) = (method for method in examples() if method.name == name)
    decomposed = isinstance(method.make(shape, rank, dtype=torch.float32), WeightDecomposed)

    def make(_: Shape) -> Parameterization:
        made = method.make(shape, rank, dtype=torch.float32)
        inner = made.inner if isinstance(made, WeightDecomposed) else made
        assert isinstance(inner, Parameterization), "the catalog has no other classes"
        return inner

    _randomize(adapt(module, make, targets=".*", magnitude=decomposed))
    return module


def adapted_by_peft(name: str, module: nn.Module, shape: Shape, rank: int) -> nn.Module:
    """Adapt every layer of a sequence with a method of PEFT; away from the start."""
    del shape
    return _wrapped(name, module, rank, [key for key, _ in module.named_children()])


def _randomize(module: nn.Module) -> None:
    """Move away from the start, where terms vanish and branches for zeros are taken."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (p for p in module.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)


_PEERS = {
    "PEFT LoRA": ("LoraConfig", {}),
    "PEFT DoRA": ("LoraConfig", {"use_dora": True}),
    "PEFT DeLoRA": ("DeloraConfig", {}),
    "PEFT AdaLoRA": ("AdaLoraConfig", {"total_step": 10}),
    "PEFT VeRA": ("VeraConfig", {}),
}


def _peer(name: str, shape: Shape, rank: int) -> Layer:
    model = _wrapped(name, nn.ModuleDict({"layer": bare(shape)}), rank, ["layer"])
    (module,) = (x for name, x in model.named_modules() if name.endswith("model.layer"))

    def merged() -> nn.Module:
        cast("Callable[[], None]", module.merge)()
        return module

    return Layer(name, module, [], merged)


def _wrapped(name: str, model: nn.Module, rank: int, targets: list[str]) -> nn.Module:
    import peft  # pyright: ignore[reportMissingImports]

    config, options = _PEERS[name]
    key = "init_r" if config == "AdaLoraConfig" else "r"
    given = {**options, key: rank, "target_modules": targets}
    wrapped = cast("nn.Module", peft.get_peft_model(model, getattr(peft, config)(**given)))
    _randomize(wrapped)
    return wrapped
