"""Private averages of adapters: accuracy against epsilon, by where the noise goes.

``python -m experiments.private_averages`` lets 300 clients with three digits each, seen turned,
train one LoRA update in three rounds. The server releases the mean with noise for an (epsilon,
delta) that covers all rounds and layers: on every entry of the mean, which is then cut to the rank,
or on the left factors alone, where all clients share a frozen right one (FFA). The radius, to
which updates are cut, is chosen on validation digits of another seed; that choice is not private.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from experiments.claims.finding import mean_interval
from experiments.federated_task import DOMAINS, RANK, Federation, Task, disguised, federation
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.merging import private_merge
from lowrank_opt.operator import LowRankOperator

EPSILONS = (2.0, 8.0, 32.0, 1e6)
RADII = (2.0, 8.0)
DELTA, LR, STEPS, ROUNDS = 1e-4, 0.8, 20, 3
CLIENTS, DOMAIN = 300, "turned"
TUNING, SEEDS = (100,), (0, 1, 2, 3)
Mechanism = Literal["dense", "ffa"]
NAMES: dict[Mechanism, str] = {"dense": "all entries, cut to rank 4", "ffa": "left factors (FFA)"}


@dataclass(frozen=True)
class Outcome:
    """One training; accuracies in per cent, `cut` the share of updates above the radius."""

    mechanism: str
    epsilon: float
    radius: float
    seed: int
    validation: float
    test: float
    before: float
    cut: float


@cache
def clients(seed: int) -> Task:
    """Return digits of one domain, three for each client, and a network of upright ones."""
    six, view = federation(seed), DOMAINS.index(DOMAIN)
    upright = torch.cat([_upright(six.images[k], k) for k in range(len(DOMAINS))])
    images = disguised(upright, view).view(CLIENTS, -1, upright[0].numel())
    return Task(
        images,
        six.labels.reshape(CLIENTS, -1),
        {name: (x[view : view + 1], y) for name, (x, y) in six.held_out.items()},
        six.weights,
        six.biases,
    )


def _upright(images: Tensor, domain: int) -> Tensor:
    """Undo a disguise; the last one loses what it blurs, and stays blurred."""
    x = images.view(-1, 8, 8)
    back = (x, x.flip(2), x.mT, 1 - x, x.rot90(-1, dims=(1, 2)), 2 * x)
    return back[domain]


def run(
    mechanism: Mechanism, epsilon: float, radius: float, seed: int, rounds: int = ROUNDS
) -> Outcome:
    """Train all rounds; the noise is drawn by the seed, which is not private."""
    state, generator = Federation(clients(seed), seed), torch.Generator().manual_seed(seed)
    before, cut = state.accuracy("test"), 0.0
    for _ in range(rounds):
        state.train(STEPS, LR, frozen_right=mechanism == "ffa")
        sent = state.sent()
        cut += _share_cut(sent, radius) / rounds
        released = private_merge(
            sent,
            epsilon=epsilon,
            delta=DELTA,
            radius=radius,
            mechanism=mechanism,
            rank=None if mechanism == "ffa" else RANK,
            rounds=rounds,
            clip=True,
            generator=generator,
        )
        for name, found in released.items():
            state.start_from(int(name), _factors(found.operator, mechanism))
    validation, test = 100 * state.accuracy("validation"), 100 * state.accuracy("test")
    return Outcome(mechanism, epsilon, radius, seed, validation, test, 100 * before, cut)


def _share_cut(sent: Sequence[Mapping[str, tuple[Tensor, Tensor]]], radius: float) -> float:
    """Return the share of matrices whose norm is above the radius."""
    norms = [
        float(LowRankOperator(left, torch.ones(RANK), right).schatten_norm(2))
        for one in sent
        for left, right in one.values()
    ]
    return statistics.fmean(norm > radius for norm in norms)


def _factors(op: LowRankOperator, mechanism: Mechanism) -> LowRankOperator:
    """Return the update as clients start from it: with the shared right factor, or balanced."""
    if mechanism == "ffa":
        return LowRankOperator(op.left * op.scale, torch.ones(RANK), op.right)
    U, s, V = op.thin_svd()
    root = s[:RANK].sqrt()
    return LowRankOperator(U[:, :RANK] * root, torch.ones(RANK), V[:, :RANK] * root)


def chosen(tried: Sequence[Outcome], mechanism: str, epsilon: float) -> float:
    """Return the radius with the best mean validation accuracy."""
    own = [o for o in tried if (o.mechanism, o.epsilon) == (mechanism, epsilon)]

    def mean(radius: float) -> float:
        return statistics.fmean(o.validation for o in own if o.radius == radius)

    return max(sorted({o.radius for o in own}), key=mean)


def table(final: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return one row for each epsilon and mechanism."""
    header = [
        "epsilon",
        "noise on",
        "radius",
        "updates cut",
        "test accuracy",
        "FFA minus the other",
    ]
    rows: list[list[str]] = []
    for epsilon in sorted({o.epsilon for o in final}):
        for mechanism, name in NAMES.items():
            own = [o for o in final if (o.mechanism, o.epsilon) == (mechanism, epsilon)]
            gained = "" if mechanism == "dense" else _gained(final, epsilon)
            accuracy = mean_and_spread([o.test for o in own], digits=1)
            share = f"{100 * statistics.fmean(o.cut for o in own):.0f} %"
            rows.append([f"{epsilon:g}", name, f"{own[0].radius:g}", share, accuracy, gained])
    return header, rows


def _gained(final: Sequence[Outcome], epsilon: float) -> str:
    at = {(o.mechanism, o.seed): o.test for o in final if o.epsilon == epsilon}
    seeds = sorted({seed for _, seed in at})
    return mean_and_spread([at["ffa", s] - at["dense", s] for s in seeds], digits=1)


def draw(final: Sequence[Outcome], path: Path) -> None:
    """Draw accuracy against epsilon, with 95 % intervals over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.0), layout="constrained")
    ax = figure.subplots()
    epsilons = sorted({o.epsilon for o in final})
    for k, (mechanism, name) in enumerate(NAMES.items()):
        found = [
            mean_interval([o.test for o in final if (o.mechanism, o.epsilon) == (mechanism, e)])
            for e in epsilons
        ]
        x = [place + 0.08 * (2 * k - 1) for place in range(len(epsilons))]
        means = [mean for mean, _, _ in found]
        spread = [high - mean if high == high else 0.0 for mean, _, high in found]
        color = ("#0072B2", "#D55E00")[k]
        ax.errorbar(x, means, yerr=spread, fmt=("o-", "s-")[k], ms=4, color=color, label=name)
    before = statistics.fmean(o.before for o in final)
    ax.axhline(before, color="0.5", lw=1, ls="--", label="without an update")
    ax.set_xticks(range(len(epsilons)), [f"{e:g}" for e in epsilons])
    ax.set_xlabel("epsilon of all rounds")
    ax.set_ylabel("test accuracy in %")
    figure.legend(loc="outside upper center", ncols=1, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def study(session: Session) -> None:
    """Run the experiment."""
    epsilons, radii, seeds, rounds = EPSILONS, RADII, SEEDS, ROUNDS
    if session.smoke:
        epsilons, radii, seeds, rounds = EPSILONS[1:2], RADII[:1], SEEDS[:1], 1
    cases = [(mechanism, epsilon) for epsilon in epsilons for mechanism in NAMES]
    tried = session.run(
        [partial(run, *c, radius, s, rounds) for c in cases for radius in radii for s in TUNING],
        "radii",
    )
    final = session.run(
        [partial(run, *c, chosen(tried, *c), seed, rounds) for c in cases for seed in seeds], "test"
    )
    content = table(final)
    print(text_table(*content))
    before = {o.seed: o.before for o in final}
    print("without an update:", mean_and_spread([*before.values()], digits=1))
    session.write(
        "private-averages.json",
        settings={
            "clients": CLIENTS,
            "delta": DELTA,
            "rate": LR,
            "local steps": STEPS,
            "rounds": rounds,
            "radii": list(radii),
            "tuning seeds": list(TUNING),
        },
        tuning=[asdict(o) for o in tried],
        final=[asdict(o) for o in final],
        table=markdown_table(*content),
    )
    draw(final, session.folder / "private-averages.png")


def _ready() -> None:
    clients(TUNING[0])


main = experiment(study, __doc__, ready=_ready)

if __name__ == "__main__":
    sys.exit(main())
