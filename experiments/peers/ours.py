"""The fits of this library, in the form of those of the peers."""

from __future__ import annotations

import torch

from experiments.peers.fits import Settings, Timer
from experiments.peers.split import Reals, Split
from lowrank_opt.completion import BayesianResult, CompletionResult, bayesian, sgd, variational
from lowrank_opt.observations import Observations
from lowrank_opt.sets import FeasibleSet, WeightedSchattenBall


def lowrank_variational(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `variational`; with a radius, in a ball of the weighted nuclear norm."""
    observed, generator = _prepare(split, seed)
    variational(observed.take(torch.arange(50)), 2, max_iterations=1)  # compiles the loops
    chosen: int | FeasibleSet | None = int(str(settings["rank"])) if settings else None
    if "radius" in settings:
        assert isinstance(chosen, int), "a ball has a rank"
        chosen = weighted_ball(observed, chosen, float(str(settings["radius"])))
    with timer:
        result = variational(observed, chosen, generator=generator)
    assert not isinstance(chosen, FeasibleSet) or chosen.contains(result.operator)
    return _predictions(result, split)


def lowrank_sgd(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `sgd` with its defaults."""
    observed, generator = _prepare(split, seed)
    sgd(observed.take(torch.arange(50)), 2, max_iterations=1)
    with timer:
        result = sgd(observed, generator=generator)
    return _predictions(result, split)


def lowrank_bayesian(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run `bayesian`, with implicit and side features on request."""
    observed, generator = _prepare(split, seed)
    rank = int(str(settings["rank"]))
    bayesian(observed.take(torch.arange(50)), rank, burn_in=0, samples=1)
    side = bool(settings.get("side", False))
    rows, cols = ([x] if side else [] for x in (split.row_features, split.col_features))
    implicit = bool(settings.get("implicit", False))
    with timer:
        result = bayesian(
            observed,
            rank,
            implicit=implicit,
            row_features=rows,
            col_features=cols,
            generator=generator,
        )
    return _predictions(result, split)


def weighted_ball(observed: Observations, rank: int, radius: float) -> FeasibleSet:
    """Return a ball of the nuclear norm weighted by ``(count / mean count)^(-1/4)``."""
    weights = [
        (counts.clamp_min(1).to(observed.dtype) / counts.double().mean()) ** -0.25
        for counts in (observed.row_counts, observed.col_counts)
    ]
    return WeightedSchattenBall(
        p=1, radius=radius, rank=rank, row_weights=weights[0], col_weights=weights[1]
    )


def _prepare(split: Split, seed: int) -> tuple[Observations, torch.Generator]:
    values = torch.from_numpy(split.values).float()
    observed = Observations(split.rows, split.cols, values, split.shape)
    # The views by rows and columns are made on first use: loading, not fitting.
    assert len(observed.csr.order) == len(observed.csc.order)
    return observed, torch.Generator().manual_seed(seed)


def _predictions(result: CompletionResult | BayesianResult, split: Split) -> Reals:
    return result.predict(split.test_rows, split.test_cols).double().numpy()
