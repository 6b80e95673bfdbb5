"""Private averages of adapters: accuracy against epsilon, by where the noise goes.

``python -m experiments.private_averages`` lets 300 clients with three digits each, seen turned,
train one LoRA update in three rounds. The server releases the mean with noise for an (epsilon,
delta) that covers all rounds and layers: on every entry of the mean, which is then cut to the rank,
or on the left factors alone, where all clients share a frozen right one (FFA). The radius, to
which updates are cut, is chosen on validation digits of another seed; that choice is not private.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from experiments.claims.finding import mean_interval
from experiments.federated_task import RANK, Federation, of_one_domain
from experiments.panels import column, save
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.merging import private_merge
from lowrank_opt.operator import LowRankOperator

EPSILONS = (2.0, 8.0, 1e6)
RADII = (2.0, 8.0)
DELTA, LR, STEPS, ROUNDS = 1e-4, 0.8, 20, 3
CLIENTS, DOMAIN = 300, "turned"
TUNING, SEEDS = (100,), (0, 1, 2)
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


def run(
    mechanism: Mechanism, epsilon: float, radius: float, seed: int, rounds: int = ROUNDS
) -> Outcome:
    """Train all rounds; the noise is drawn by the seed, which is not private."""
    state, generator = (
        Federation(of_one_domain(seed, CLIENTS, DOMAIN), seed),
        torch.Generator().manual_seed(seed),
    )
    before, cut = state.accuracy("test"), 0.0
    for _ in range(rounds):
        state.train(STEPS, LR, frozen_right=mechanism == "ffa")
        cut += _share_cut(state, radius) / rounds
        released = private_merge(
            state.sent(),
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


def _share_cut(state: Federation, radius: float) -> float:
    """Return the share of matrices whose norm is above the radius."""
    norms = [
        ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2)).sqrt()
        for left, right in zip(state.left.values(), state.right.values(), strict=True)
    ]
    return float((torch.stack(norms) > radius).double().mean())


def _factors(op: LowRankOperator, mechanism: Mechanism) -> LowRankOperator:
    """Return the update as clients start from it: with the shared right factor, or balanced."""
    if mechanism == "ffa":
        return LowRankOperator((op.left * op.scale).to(op.dtype), torch.ones(RANK), op.right)
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
    figure, (ax,) = column(1, height=2.6)
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
    save(figure, ax, path, columns=1)


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
    of_one_domain(TUNING[0], CLIENTS, DOMAIN)


main = experiment(study, __doc__, ready=_ready)

if __name__ == "__main__":
    sys.exit(main())
