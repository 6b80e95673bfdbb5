"""What an adapted linear layer costs, beside the bare layer, plain LoRA and PEFT's layers.

Counts first: trained numbers, bytes, floating-point operations, memory kept for the backward pass,
evaluations of the factors, m x n matrices formed. Then seconds, as ratios: each turn times the bare
layer, LoRA and the method one after the other, so that whatever else the machine does falls on all
three. ``python -m experiments.adapter_cost`` writes a table, a JSON record and a figure, and the
same for one token (`adapter_token`) and for networks (`adapter_network`).
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments import adapter_network, adapter_token
from experiments.adapter_layers import LORA, Layer, Shape, layers, peer_version
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from experiments.turns import in_turns, spread
from lowrank_opt.errors import DenseMaterializationError
from lowrank_opt.testing import forbid_dense

SIZES: tuple[tuple[Shape, int], ...] = (((768, 768), 8), ((3072, 768), 8), ((768, 768), 64))
QUICK: tuple[tuple[Shape, int], ...] = (((96, 80), 4),)
TOKENS = 256


@dataclass(frozen=True)
class Cost:
    """One layer at one size.

    Attributes
    ----------
    name : str
    trained, stored_bytes : int
        Beside the base weight.
    flops : int
        Of matrix products, forward and backward; decompositions are not in torch's count.
    kept_bytes : int
        Kept for the backward pass, without input, weights and buffers.
    evaluations : int
        Of the factors in one forward pass; 0 for layers of other packages.
    dense : str
        In which pass as many numbers as an m x n matrix has are allocated, for three tokens.
    training, merged : list of float
        Processor time of forward and backward, and of the forward of the merged layer, in units of
        the bare layer's in the same turn.
    against_lora, against_lora_wall : list of float
        Processor and wall time of forward and backward in units of `Factored` in the same turn.
    """

    name: str
    shape: Shape
    rank: int
    trained: int
    stored_bytes: int
    flops: int
    kept_bytes: int
    evaluations: int
    dense: str
    training: list[float]
    against_lora: list[float]
    against_lora_wall: list[float]
    merged: list[float]


def step(module: nn.Module, x: Tensor, gradient: Tensor) -> Tensor:
    """Run forward and backward; the gradient reaches the input too, as inside a network."""
    for p in module.parameters():
        p.grad = None
    x.grad = None
    y = module(x)
    y.backward(gradient)
    return y


def flops(module: nn.Module, x: Tensor, gradient: Tensor) -> int:
    """Return the operations of a step's matrix products."""
    with FlopCounterMode(display=False) as counter:
        step(module, x, gradient)
    return counter.get_total_flops()


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps from the forward pass, each storage once."""
    own = [x, *module.parameters(), *module.buffers()]
    known = {p.untyped_storage().data_ptr() for p in own}
    kept: dict[int, int] = {}
    # Alive to the end, so that no storage takes the place of another.
    alive: list[Tensor] = []

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        _ = module(x)
    return sum(kept.values())


def dense_passes(module: nn.Module, shape: Shape) -> str:
    """Return in which passes a matrix of m x n numbers is allocated, for three tokens."""
    m, n = shape
    x = torch.randn(3, n, requires_grad=True)
    forward = _allocates(lambda: module(x), shape)
    y = module(x)
    backward = _allocates(lambda: y.backward(torch.randn(3, m)), shape)
    found = [name for name, hit in (("forward", forward), ("backward", backward)) if hit]
    return ", ".join(found) or "no"


def _allocates(run: Callable[[], object], shape: Shape) -> bool:
    try:
        with forbid_dense(shape):
            run()
    except DenseMaterializationError:
        return True
    return False


def evaluations(layer: Layer, x: Tensor) -> int:
    """Return how often the factors are evaluated in one forward pass."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    hooks = [part.register_forward_hook(counted) for part in layer.parts]
    layer.module(x)
    for hook in hooks:
        hook.remove()
    return count


def measure(shape: Shape, rank: int, turns: int, names: Sequence[str] | None = None) -> list[Cost]:
    """Return the cost of every layer at one size."""
    everything = layers(shape, rank, names)
    m, n = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, n, generator=generator).requires_grad_()
    gradient = torch.randn(TOKENS, m, generator=generator)
    bare, lora = (next(x for x in everything if x.name == name) for name in ("bare", LORA))
    found: list[Cost] = []
    for layer in everything:
        trio = [bare.module, lora.module, layer.module]
        times = in_turns([lambda k=k: step(k, x, gradient) for k in trio], turns)
        # Counted before the layer is merged.
        counts = {
            "trained": layer.trained(),
            "stored_bytes": layer.stored_bytes(),
            "flops": flops(layer.module, x, gradient),
            "kept_bytes": kept_bytes(layer.module, x),
            "evaluations": evaluations(layer, x),
        }
        dense = dense_passes(layer.module, shape)
        merged = _merged_times(bare, layer, x.detach(), turns) if layer is not lora else []
        found.append(
            Cost(
                layer.name, shape, rank, **counts, dense=dense,
                training=[own[0] / first[0] for first, _, own in times],
                against_lora=[own[0] / second[0] for _, second, own in times],
                against_lora_wall=[own[1] / second[1] for _, second, own in times],
                merged=merged,
            )
        )  # fmt: skip
    return found


def _merged_times(bare: Layer, layer: Layer, x: Tensor, turns: int) -> list[float]:
    merged = layer.merged()
    with torch.no_grad():
        pairs = in_turns([lambda: bare.module(x), lambda: merged(x)], turns)
    return [own[0] / first[0] for first, own in pairs]


HEADER = [
    "method", "trained", "stored KiB", "flops / bare", "kept KiB", "dense",
    "training / bare", "training / LoRA", "merged / bare",
]  # fmt: skip


def row(cost: Cost, bare: Cost) -> list[str]:
    """Return the line of the table."""
    return [
        cost.name,
        str(cost.trained),
        f"{cost.stored_bytes / 1024:.0f}",
        f"{cost.flops / bare.flops:.2f}",
        f"{(cost.kept_bytes - bare.kept_bytes) / 1024:.0f}",
        cost.dense,
        spread(cost.training),
        spread(cost.against_lora),
        spread(cost.merged),
    ]


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Draw the time of training beside LoRA's for every method, a panel for each size."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys((cost.shape, cost.rank) for cost in costs))
    names = [cost.name for cost in costs if (cost.shape, cost.rank) == sizes[0]][1:]
    figure = Figure(figsize=(3.0 + 3.2 * len(sizes), 0.9 + 0.21 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, (shape, rank) in zip(panels, sizes, strict=True):
        own = {c.name: c for c in costs if (c.shape, c.rank) == (shape, rank)}
        for k, name in enumerate(names):
            low, middle, high = statistics.quantiles(own[name].training, n=4, method="inclusive")
            color = "tab:orange" if name.startswith("PEFT") else "tab:blue"
            panel.plot([low, high], [k, k], color=color)
            panel.plot([middle], [k], "o", color=color, markersize=4)
        lora = statistics.median(own[LORA].training)
        panel.axvline(lora, color="gray", linewidth=0.8, linestyle="--")
        panel.set_xscale("log")
        panel.set_xticks([1, 1.5, 2, 3, 4, 6, 8], ["1", "1.5", "2", "3", "4", "6", "8"])
        panel.set_xticks([], minor=True)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_title(f"{shape[0]} x {shape[1]}, rank {rank}", fontsize=9)
        panel.set_xlabel("training / bare layer", fontsize=9)
    figure.savefig(path, dpi=90)


def study(session: Session) -> None:
    """Measure the parts that are asked for, and write a record of each."""
    options = session.options
    torch.set_num_threads(options.threads)
    turns = 2 if session.smoke else options.turns
    settings: dict[str, Json] = {
        "tokens": TOKENS,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "peft": peer_version(),
    }
    if "step" in options.parts:
        _steps(session, turns, settings)
    if {"token", "compile"} & {*options.parts}:
        _tokens(session, turns, settings)
    if "network" in options.parts:
        _networks(session, turns, settings)


def _steps(session: Session, turns: int, settings: dict[str, Json]) -> None:
    costs: list[Cost] = []
    tables: dict[str, Json] = {}
    for shape, rank in QUICK if session.smoke else SIZES:
        own = measure(shape, rank, turns, session.options.methods)
        title = f"{shape[0]} x {shape[1]}, rank {rank}"
        print(f"{title}, {TOKENS} tokens, {turns} turns, {torch.get_num_threads()} threads")
        tables[title] = _shown(HEADER, [row(cost, own[0]) for cost in own])
        costs += own
    draw(costs, session.folder / "adapter-cost.png")
    session.write("adapter-cost.json", settings=settings, costs=_plain(costs), tables=tables)


def _tokens(session: Session, turns: int, settings: dict[str, Json]) -> None:
    """Measure one token, and compiled layers of the first size."""
    options = session.options
    calls = 5 if session.smoke else options.calls
    costs: list[adapter_token.Token] = []
    found: list[adapter_token.Compiled] = []
    tables: dict[str, Json] = {}
    sizes = adapter_token.QUICK if session.smoke else adapter_token.SIZES
    for shape, rank in sizes if "token" in options.parts else ():
        own = adapter_token.tokens(shape, rank, turns, calls, options.methods)
        title = f"{shape[0]} x {shape[1]}, rank {rank}, one token"
        print(title)
        tables[title] = _shown(adapter_token.TOKEN_HEADER, [*map(adapter_token.token_row, own)])
        costs += own
    if "compile" in options.parts:
        (shape, rank), *_ = sizes
        found = adapter_token.compiled(shape, rank, turns, calls)
        title = f"{shape[0]} x {shape[1]}, rank {rank}, compiled"
        print(title)
        rows = [*map(adapter_token.compiled_row, found)]
        tables[title] = _shown(adapter_token.COMPILED_HEADER, rows)
    session.write(
        "adapter-token.json",
        settings={**settings, "calls": calls},
        tokens=_plain(costs),
        compiled=_plain(found),
        tables=tables,
    )


def _networks(session: Session, turns: int, settings: dict[str, Json]) -> None:
    """Measure steps of networks, adapted in every layer."""
    found: list[adapter_network.Network] = []
    tables: dict[str, Json] = {}
    sizes, rank = adapter_network.SIZES, adapter_network.RANK
    if session.smoke:
        sizes, rank = adapter_network.QUICK, adapter_network.QUICK_RANK
    for width, depth in sizes:
        own = adapter_network.networks(width, depth, rank, TOKENS, turns, session.options.methods)
        title = f"{depth} layers of {width} x {width}, rank {rank}"
        print(f"{title}, {TOKENS} tokens, {turns} turns")
        tables[title] = _shown(adapter_network.HEADER, adapter_network.rows(own))
        found += own
    session.write(
        "adapter-network.json",
        settings=settings,
        networks=[{**asdict(x)} for x in found],
        tables=tables,
    )


def _shown(header: list[str], rows: list[list[str]]) -> Json:
    print(text_table(header, rows))
    return markdown_table(header, rows)


def _plain(
    costs: Sequence[Cost | adapter_token.Token | adapter_token.Compiled],
) -> list[Json]:
    return [{**asdict(cost), "shape": [*cost.shape]} for cost in costs]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", help="names of the catalog; LoRA is always there")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("step", "token", "compile", "network"),
        default=["step", "token", "network"],
        help="a training step of a layer, one token of a layer that is not merged, compiled layers "
        "(minutes), a step of a network",
    )
    parser.add_argument("--calls", type=int, default=100, help="tokens in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
