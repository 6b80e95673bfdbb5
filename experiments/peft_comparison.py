"""Bounded updates in PEFT's own comparison, in small: a causal model, accuracy and forgetting.

``python -m experiments.peft_comparison`` follows the protocol of PEFT's ``method_comparison``:
train on questions with their answers, test accuracy, and forgetting as the rise of the loss of
Wikipedia text. LoRA, every bounded family, and PEFT's LoRA, DoRA, DeLoRA and OFT where it is
installed, each at the best of the same rates. ``--model`` and ``--questions`` take folders of
another model and of a set of ARC.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from experiments.transfer.comparison import Work, before, front_table, results_table, run
from experiments.transfer.figures import draw_fronts
from experiments.transfer.methods import bounded_families
from experiments.transfer.report import best, curve, measured
from experiments.transfer.runs import Outcome


@dataclass(frozen=True)
class Plan:
    """How much is run: `seeds` choose the rate, `final_seeds` test it, `more_seeds` draw the front.

    The last ones repeat all rates on validation data, so that forgetting at equal accuracy has an
    interval; nothing is chosen by them.
    """

    work: Work
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]


_SMOKE = Work(16, 16, 16, 2, 32, depth=1, batch=8, epochs=1, rank=2, small=True)
_CPU = Work(256, 160, 250, 8, 128, depth=4, batch=8, epochs=1, rank=4)
_GPU = Work(10**6, 500, 10**6, 64, 512, depth=None, batch=16, epochs=2, rank=8)
PLANS = {
    "smoke": Plan(_SMOKE, (1e-3, 1e-2), (0,), (3,), ()),
    "cpu": Plan(_CPU, (3e-3, 1e-2, 3e-2), (0,), (3, 4, 5), (1, 2)),
    "gpu": Plan(_GPU, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0, 1, 2), (3, 4, 5, 6, 7), ()),
}
NAME = "peft-comparison"


@dataclass
class Found:
    """What was found so far."""

    before: dict[str, float]
    runs: list[Outcome]
    final: list[Outcome]

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Return those that have rows."""
        made = {"rates": front_table(self.runs)} if self.runs else {}
        return made | ({"test": results_table(self.final)} if self.final else {})


def compare(session: Session) -> None:
    """Run the experiment; the record is written after each part, so that an end loses one part."""
    plan = _plan(session.options)
    found = Found({}, [], [])
    for seed in plan.seeds:
        found.runs += _rates(session, plan, seed)
        _write(session, plan, found)
    # Not first: then the others would wait for the one that prepares the model.
    found.before = session.run([partial(before, plan.work)], "before")[0]
    chosen = {name: _chosen(found.runs, name) for name in _names(plan)}
    for seed in plan.final_seeds:
        calls = [partial(run, n, lr, seed, plan.work, test=True) for n, lr in chosen.items()]
        found.final += session.run(calls, f"test, seed {seed}")
        _write(session, plan, found)
    for seed in plan.more_seeds:
        found.runs += _rates(session, plan, seed)
        _write(session, plan, found)
    for content in found.tables().values():
        print(text_table(*content), end="\n\n")


def _plan(options: argparse.Namespace) -> Plan:
    plan = PLANS[options.profile]
    if options.profile == "smoke":
        return plan
    folders = [None if path is None else str(path) for path in (options.model, options.questions)]
    gpu = options.profile == "gpu" and torch.cuda.is_available()
    work = replace(
        plan.work, model=folders[0], questions=folders[1], device="cuda" if gpu else "cpu"
    )
    return replace(plan, work=work)


def _names(plan: Plan) -> Sequence[str]:
    return list(bounded_families(plan.work.rank, plan.work.radius))


def _rates(session: Session, plan: Plan, seed: int) -> list[Outcome]:
    calls = [partial(run, name, lr, seed, plan.work) for name in _names(plan) for lr in plan.rates]
    return session.run(calls, f"rates, seed {seed}")


def _chosen(runs: Sequence[Outcome], method: str) -> float:
    top = best(curve(runs, method, sorted({o.seed for o in runs}))).log_rate
    return min((o.lr for o in runs), key=lambda lr: abs(10**top / lr - 1))


def _write(session: Session, plan: Plan, found: Found) -> None:
    labels = ("accuracy of answers in %", "minus the rise of WikiText-2's loss, nats")
    draw_fronts(found.runs, found.final, session.folder / f"{NAME}.png", labels)
    packages = ("peft", "transformers")
    session.write(
        f"{NAME}.json" if plan.work.questions is None else f"{NAME}-arc.json",
        settings=asdict(plan.work),
        rates=[*plan.rates],
        seeds={"rates": [*plan.seeds], "test": [*plan.final_seeds], "more": [*plan.more_seeds]},
        before={**found.before},
        versions={p: version(p) if find_spec(p) else "not installed" for p in packages},
        runs=[asdict(o) for o in found.runs],
        final=[asdict(o) for o in found.final],
        measured=[*measured(found.runs)],
        tables={key: markdown_table(*content) for key, content in found.tables().items()},
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="folder of a causal model of transformers")
    parser.add_argument("--questions", type=Path, help="folder of a set of ARC, as jsonl")


main = experiment(compare, __doc__, options=_options, profiles=("smoke", "cpu", "gpu"))


if __name__ == "__main__":
    sys.exit(main())
