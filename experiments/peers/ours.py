"""The fits of this library, in the form of those of the peers."""

from __future__ import annotations

from dataclasses import replace

import torch

import lowrank_opt as lo
from experiments.peers.fits import Settings, Timer
from experiments.peers.split import Reals, Split
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.observations import Observations
from lowrank_opt.sets import FeasibleSet, WeightedSchattenBall
from lowrank_opt.solvers import SGD, Gibbs, Solver, Variational


def lowrank_variational(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `Variational`; with a radius, in a ball of the weighted nuclear norm."""
    observed = _observed(split)
    model: int | FeasibleSet | None = int(str(settings["rank"])) if settings else None
    if "radius" in settings:
        assert isinstance(model, int), "a ball has a rank"
        model = weighted_ball(observed, model, float(str(settings["radius"])))
    result = _timed(lo.CompletionProblem(observed, model), Variational(), seed, timer)
    assert isinstance(result, lo.CompletionResult), "a point estimate"
    assert not isinstance(model, FeasibleSet) or model.contains(result.operator)
    return _predictions(result, split)


def lowrank_sgd(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `SGD` with its defaults."""
    problem = lo.CompletionProblem(_observed(split))
    return _predictions(_timed(problem, SGD(), seed, timer), split)


def lowrank_bayesian(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `Gibbs`, with implicit and side features on request."""
    side = bool(settings.get("side", False))
    rows, cols = ([x] if side else [] for x in (split.row_features, split.col_features))
    problem = lo.CompletionProblem(
        _observed(split),
        int(str(settings["rank"])),
        implicit=bool(settings.get("implicit", False)),
        row_features=rows,
        col_features=cols,
    )
    return _predictions(_timed(problem, Gibbs(), seed, timer), split)


def weighted_ball(observed: Observations, rank: int, radius: float) -> FeasibleSet:
    """Return a ball of the nuclear norm weighted by ``(count / mean count)^(-1/4)``."""
    weights = [
        (counts.clamp_min(1).to(observed.dtype) / counts.double().mean()) ** -0.25
        for counts in (observed.row_counts, observed.col_counts)
    ]
    return WeightedSchattenBall(
        p=1, radius=radius, rank=rank, row_weights=weights[0], col_weights=weights[1]
    )


def _timed(problem: lo.CompletionProblem, solver: Solver, seed: int, timer: Timer) -> AnyResult:
    # A small fit compiles the loops.
    small: dict[type, Solver] = {
        Variational: Variational(max_iterations=1),
        SGD: SGD(max_iterations=1),
        Gibbs: Gibbs(burn_in=0, samples=1),
    }
    warm_up = small[type(solver)]
    few = problem.observations.take(torch.arange(50))
    rank = problem.rank if isinstance(solver, Gibbs) else 2
    first = replace(problem, observations=few, model=rank, row_features=(), col_features=())
    lo.complete(replace(first, implicit=False), solver=warm_up)
    generator = torch.Generator().manual_seed(seed)
    with timer:
        return lo.complete(problem, solver=solver, generator=generator)


def _observed(split: Split) -> Observations:
    values = torch.from_numpy(split.values).float()
    observed = Observations(split.rows, split.cols, values, split.shape)
    # The views by rows and columns are made on first use: loading, not fitting.
    assert len(observed.csr.order) == len(observed.csc.order)
    return observed


def _predictions(result: AnyResult, split: Split) -> Reals:
    return result.predict(split.test_rows, split.test_cols).double().numpy()
