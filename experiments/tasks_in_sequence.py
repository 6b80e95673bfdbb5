"""Five tasks one after another, and what is left of the earlier ones: `Complement` and plain LoRA.

Digits as they are, upside down, mirrored, inverted and transposed, learnt in this order by a
network of three layers; every task has a head of its own, and its update is merged before the next
one begins. Reported are the accuracies on all tasks at the end, the largest change of the logits
of an earlier task on its own training images since it was learnt, and the promise of `Complement`:
what the updates do in the subspaces that they are kept out of, as a part of what rounding allows.

    python -m experiments.tasks_in_sequence --out results
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import lowrank_opt as lo
from experiments.panels import column, save
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from experiments.training_vit import digits
from lowrank_opt.nn import adapt, adapted_weights, merge_and_unload

Shape = tuple[int, int]
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "inverted": lambda x: 1 - x,
    "transposed": lambda x: x.mT,
}
WIDTH, RANK, STEPS, BATCH, LR, SEEDS = 256, 8, 250, 64, 3e-3, (0, 1, 2, 3)
# Directions of a task's inputs below this share of the largest one are not protected.
RTOL = 1e-3
# Directions that methods keep which do not find their number themselves: a quarter of all.
KEEP = WIDTH // 4
PROTECTED = "second", "third"


@dataclass
class Past:
    """What a layer has seen: inputs on each task, and the updates that were merged."""

    inputs: list[Tensor] = field(default_factory=list[Tensor])
    updates: list[lo.LowRankOperator] = field(default_factory=list[lo.LowRankOperator])


Make = Callable[[Shape, Tensor, Past], lo.Parameterization]


def lora(shape: Shape, weight: Tensor, past: Past) -> lo.Parameterization:
    """Return a plain update."""
    return lo.Factored(shape, RANK)


def inf_lora(shape: Shape, weight: Tensor, past: Past) -> lo.Parameterization:
    """Return an update that vanishes on the inputs of earlier tasks."""
    inner = lo.Factored(shape, RANK)
    return lo.inf_lora(inner, past.inputs, rtol=RTOL) if past.inputs else inner


def lora_null(shape: Shape, weight: Tensor, past: Past) -> lo.Parameterization:
    """Return an update outside of the leading directions of all earlier inputs."""
    inner = lo.Factored(shape, RANK)
    return lo.lora_null(inner, torch.cat(past.inputs), KEEP) if past.inputs else inner


def o_lora(shape: Shape, weight: Tensor, past: Past) -> lo.Parameterization:
    """Return an update outside of the row spaces of earlier ones."""
    inner = lo.Factored(shape, RANK)
    return lo.o_lora(inner, past.updates) if past.updates else inner


METHODS: dict[str, Make] = {
    "LoRA": lora,
    "InfLoRA": inf_lora,
    "LoRA-Null": lora_null,
    "O-LoRA": o_lora,
    "OPLoRA": lambda shape, weight, past: lo.oplora(lo.Factored(shape, RANK), weight, KEEP),
    "CLoRA": lambda shape, weight, past: lo.clora(lo.Factored(shape, RANK), KEEP),
    "OSF": lambda shape, weight, past: lo.osf(weight, KEEP),
}


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes
    ----------
    accuracies : list of float
        On all tasks at the end.
    drift : float
        Largest relative change of an earlier task's logits.
    promise : float
        Largest part of what rounding allows in the protected subspaces, at most 1; None without.
    """

    method: str
    seed: int
    accuracies: list[float]
    drift: float
    promise: float | None


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
    past, promises = {name: Past() for name in PROTECTED}, list[float]()
    learnt: list[Tensor] = []
    for k, change in enumerate(TASKS.values()):
        x = change(images)
        _learn(model, k, METHODS[method], past, (x[train], labels[train]), steps)
        for found in adapted_weights(model):
            (update,) = found.totals()
            past[found.slot.layer.name].updates.append(update.factors().detach())
            promises += [promise(update)] if isinstance(update, lo.Complement) else []
        model = merge_and_unload(model)
        assert isinstance(model, Network), "layers keep their classes"
        learnt.append(model(x[train], k).detach())
        for name, inputs in _inputs(model, x[train], k).items():
            past[name].inputs.append(inputs)
    changes = list(zip(TASKS.values(), learnt, strict=True))
    accuracies = [
        _accuracy(model, f(images)[test], labels[test], k) for k, (f, _) in enumerate(changes)
    ]
    drift = max(
        float((model(f(images)[train], k).detach() - before).norm() / before.norm())
        for k, (f, before) in enumerate(changes)
    )
    return Outcome(method, seed, accuracies, drift, max(promises, default=None))


@torch.no_grad()
def promise(update: lo.Complement) -> float:
    r"""Return the largest of :math:`|W p|` and :math:`|q^T W|`, over what rounding allows.

    ``4 u sum_i |s_i| |l_i| |r_i|`` for unit vectors of the protected subspaces, u the unit roundoff
    of the update's dtype: at most 1 is the promise of `Complement`.
    """
    op = update.factors().detach()
    wide = op.to(dtype=torch.float64)
    norm = torch.linalg.vector_norm
    terms = float((norm(wide.left, dim=0) * wide.scale.abs() * norm(wide.right, dim=0)).sum())
    sides = [(wide, update.right), (wide.mT, update.left)]
    moved = [
        float(torch.linalg.matrix_norm(x @ basis.double(), 2))
        for x, basis in sides
        if basis is not None
    ]
    allowed = 4 * (torch.finfo(op.dtype).eps / 2) * terms
    return max(moved) / allowed if allowed else 0.0


def _learn(
    model: Network,
    task: int,
    make: Make,
    past: dict[str, Past],
    data: tuple[Tensor, Tensor],
    steps: int,
) -> None:
    def update(shape: Shape, *, weight: Tensor, name: str) -> lo.Parameterization:
        return make(shape, weight, past[name.removesuffix(".weight")])

    adapt(model, update, targets=[*PROTECTED], modules_to_train=[f"heads.{task}"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    x, y = data
    for _ in range(steps):
        batch = torch.randint(len(y), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch], task), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def _inputs(model: Network, x: Tensor, task: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0].detach())
        )
        for name in PROTECTED
    ]
    model(x, task)
    for hook in hooks:
        hook.remove()
    return found


def _accuracy(model: Network, x: Tensor, y: Tensor, task: int) -> float:
    return float((model(x, task).argmax(1) == y).double().mean())


def study(session: Session) -> None:
    """Run the experiment."""
    seeds, steps = ((0,), 10) if session.smoke else (SEEDS, STEPS)
    calls = [partial(run, method, seed, steps) for method in METHODS for seed in seeds]
    outcomes = session.run(calls, "sequences")
    header = ["method", *TASKS, "mean", "largest change of earlier logits", "of what is promised"]
    rows = [_row(name, [o for o in outcomes if o.method == name]) for name in METHODS]
    print(text_table(header, rows))
    _draw(outcomes, session.folder / "tasks-in-sequence.png")
    session.write(
        "tasks-in-sequence.json",
        settings={"rank": RANK, "width": WIDTH, "keep": KEEP, "steps": steps, "rtol": RTOL},
        outcomes=[asdict(o) for o in outcomes],
        table=markdown_table(header, rows),
    )


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    columns = [list(x) for x in zip(*(o.accuracies for o in outcomes), strict=True)]
    means = [sum(o.accuracies) / len(o.accuracies) for o in outcomes]
    promises = [o.promise for o in outcomes if o.promise is not None]
    kept = f"{max(promises):.2f}" if promises else "none"
    cells = [mean_and_spread(x, 3) for x in (*columns, means)]
    return [name, *cells, f"{max(o.drift for o in outcomes):.1e}", kept]


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the accuracy at the end on each task, a line for each method."""
    figure, (ax,) = column(1, height=3.0)
    for shift, name in enumerate(METHODS):
        of = torch.tensor([o.accuracies for o in outcomes if o.method == name])
        error = of.std(0) / len(of) ** 0.5 if len(of) > 1 else torch.zeros(of.shape[1])
        x = [k + 0.05 * (shift - len(METHODS) / 2) for k in range(of.shape[1])]
        ax.errorbar(x, of.mean(0).tolist(), yerr=(2 * error).tolist(), fmt="o-", ms=3, label=name)
    names = [f"{k + 1}. {name}".replace(" ", "\n") for k, name in enumerate(TASKS)]
    ax.set_xticks(range(len(TASKS)), names, fontsize=8)
    ax.set_ylabel("test accuracy after all five tasks", fontsize=9)
    save(figure, ax, path, columns=3)


main = experiment(study, __doc__)

if __name__ == "__main__":
    sys.exit(main())
