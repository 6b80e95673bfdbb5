"""What a training step of a deep network costs with an adapter in every layer.

Alike adapters are evaluated in one stacked call, which a single layer does not show. So here is a
chain of frozen linear layers of one width, adapted, beside PEFT's layers on the same weights.
Counted: operations that torch dispatches in a step, and the bytes that are alive when the forward
pass is over. Timed: processor time of forward and backward, in units of PEFT's LoRA (`Factored`
where PEFT is not installed), which takes turns with all methods. `adapter_cost` runs this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.adapter_layers import LORA, adapted, adapted_by_peft, chosen_names
from experiments.turns import in_turns, spread

# Width and number of layers; rank 16.
SIZES: tuple[tuple[int, int], ...] = ((512, 24), (1024, 12), (2048, 8), (4096, 4))
QUICK: tuple[tuple[int, int], ...] = ((32, 3),)
RANK, QUICK_RANK = 16, 2
PEER = "PEFT LoRA"
NAMES = (
    "NBLoRA(radius)", "HomogeneousBall(radius)", "DeLoRA(radius)", LORA, PEER, "PEFT DeLoRA",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network of one width with one method.

    Attributes
    ----------
    operations : float
        Dispatched in a step, for each layer.
    kept_bytes : int
        Alive after the forward pass and not before, for each layer.
    against_peer, against_peer_wall : list of float
        Processor and wall time of a step in units of the peer's in the same turn.
    """

    name: str
    width: int
    layers: int
    rank: int
    tokens: int
    operations: float
    kept_bytes: float
    against_peer: list[float]
    against_peer_wall: list[float]


class Watch(TorchDispatchMode):
    """Counts operations, and knows the memory of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        found = func(*args, **(kwargs or {}))
        self.count += 1
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}  # pyright: ignore[reportPrivateUsage]
        for x in _tensors(found):
            storage = x.untyped_storage()
            if storage._cdata not in given:  # pyright: ignore[reportPrivateUsage]
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # pyright: ignore[reportPrivateUsage]
        return found

    def alive(self) -> int:
        """Return the bytes of what operations have allocated and nothing has freed."""
        return sum(size for found, size in self._storages.values() if not found.expired())


def _tensors(tree: object) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def step(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Run forward and backward."""
    for p in module.parameters():
        p.grad = None
    x.grad = None
    module(x).backward(gradient)


def counts(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[int, int]:
    """Return the operations of a step, and the bytes kept by its forward pass, output included."""
    step(module, x, gradient)
    for p in (*module.parameters(), x):
        p.grad = None
    with Watch() as watch:
        y = module(x)
        kept = watch.alive()
        y.backward(gradient)
    return watch.count, kept


def networks(
    width: int, layers: int, rank: int, tokens: int, turns: int, names: Sequence[str] | None
) -> list[Network]:
    """Return the costs of all methods at one width."""
    weights = [nn.Parameter(w, requires_grad=False) for w in _weights(width, layers)]

    def chain() -> nn.Sequential:
        return nn.Sequential(*(_layer(weight) for weight in weights))

    made: dict[str, nn.Module] = {"bare": chain()}
    for name in chosen_names([*(NAMES if names is None else names), PEER]):
        build = adapted_by_peft if name.startswith("PEFT") else adapted
        made[name] = build(name, chain(), (width, width), rank)
    peer = PEER if PEER in made else LORA
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).requires_grad_()
    gradient = torch.randn(tokens, width, generator=generator)
    counted = {name: counts(module, x, gradient) for name, module in made.items()}
    order = [peer, *made]
    times = in_turns([lambda k=made[name]: step(k, x, gradient) for name in order], turns)
    return [
        Network(
            name, width, layers, rank, tokens,
            operations=counted[name][0] / layers,
            kept_bytes=counted[name][1] / layers,
            against_peer=[each[i][0] / each[0][0] for each in times],
            against_peer_wall=[each[i][1] / each[0][1] for each in times],
        )
        for i, name in enumerate(order) if i
    ]  # fmt: skip


def _weights(width: int, layers: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(width, width, generator=generator) * width**-0.5 for _ in range(layers)]


def _layer(weight: nn.Parameter) -> nn.Linear:
    """Return a layer of a weight, which the networks of all methods share."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    return layer


HEADER = ["method", "operations", "kept KiB", "kept / PEFT LoRA", "step / PEFT LoRA"]


def rows(found: Sequence[Network]) -> list[list[str]]:
    """Return the lines of the table of one width."""
    by_name = {x.name: x for x in found}
    peer = by_name.get(PEER, by_name[LORA])
    return [
        [
            x.name,
            f"{x.operations:.0f}",
            f"{x.kept_bytes / 1024:.0f}",
            f"{x.kept_bytes / peer.kept_bytes:.2f}",
            spread(x.against_peer),
        ]
        for x in found
    ]
