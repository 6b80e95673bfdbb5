"""One run of the comparison in a causal language model, and tables of many."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.claims.finding import mean_interval, paired
from experiments.transfer.causal import LAYERS, Causal, Text, pretrained, small
from experiments.transfer.methods import LORA, bounded_families
from experiments.transfer.questions import Question, arc, encyclopedia, trec
from experiments.transfer.report import Table, best, curve, kept_at
from experiments.transfer.runs import Outcome, batches, holds, train

# What is forgotten is compared where the accuracy is three points below LoRA's best one.
BELOW = 3.0
_SMALL_WORDS = 40


@dataclass(frozen=True)
class Work:
    """What all runs share.

    Parameters
    ----------
    training, validation, test : int
        Questions; for larger numbers than there are, all of the test, and all but those of the
        validation.
    windows, tokens : int
        Text in which forgetting is watched, as much of it twice in the test.
    depth : int, optional
        Layers that are adapted, from the top; all for None.
    batch, epochs, rank : int
    radius : float
        Of the spectral norm; see `bounded_families`.
    model, questions : str, optional
        Folders of a model of transformers and of a set of ARC; SmolLM2-135M and TREC for None.
    device : str
    small : bool
        Made-up questions for two random blocks.
    """

    training: int
    validation: int
    test: int
    windows: int
    tokens: int
    depth: int | None
    batch: int
    epochs: int
    rank: int
    radius: float = 2.0
    model: str | None = None
    questions: str | None = None
    device: str = "cpu"
    small: bool = False


def of(work: Work) -> Causal:
    """Return the model."""
    return small() if work.small else pretrained(work.model, work.depth, work.device)


@cache
def asked(work: Work) -> tuple[list[Question], list[Question]]:
    """Return all questions to train and choose on, and those of the test, spread over all."""
    if work.small:
        drawn = torch.randint(_SMALL_WORDS, (96, 5), generator=torch.Generator().manual_seed(0))
        found = [_made_up(row) for row in drawn]
        return found[:64], found[64:]
    first, test = trec() if work.questions is None else arc(Path(work.questions))
    return first, test[:: max(len(test) // work.test, 1)][: work.test]


def _made_up(row: Tensor) -> Question:
    right = int(row[0]) % 3
    return Question(" ".join(str(int(word)) for word in row), ("101", "102", "103 104"), right)


@cache
def watched(work: Work, test: bool) -> list[Text]:
    """Return windows of an encyclopedia."""
    if work.small:
        drawn = torch.randint(119, (8, 400), generator=torch.Generator().manual_seed(int(test)))
        paragraphs: Sequence[str] = [" ".join(str(int(x)) for x in row) for row in drawn]
    else:
        paragraphs = encyclopedia(test=test)
    return of(work).windows(paragraphs, work.windows * (1 + test), work.tokens)


@cache
def loss_before(work: Work, test: bool) -> float:
    """Return the loss of the model as it was, in nats a token."""
    return of(work).loss(of(work).above, watched(work, test))


def before(work: Work) -> dict[str, float]:
    """Return accuracy and loss of the model as it was, in the test."""
    accuracy = of(work).accuracy(of(work).above, asked(work)[1])
    return {"accuracy": accuracy, "loss": loss_before(work, True)}


def run(method: str, lr: float, seed: int, work: Work, *, test: bool = False) -> Outcome:
    """Fine-tune once; `kept` is minus the rise of the loss of encyclopedic text, in nats a token.

    Training minimises minus the logarithm of the probability of the right answer's tokens, a mean
    over them and over a batch.
    """
    model, (questions, tested) = of(work), asked(work)
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(work.training, len(order) - work.validation)
    training = [questions[k] for k in order[:count]]
    validation = [questions[k] for k in order[count:][: work.validation]]
    way = bounded_families(work.rank, work.radius)[method]
    network = copy.deepcopy(model.above).cpu()
    way.prepare(network, LAYERS, work.rank, seed)
    network.to(work.device)
    trained = [p for p in network.parameters() if p.requires_grad]
    right = [model.told(question)[question.right] for question in training]
    rows = list(batches(len(right), work.epochs, seed, work.batch))
    train(
        lambda batch: model.losses(network, [right[k] for k in batch.tolist()]).mean(),
        [{"params": trained, "lr": lr}],
        rows,
    )
    network.eval()
    kept = partial(_kept, work, network)
    return Outcome(
        method,
        lr,
        seed,
        work.rank,
        model.accuracy(network, validation),
        kept(test=False),
        model.accuracy(network, tested) if test else None,
        kept(test=True) if test else None,
        sum(p.numel() for p in trained),
        holds(network, way),
    )


def _kept(work: Work, network: nn.Module, *, test: bool) -> float:
    return loss_before(work, test) - of(work).loss(network, watched(work, test))


def results_table(final: Sequence[Outcome]) -> Table:
    """Return what the test says at the chosen rates, with intervals over seeds."""
    header = ["update", "trained numbers", "rate", "seeds", "accuracy", "minus LoRA"]
    header += ["forgetting", "minus LoRA"]
    rows: list[list[str]] = []
    listed = [vars(o) | {"forgetting": -float(o.test_kept or 0)} for o in final]
    for method in dict.fromkeys(o.method for o in final):
        own = [row for row in listed if row["method"] == method]
        row = [method, f"{own[0]['trained']:,}", f"{own[0]['lr']:.1g}", str(len(own))]
        for quantity, digits in (("test_accuracy", 1), ("forgetting", 4)):
            row.append(_with_interval([float(r[quantity]) for r in own], digits))
            gained = paired(listed, method, LORA, quantity)
            row.append("" if method == LORA else _with_interval(gained, digits))
        rows.append(row)
    return header, rows


def front_table(runs: Sequence[Outcome]) -> Table:
    """Return accuracy and forgetting at each rate, and the latter at equal accuracy."""
    rates = sorted({o.lr for o in runs})
    header = ["update", *(f"at {lr:.1g}" for lr in rates), "forgetting at equal accuracy"]
    rows: list[list[str]] = []
    for method in dict.fromkeys(o.method for o in runs):
        seeds = sorted({o.seed for o in runs if o.method == method})
        cells = {round(p.log_rate, 6): p for p in curve(runs, method, seeds)}
        points = [cells.get(round(float(torch.tensor(lr).double().log10()), 6)) for lr in rates]
        row = ["not run" if p is None else f"{p.accuracy:.1f} / {-p.kept:.4f}" for p in points]
        rows.append([method, *row, _at_equal_accuracy(runs, method, seeds)])
    return header, rows


def _at_equal_accuracy(runs: Sequence[Outcome], method: str, seeds: Sequence[int]) -> str:
    found = [
        kept_at(curve(runs, method, [s]), best(curve(runs, LORA, [s])).accuracy - BELOW)
        for s in seeds
    ]
    values = [-x for x in found if x is not None]
    return _with_interval(values, 4) if len(values) == len(seeds) else "not reached"


def _with_interval(values: Sequence[float], digits: int) -> str:
    """Return the mean and its 95 % interval, the value alone for one, nothing for none."""
    if not values:
        return "not run"
    mean, low, high = mean_interval(values)
    if low != low:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
