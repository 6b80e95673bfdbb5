"""What one token costs in an adapted layer that is not merged, and what compiled code costs.

A model that generates text calls each layer for one token after the other, in evaluation mode,
without gradients. Each method takes turns with the bare layer and with PEFT's LoRA (`Factored`
where PEFT is not installed); a cell is a ratio of processor times of one turn. `adapter_cost`
runs this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.adapter_layers import LORA, Layer, Shape, layers
from experiments.turns import in_turns, spread

SIZES: tuple[tuple[Shape, int], ...] = (((512, 512), 16), ((1024, 1024), 16), ((2048, 2048), 16))
QUICK: tuple[tuple[Shape, int], ...] = (((96, 80), 4),)
PEER = "PEFT LoRA"
# Compiled code takes ten seconds a layer to make: the common families, and their peers.
COMPILED = (
    "HomogeneousBall(radius)", "NBLoRA(radius)", "DeLoRA(radius)",
    "WeightDecomposed(inner, weight)", PEER, "PEFT DoRA", "PEFT DeLoRA",
)  # fmt: skip
TOKENS = 256


@dataclass(frozen=True)
class Token:
    """One layer at one size.

    Attributes
    ----------
    name : str
    against_bare, against_peer : list of float
        Processor time of one token in units of the bare layer's and of the peer's.
    """

    name: str
    shape: Shape
    rank: int
    against_bare: list[float]
    against_peer: list[float]


@dataclass(frozen=True)
class Compiled:
    """One layer in compiled code.

    Attributes
    ----------
    name : str
    graphs : int
        That the layer is cut into; 1 is all of it.
    step, token : list of float
        Processor time of forward and backward of 256 tokens, and of the forward of one without
        gradients, in units of the peer's compiled layer.
    step_gain : list of float
        Of the step, in units of the same layer's without a compiler.
    """

    name: str
    shape: Shape
    rank: int
    graphs: int
    step: list[float] = field(default_factory=list[float])
    step_gain: list[float] = field(default_factory=list[float])
    token: list[float] = field(default_factory=list[float])


@torch.no_grad()
def tokens(
    shape: Shape, rank: int, turns: int, calls: int, names: Sequence[str] | None = None
) -> list[Token]:
    """Return what a token costs in every layer of one size."""
    everything = layers(shape, rank, None if names is None else [*names, PEER])
    x = torch.randn(1, 1, shape[1], generator=torch.Generator().manual_seed(0))
    for layer in everything:
        layer.module.eval()
    bare, peer = everything[0], peer_of(everything)
    found: list[Token] = []
    for layer in everything:
        runs = [lambda k=k.module: k(x) for k in (bare, peer, layer)]
        times = in_turns(runs, turns, calls)
        ratios = [[own[0] / each[i][0] for *each, own in times] for i in (0, 1)]
        found.append(Token(layer.name, shape, rank, *ratios))
    return found


def peer_of(everything: Sequence[Layer]) -> Layer:
    """Return the layer that others are measured by."""
    by_name = {layer.name: layer for layer in everything}
    return by_name.get(PEER, by_name[LORA])


def compiled(shape: Shape, rank: int, turns: int, calls: int) -> list[Compiled]:
    """Return what compiled layers of one size cost; takes minutes."""
    everything = layers(shape, rank, COMPILED)
    counts = {layer.name: graphs(layer.module, shape) for layer in everything}
    plain = {layer.name: step_of(layer.module, shape) for layer in everything}
    peer = peer_of(everything).name
    fast = {layer.name: step_of(_compiled(layer.module), shape, warm=True) for layer in everything}
    steps = {x: in_turns([fast[peer], plain[x], fast[x]], turns) for x in counts}
    # Versions of one forward are limited to eight, after which it is not compiled any more.
    torch.compiler.reset()
    fast = {layer.name: token_of(_compiled(layer.module), shape) for layer in everything}
    tokens = {x: in_turns([fast[peer], fast[x]], turns, calls) for x in counts}
    return [
        Compiled(
            name, shape, rank, counts[name],
            step=[own[0] / first[0] for first, _, own in steps[name]],
            step_gain=[own[0] / plain[0] for _, plain, own in steps[name]],
            token=[own[0] / first[0] for first, own in tokens[name]],
        )
        for name in counts
    ]  # fmt: skip


def graphs(module: nn.Module, shape: Shape) -> int:
    """Return how many graphs torch's compiler cuts a layer into."""
    count = 0

    def counted(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        nonlocal count
        count += 1
        return graph.forward

    torch.compiler.reset()
    torch.compile(module, backend=counted)(torch.randn(3, shape[1], requires_grad=True))
    torch.compiler.reset()
    return count


def step_of(
    module: Callable[[Tensor], Tensor], shape: Shape, *, warm: bool = False
) -> Callable[[], object]:
    """Return what runs forward and backward, the gradient of the input included."""
    m, n = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, n, generator=generator).requires_grad_()
    gradient = torch.randn(TOKENS, m, generator=generator)

    def run() -> None:
        x.grad = None
        module(x).backward(gradient)

    if warm:
        run()
    return run


def token_of(module: Callable[[Tensor], Tensor], shape: Shape) -> Callable[[], object]:
    """Return what runs one token without gradients, once compiled."""
    x = torch.randn(1, 1, shape[1], generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def run() -> Tensor:
        return module(x)

    run()
    return run


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(module, dynamic=False)


TOKEN_HEADER = ["method", "token / bare", "token / PEFT LoRA"]
COMPILED_HEADER = [
    "method", "graphs", "step / PEFT LoRA's", "step / not compiled", "token / PEFT LoRA's"
]  # fmt: skip


def token_row(token: Token) -> list[str]:
    """Return the line of the table of tokens."""
    return [token.name, spread(token.against_bare), spread(token.against_peer)]


def compiled_row(cost: Compiled) -> list[str]:
    """Return the line of the table of compiled layers."""
    ratios = (cost.step, cost.step_gain, cost.token)
    return [cost.name, str(cost.graphs), *(spread(x) for x in ratios)]
