"""How far every start, map, rank and radius ends from the proved optimum of the convex ball.

Nuclear-norm balls, fitted by L-BFGS through every map that is onto the ball, from several starts,
to random problems and to the five folds of MovieLens-100K. The lower bound of a problem and radius
is the best that any of its fits proves, of whatever rank: a fit's distance is its objective minus
that bound, relative to the objective. Run as ``python -m experiments.optimum_sweep``; ``--profile
smoke`` is over in seconds, and ``--seconds`` ends a profile early and says how much of it ran.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

import lowrank_opt as lo
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from problems import movielens
from problems.synthetic import planted_low_rank

Make = Callable[..., lo.Parameterization]

MAPS: dict[str, Make] = {
    "HomogeneousBall": lo.HomogeneousBall,
    "NBLoRA": partial(lo.NBLoRA, p=1),
    "Contractions": partial(lo.Contractions, p=1),
    "SimplexRankOnes": lo.SimplexRankOnes,
    "RadialBall": partial(lo.RadialBall, norm=1.0),
}
_BUDGET = 600.0


@dataclass(frozen=True)
class Profile:
    """How many random problems, which folds, ranks, radii and starts.

    Radii of random problems are shares of the nuclear norm that was planted.
    """

    random: int
    folds: tuple[str, ...]
    ranks: tuple[int, ...]
    shares: tuple[float, ...]
    radii: tuple[float, ...]
    starts: int


PROFILES = {
    "smoke": Profile(1, (), (5,), (0.5,), (), 1),
    "cpu": Profile(
        50,
        ("u1", "u2", "u3", "u4", "u5"),
        (5, 10, 20, 40, 100),
        (0.2, 0.5, 1.0),
        (100.0, 400.0, 1600.0),
        10,
    ),
}


@dataclass(frozen=True)
class Task:
    """One fit that is to be done."""

    problem: str
    radius: float
    map: str
    rank: int
    start: int


@dataclass(frozen=True)
class Fit:
    """How one fit ended."""

    problem: str
    radius: float
    map: str
    rank: int
    start: int
    objective: float
    gap: float
    status: str
    seconds: float


def random_problem(number: int) -> tuple[lo.Observations, float]:
    """Return entries of a planted matrix with noise, and its nuclear norm; all from one number."""
    rng = np.random.default_rng(number)
    m, n = (int(x) for x in rng.integers(25, 90, size=2))
    rank, g = int(rng.integers(1, 6)), torch.Generator().manual_seed(number)
    seen, truth = planted_low_rank(
        (m, n),
        rank,
        oversampling=float(rng.uniform(1.5, 4)),
        condition_number=float(10 ** rng.uniform(0, 1)) if rank > 1 else 1.0,
        noise=float(rng.uniform(0, 1)),
        generator=g,
    )
    return seen, float(truth.schatten_norm(1))


def tasks(profile: Profile) -> list[Task]:
    """Return the fits of a profile in an order of which any beginning is a fair sample."""
    found = [
        Task(name, radius, kind, rank, start)
        for name, radii in _problems(profile)
        for radius in radii
        for kind in MAPS
        for rank in profile.ranks
        for start in range(profile.starts)
    ]
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def _problems(profile: Profile) -> list[tuple[str, Sequence[float]]]:
    random: list[tuple[str, Sequence[float]]] = [
        (f"random {k}", profile.shares) for k in range(profile.random)
    ]
    return [*random, *((name, profile.radii) for name in profile.folds)]


def observations_of(name: str) -> tuple[lo.Observations, float]:
    """Return the entries of a problem, float64, and the unit of its radii."""
    if name.startswith("random"):
        return random_problem(int(name.split()[1]))
    return movielens.split(name)[0].to(dtype=torch.float64), 1.0


def fit(task: Task, observed: lo.Observations, unit: float) -> Fit:
    """Fit once, from a start of its own."""
    rank = min(task.rank, *observed.shape)
    model = MAPS[task.map](
        observed.shape,
        rank,
        radius=task.radius * unit,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(task.start),
    )
    begin = time.process_time()
    result = lo.complete(observed, model, bias="additive")
    seconds = time.process_time() - begin
    bound = result.certificate().gap
    where = (task.problem, task.radius, task.map, rank, task.start)
    objective = result.history.objective[-1]
    return Fit(*where, objective, float(bound), result.status.name, seconds)


def run(profile: Profile, seconds: float) -> tuple[list[Fit], int]:
    """Return what was fitted within a time, and how many fits the profile has."""
    listed, begin = tasks(profile), time.process_time()
    cache: dict[str, tuple[lo.Observations, float]] = {}
    fits = list[Fit]()
    for task in listed:
        if fits and time.process_time() - begin > seconds:
            break
        if task.problem not in cache:
            cache[task.problem] = observations_of(task.problem)
        fits.append(fit(task, *cache[task.problem]))
    return fits, len(listed)


def distances(fits: Sequence[Fit]) -> list[float]:
    """Return the relative distance of each fit from the best bound of its problem and radius."""
    bounds: dict[tuple[str, float], float] = defaultdict(float)
    for x in fits:
        where = (x.problem, x.radius)
        bounds[where] = max(bounds[where], x.objective - x.gap)
    largest = [max(x.objective, float(np.finfo(float).tiny)) for x in fits]
    return [
        max(x.objective - bounds[x.problem, x.radius], 0.0) / size
        for x, size in zip(fits, largest, strict=True)
    ]


HEADER = ["problems", "map", "fits", "converged", "rank binds", "worst proved", "worst said", "s"]


def rows(fits: Sequence[Fit]) -> list[list[str]]:
    """Return a line for each map, of random problems and of ratings.

    "worst proved" is the largest relative gap that a fit proves of itself among those that say
    CONVERGED; "worst said" the largest distance from the bound of any fit that says so.
    """
    groups: dict[tuple[str, str], list[tuple[Fit, float]]] = defaultdict(list)
    for x, distance in zip(fits, distances(fits), strict=True):
        kind = "random" if x.problem.startswith("random") else "ratings"
        groups[kind, x.map].append((x, distance))
    return [[kind, name, *_cells(pairs)] for (kind, name), pairs in sorted(groups.items())]


def _cells(pairs: Sequence[tuple[Fit, float]]) -> list[str]:
    done = [(x, d) for x, d in pairs if x.status in ("CONVERGED", "EXACT_FIT")]
    proved = max((x.gap / max(x.objective, 1e-300) for x, _ in done), default=0.0)
    binds = sum(x.status == "RANK_BINDS" for x, _ in pairs)
    spent = float(np.median([x.seconds for x, _ in pairs]))
    worst = max((d for _, d in done), default=0.0)
    numbers = [str(len(pairs)), str(len(done)), str(binds)]
    return [*numbers, f"{proved:.1e}", f"{worst:.1e}", f"{spent:.2f}"]


def study(session: Session) -> None:
    """Print the table and write the record."""
    fits, total = run(PROFILES[session.options.profile], session.options.seconds)
    print(f"{len(fits)} of {total} fits")
    lines = rows(fits)
    print(text_table(HEADER, lines))
    others = [x for x in fits if x.status not in ("CONVERGED", "EXACT_FIT", "RANK_BINDS")]
    for x in others:
        print(x)
    session.cpu_seconds += sum(x.seconds for x in fits)
    session.write(
        "optimum_sweep.json",
        fits=[asdict(x) for x in fits],
        total=total,
        table=markdown_table(HEADER, lines),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=_BUDGET, help="CPU seconds (%(default)s)")


main = experiment(study, __doc__, options=_options, profiles=[*PROFILES])

if __name__ == "__main__":
    sys.exit(main())
