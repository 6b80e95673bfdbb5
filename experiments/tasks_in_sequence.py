"""Five tasks one after another, and what is left of the earlier ones: `Complement` and plain LoRA.

Digits as they are, upside down, mirrored, inverted and transposed, learnt in this order by a
network of three layers; every task has a head of its own, and its update is merged before the next
one begins. Reported are the accuracies on all tasks at the end, and the largest change of the
logits of an earlier task on its own training images since it was learnt.

    python -m experiments.tasks_in_sequence --out results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import lowrank_opt as lo
from experiments.records import Json, environment, prepare_folder, write_record
from experiments.tables import markdown_table, mean_and_spread, text_table
from experiments.training_vit import digits
from lowrank_opt.nn import adapt, merge_and_unload

Shape = tuple[int, int]
Make = Callable[[Shape, Tensor, Tensor | None], lo.Parameterization]
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "inverted": lambda x: 1 - x,
    "transposed": lambda x: x.mT,
}
WIDTH, RANK, STEPS, BATCH, LR = 512, 8, 400, 64, 3e-3
# Directions of a task's inputs below this share of the largest one are not protected.
RTOL = 1e-3


def plain(shape: Shape, weight: Tensor, seen: Tensor | None) -> lo.Parameterization:
    """Return LoRA, whatever was seen before."""
    return lo.Factored(shape, RANK)


def protected(shape: Shape, weight: Tensor, seen: Tensor | None) -> lo.Parameterization:
    """Return LoRA that vanishes on the inputs of earlier tasks."""
    inner = lo.Factored(shape, RANK)
    return inner if seen is None else lo.Complement(inner, right=seen)


def leading_kept(shape: Shape, weight: Tensor, seen: Tensor | None) -> lo.Parameterization:
    """Return LoRA outside of the leading singular directions of the weight (OPLoRA)."""
    return lo.oplora(lo.Factored(shape, RANK), weight, keep=min(shape) // 4)


METHODS: dict[str, Make] = {
    "LoRA": plain,
    "LoRA outside of earlier inputs": protected,
    "OPLoRA": leading_kept,
}


@dataclass(frozen=True)
class Outcome:
    """One run: accuracies on all tasks at the end, and how far earlier logits moved."""

    method: str
    seed: int
    accuracies: list[float]
    drift: float


class Network(nn.Module):
    """A frozen first layer, two adapted ones, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, WIDTH)
        self.second, self.third = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in TASKS)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Return the logits of one task."""
        h = torch.tanh(self.first(x.flatten(1)))
        return self.heads[task](torch.relu(self.third(torch.relu(self.second(h)))))


def run(method: str, seed: int, steps: int = STEPS) -> Outcome:
    """Learn all tasks in sequence."""
    torch.manual_seed(seed)
    model, (images, labels) = Network(), digits()
    order = torch.randperm(len(labels))
    train, test = order[:1000], order[1000:]
    seen: dict[str, Tensor | None] = {"second": None, "third": None}
    learnt: list[Tensor] = []
    for k, change in enumerate(TASKS.values()):
        x = change(images)
        model = _learn(model, k, METHODS[method], seen, (x[train], labels[train]), steps)
        learnt.append(model(x[train], k).detach())
        for name, inputs in _inputs(model, x[train], k).items():
            seen[name] = lo.extend_basis(seen[name], inputs.mT, rtol=RTOL)
    accuracies = [
        _accuracy(model, f(images)[test], labels[test], k) for k, f in enumerate(TASKS.values())
    ]
    changes = zip(TASKS.values(), learnt, strict=True)
    drift = max(
        float((model(f(images)[train], k).detach() - before).norm() / before.norm())
        for k, (f, before) in enumerate(changes)
    )
    return Outcome(method, seed, accuracies, drift)


def _learn(
    model: Network,
    task: int,
    make: Make,
    seen: dict[str, Tensor | None],
    data: tuple[Tensor, Tensor],
    steps: int,
) -> Network:
    def update(shape: Shape, *, weight: Tensor, name: str) -> lo.Parameterization:
        return make(shape, weight, seen[name.removesuffix(".weight")])

    adapt(model, update, targets=["second", "third"], modules_to_train=[f"heads.{task}"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    x, y = data
    for _ in range(steps):
        batch = torch.randint(len(y), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch], task), y[batch]).backward()
        optimizer.step()
    merged = merge_and_unload(model)
    assert isinstance(merged, Network), "layers keep their classes"
    return merged


@torch.no_grad()
def _inputs(model: Network, x: Tensor, task: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0].detach())
        )
        for name in ("second", "third")
    ]
    model(x, task)
    for hook in hooks:
        hook.remove()
    return found


def _accuracy(model: Network, x: Tensor, y: Tensor, task: int) -> float:
    return float((model(x, task).argmax(1) == y).double().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    parser.add_argument("--quick", action="store_true", help="one seed of a few steps")
    options = parser.parse_args(arguments)
    seeds, steps = ((0,), 20) if options.quick else (tuple(range(6)), STEPS)
    outcomes = [run(method, seed, steps) for method in METHODS for seed in seeds]
    header = ["method", *TASKS, "largest change of earlier logits"]
    rows = [_row(name, [o for o in outcomes if o.method == name]) for name in METHODS]
    print(text_table(header, rows))
    record: dict[str, Json] = {
        "environment": environment(),
        "settings": {"rank": RANK, "steps": steps, "rtol": RTOL, "seeds": list(seeds)},
        "outcomes": [asdict(o) for o in outcomes],
        "table": markdown_table(header, rows),
    }
    write_record(prepare_folder(options.out) / "tasks-in-sequence.json", record)
    return 0


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    columns = zip(*(o.accuracies for o in outcomes), strict=True)
    drift = max(o.drift for o in outcomes)
    return [name, *(mean_and_spread(list(x), 3) for x in columns), f"{drift:.1e}"]


if __name__ == "__main__":
    sys.exit(main())
