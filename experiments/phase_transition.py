"""How many entries a solver needs: recovered fraction against oversampling, solver by solver.

``python -m experiments.phase_transition`` completes planted matrices without noise from random
entries and writes a table, a JSON record and a figure.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import lowrank_opt as lo
from experiments.panels import column, save
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt import completion
from lowrank_opt.observations import Observations
from problems.synthetic import planted_low_rank

SIDE, RANK = 80, 3
OVERSAMPLING = (1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
CONDITIONS = (1.0, 1e4)
SEEDS = (0, 1, 2)
RECOVERED = 1e-4

Fit = Callable[[Observations, float], lo.CompletionResult]


def factored(observations: Observations, _: float) -> lo.CompletionResult:
    """Fit two free factors by L-BFGS."""
    generator = torch.Generator().manual_seed(0)
    free = lo.Factored(observations.shape, RANK, dtype=torch.float64, generator=generator)
    return lo.complete(observations, free, bias=None, tolerance=1e-9, max_iterations=500)


def ball(observations: Observations, nuclear_norm: float) -> lo.CompletionResult:
    """Fit the ball of the true nuclear norm by L-BFGS; the rank is not known to it."""
    generator = torch.Generator().manual_seed(0)
    bounded = lo.HomogeneousBall(
        observations.shape, 12, radius=nuclear_norm, dtype=torch.float64, generator=generator
    )
    return lo.complete(observations, bounded, bias=None, tolerance=1e-9, max_iterations=500)


def soft(observations: Observations, nuclear_norm: float) -> lo.CompletionResult:
    """Fit with ever smaller nuclear penalties, each from the last; the rank is not known to it."""
    result = None
    for share in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        result = completion.soft_impute(
            observations,
            12,
            penalty=share * nuclear_norm,
            bias=None,
            tolerance=1e-9,
            max_iterations=200,
            start=result,
            generator=torch.Generator().manual_seed(0),
        )
    assert result is not None, "there are penalties"
    return result


def alternating(observations: Observations, _: float) -> lo.CompletionResult:
    """Fit by alternating least squares with a tiny penalty."""
    generator = torch.Generator().manual_seed(0)
    return completion.als(
        observations,
        RANK,
        penalty=1e-9,
        bias=None,
        sweeps=1000,
        tolerance=1e-9,
        generator=generator,
    )


def at_rank(name: str, observations: Observations, _: float) -> lo.CompletionResult:
    """Fit by a solver of a fixed rank, with its defaults."""
    solve = getattr(completion, name)
    return solve(observations, RANK)


SOLVERS: dict[str, Fit] = {
    **{
        name: partial(at_rank, name)
        for name in ("gauss_newton", "riemannian", "scaled_gd", "singular_value_projection")
    },
    "als": alternating,
    "Factored, L-BFGS": factored,
    "HomogeneousBall, L-BFGS": ball,
    "soft_impute": soft,
}


@dataclass(frozen=True)
class Trial:
    """One fit of one planted matrix."""

    solver: str
    condition: float
    oversampling: float
    seed: int
    error: float
    cpu_seconds: float


def attempt(solver: str, condition: float, oversampling: float, seed: int) -> Trial:
    """Plant, complete, and measure the relative error over all entries."""
    observations, truth = planted_low_rank(
        (SIDE, SIDE),
        RANK,
        oversampling=oversampling,
        condition_number=condition,
        generator=torch.Generator().manual_seed(seed),
    )
    began = time.process_time()
    result = SOLVERS[solver](observations, float(truth.schatten_norm(1)))
    seconds = time.process_time() - began
    difference = result.to_dense().double() - truth.to_dense()
    error = float(difference.norm() / truth.schatten_norm(2))
    return Trial(solver, condition, oversampling, seed, error, seconds)


def fractions(trials: Sequence[Trial], solver: str, condition: float) -> list[float]:
    """Return the recovered fraction at each oversampling of the trials."""
    own = [t for t in trials if (t.solver, t.condition) == (solver, condition)]
    shares = sorted({t.oversampling for t in own})
    return [
        statistics.fmean(t.error < RECOVERED for t in own if t.oversampling == share)
        for share in shares
    ]


def draw(trials: Sequence[Trial], path: Path) -> None:
    """Draw one panel for each condition number."""
    conditions = sorted({t.condition for t in trials})
    shares = sorted({t.oversampling for t in trials})
    figure, panels = column(len(conditions))
    for ax, condition in zip(panels, conditions, strict=True):
        for k, solver in enumerate(SOLVERS):
            ax.plot(
                shares, fractions(trials, solver, condition), marker="osv^DXP*"[k % 8], label=solver
            )
        ax.set_title(f"condition number {condition:g}", fontsize=9)
        ax.set_ylabel("fraction recovered")
    panels[-1].set_xlabel("observed entries / degrees of freedom")
    save(figure, panels[0], path)


def study(session: Session) -> None:
    """Run the experiment."""
    shares, seeds, conditions = OVERSAMPLING, SEEDS, CONDITIONS
    if session.smoke:
        shares, seeds, conditions = (4.0,), SEEDS[:1], CONDITIONS[1:]
    calls = [
        partial(attempt, solver, condition, share, seed)
        for solver in SOLVERS
        for condition in conditions
        for share in shares
        for seed in seeds
    ]
    trials = session.run(calls, "planted matrices")
    header = ["solver", "condition", *(f"{share:g}" for share in shares), "CPU s"]
    rows = [_row(trials, solver, c) for solver in SOLVERS for c in conditions]
    print(text_table(header, rows))
    draw(trials, session.folder / "phase-transition.png")
    settings: dict[str, Json] = {"side": SIDE, "rank": RANK, "recovered": RECOVERED}
    session.write(
        "phase-transition.json",
        settings=settings,
        trials=[asdict(t) for t in trials],
        table=markdown_table(header, rows),
    )


def _row(trials: Sequence[Trial], solver: str, condition: float) -> list[str]:
    own = [t for t in trials if (t.solver, t.condition) == (solver, condition)]
    seconds = statistics.fmean(t.cpu_seconds for t in own)
    shares = (f"{x:.2f}" for x in fractions(trials, solver, condition))
    return [solver, f"{condition:g}", *shares, f"{seconds:.2f}"]


def _ready() -> None:
    """Compile the loops."""
    attempt("als", 1.0, 4.0, 0)


main = experiment(study, __doc__, ready=_ready)

if __name__ == "__main__":
    sys.exit(main())
