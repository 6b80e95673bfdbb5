"""One fine-tuning: what is learnt of the new task, and what is kept of the old one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from experiments.transfer.methods import Method, methods
from lowrank_opt.nn import adapter_report, rewind

BATCH = 64
FRACTIONS = (1.0, 0.8, 0.6, 0.4, 0.2)
_AT_ONCE = 100


class Split(NamedTuple):
    """Inputs, one row each, and labels."""

    inputs: Tensor
    labels: Tensor


class Target(NamedTuple):
    """The new task: what is trained on, what settings are chosen on, what is looked at once."""

    training: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """A network, its old skill, and a new task.

    Parameters
    ----------
    network : callable
        Returns a copy of the trained network, from inputs to features of shape (batch, width).
    layers : str
        Regular expression for the names of the layers that are adapted.
    target : callable
        Given a seed, returns the new task; test inputs are the same for all seeds.
    skill : callable
        Given a network and whether to test, returns how good it is at the old task, in per cent.
    methods : callable
        Returns the ways to adapt, by name.
    """

    network: Callable[[], nn.Module]
    layers: str
    target: Callable[[int], Target]
    skill: Callable[[nn.Module, bool], float]
    methods: Callable[[], Mapping[str, Method]] = methods


@dataclass(frozen=True)
class Setting:
    """What is common to some runs; `head_rate` is the learning rate of the new head."""

    rank: int
    epochs: int
    head_rate: float
    batch: int = BATCH


@dataclass(frozen=True)
class Outcome:
    """One run: accuracies on the new task and skill at the old one, in per cent.

    Those of the test are None where it was not looked at; `holds` tells whether a bound does, None
    for updates that declare none. `path` has fraction of the trained norm, accuracy and what is
    kept, in validation, where the update was rewound.
    """

    method: str
    lr: float
    seed: int
    rank: int
    accuracy: float
    kept: float
    test_accuracy: float | None
    test_kept: float | None
    trained: int
    holds: bool | None
    path: tuple[tuple[float, float, float], ...] = ()


def fine_tune(
    task: Task, name: str, lr: float, seed: int, setting: Setting, *, test: bool = False
) -> Outcome:
    """Train once: AdamW without decay of weights, a cosine from `lr` to zero."""
    return _trained(task, name, lr, seed, setting).outcome(test=test)


def fine_tune_and_rewind(
    task: Task, name: str, lr: float, seed: int, setting: Setting
) -> tuple[Outcome, Outcome]:
    """Train once, test, and test again where the validation is best on the way back to zero.

    The second outcome's `holds` is that of the certificates of the rewound update.
    """
    run = _trained(task, name, lr, seed, setting)
    first = run.outcome(test=True)
    report = rewind(
        run.network,
        validation=lambda: -accuracy(run.network, run.head, run.target.validation),
        source=lambda: -task.skill(run.network, False),
        fractions=FRACTIONS,
    )
    path = tuple((p.fraction, -p.target, -p.source) for p in report.path)
    again = replace(run.outcome(test=True), method=f"{name}, rewound", holds=report.holds)
    return replace(first, path=path), again


@dataclass(frozen=True)
class _Trained:
    """What a run has made."""

    task: Task
    target: Target
    network: nn.Module
    head: nn.Linear
    known: tuple[str, float, int, int]
    numbers: int

    def outcome(self, *, test: bool) -> Outcome:
        task, target, network, head = self.task, self.target, self.network, self.head
        return Outcome(
            *self.known,
            accuracy(network, head, target.validation),
            task.skill(network, False),
            accuracy(network, head, target.test) if test else None,
            task.skill(network, True) if test else None,
            self.numbers,
            holds(network, task.methods()[self.known[0]]),
        )


def _trained(task: Task, name: str, lr: float, seed: int, setting: Setting) -> _Trained:
    target, network = task.target(seed), task.network()
    task.methods()[name].prepare(network, task.layers, setting.rank, seed)
    head = _head(network, target, seed)
    trained = [p for p in network.parameters() if p.requires_grad]
    _train(network, head, trained, target.training, lr, seed, setting)
    network.eval()
    numbers = sum(p.numel() for p in trained)
    return _Trained(task, target, network, head, (name, lr, seed, setting.rank), numbers)


def holds(network: nn.Module, method: Method) -> bool | None:
    """Return whether the declared bounds of all updates hold; None if they declare none."""
    return all(site.holds for site in adapter_report(network)) if method.bounded else None


def _head(network: nn.Module, target: Target, seed: int) -> nn.Linear:
    classes = int(target.training.labels.max()) + 1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return nn.Linear(network(target.training.inputs[:1]).shape[1], classes)


def _train(
    network: nn.Module,
    head: nn.Module,
    trained: Sequence[nn.Parameter],
    split: Split,
    lr: float,
    seed: int,
    setting: Setting,
) -> None:
    rates: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": setting.head_rate}]
    if trained:
        rates.append({"params": list(trained), "lr": lr})

    def loss(batch: Tensor) -> Tensor:
        logits = head(network(split.inputs[batch]))
        return nn.functional.cross_entropy(logits, split.labels[batch])

    train(loss, rates, list(batches(len(split.labels), setting.epochs, seed, setting.batch)))


def train(
    loss: Callable[[Tensor], Tensor],
    groups: list[dict[str, Any]],
    order: Sequence[Tensor],
) -> None:
    """Minimise a loss of batches: AdamW without decay of weights, a cosine from the rates to zero.

    Parameters
    ----------
    loss : callable
        From the numbers of some rows to a scalar.
    groups : list of dict
        Parameters and their rates, as optimizers take them.
    order : sequence of Tensor
        All batches.
    """
    optimizer = AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        schedule.step()


def batches(count: int, epochs: int, seed: int, size: int = BATCH) -> Iterator[Tensor]:
    """Yield the batches of some epochs, each of which sees every row once."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(size)


@torch.no_grad()
def features(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return features of many inputs."""
    return torch.cat([network(part) for part in inputs.split(_AT_ONCE)])


@torch.no_grad()
def accuracy(network: nn.Module, head: nn.Module, split: Split) -> float:
    """Return the percentage of right answers."""
    found = head(features(network, split.inputs)).argmax(dim=1)
    return float(100 * (found == split.labels).double().mean())
