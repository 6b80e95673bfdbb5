"""Completion solvers with one defect each, and who must notice."""

from dataclasses import replace
from functools import partial

import torch

import lowrank_opt as lo
from lowrank_opt import Observations
from lowrank_opt.completion import ConvexProblem, OptimalityCertificate, als

sound = partial(als, penalty=1e-3, sweeps=100, tolerance=1e-7, bias=None)


def changed(result, operator):
    return replace(result, operator=operator)


def one_sweep(observations, rank, generator):
    return als(observations, rank, penalty=10.0, sweeps=1, bias=None, generator=generator)


def shifted_rows(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    left, scale, right = result.operator
    return changed(result, lo.LowRankOperator(left.roll(1, 0), scale, right))


def ignores_weights(observations, rank, generator):
    obs = observations
    return sound(Observations(obs.rows, obs.cols, obs.values, obs.shape), rank, generator=generator)


def trusts_the_first_entries(observations, rank, generator):
    weights = torch.ones(len(observations), dtype=observations.dtype)
    weights[len(observations) // 3 :] = 0.0
    obs = observations
    weighted = Observations(obs.rows, obs.cols, obs.values, obs.shape, weights)
    return als(weighted, rank, penalty=1e-1, sweeps=50, bias=None, generator=generator)


def penalises_late_columns(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    left, scale, right = result.operator
    gain = torch.linspace(1.0, 0.7, len(right), dtype=right.dtype).unsqueeze(1)
    return changed(result, lo.LowRankOperator(left, scale, right * gain))


def wrong_if_wide(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    m, n = observations.shape
    return changed(result, (0.8 if m < n else 1.0) * result.operator)


def one_rank_more(observations, rank, generator):
    return sound(observations, rank + 1, generator=generator)


def undefined_where_unseen(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    left, scale, right = result.operator
    seen = (observations.row_counts > 0).unsqueeze(1)
    return changed(result, lo.LowRankOperator(left.where(seen, torch.nan), scale, right))


def restless(observations, rank, calls=[0]):  # noqa: B006 (state from call to call is the defect)
    calls[0] += 1
    result = sound(observations, rank, generator=torch.Generator().manual_seed(0))
    return changed(result, (1 + 0.01 * (calls[0] % 2)) * result.operator)


def centres_in_place(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    observations.values.sub_(observations.values.mean())
    return result


def with_certificate(kind):
    """Return a solver that fits with `sound`, and certifies in its own way."""

    def solve(observations, rank, generator):
        result = sound(observations, rank, generator=generator)
        ball = lo.SchattenBall(1, 100.0, min(observations.shape))
        return kind(**vars(replace(result, problem=ConvexProblem(observations, ball))))

    solve.__name__ = kind.__name__
    return solve


class BoundTooHigh(lo.CompletionResult):
    """Claims to be optimal, far from it."""

    def certificate(self):
        found = super().certificate()
        return OptimalityCertificate(found.objective, 0.999 * found.objective)


class ObjectiveTooLow(lo.CompletionResult):
    def certificate(self):
        found = super().certificate()
        return OptimalityCertificate(0.9 * found.objective, 0.9 * found.lower_bound)


def capped_rank(observations, rank, generator):
    return sound(observations, min(rank, 2), generator=generator)


def wrong_if_large(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    return changed(result, (0.5 if observations.shape[0] > 50 else 1.0) * result.operator)


def wrong_beyond_80_columns(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    shrink = 0.5 if observations.shape[1] > 80 else 1.0
    return changed(result, shrink * result.operator)


def wrong_beyond_1500_entries(observations, rank, generator):
    kept = slice(0, 900)
    obs = observations
    if len(obs) > 1500:
        obs = Observations(obs.rows[kept], obs.cols[kept], obs.values[kept], obs.shape)
    return sound(obs, rank, generator=generator)


def writes_indices(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    observations.rows.clamp_(max=0)
    return result


def normalises_weights_in_place(observations, rank, generator):
    result = sound(observations, rank, generator=generator)
    if observations.weights is not None:
        observations.weights.div_(observations.weights.sum())
    return result


def weights_as_a_mask(observations, rank, generator):
    obs = observations
    if obs.weights is not None:
        mask = (obs.weights > 0).to(obs.values)
        obs = Observations(obs.rows, obs.cols, obs.values, obs.shape, mask)
    return sound(obs, rank, generator=generator)


def squares_weights(observations, rank, generator):
    obs = observations
    if obs.weights is not None:
        obs = Observations(obs.rows, obs.cols, obs.values, obs.shape, obs.weights**2)
    return sound(obs, rank, generator=generator)


def remembers_shapes(observations, rank, generator, known={}):  # noqa: B006 (the defect)
    """Returns what was found for the first problem of this shape."""
    key = (observations.shape, rank, len(observations))
    known.setdefault(key, sound(observations, rank, generator=generator))
    return known[key]


# (solver, law that must notice)
BROKEN_SOLVERS = [
    (one_sweep, "recovery"),
    (shifted_rows, "recovery"),
    (ignores_weights, "weights"),
    (trusts_the_first_entries, "recovery"),
    (penalises_late_columns, "permutations"),
    (wrong_if_wide, "transposition"),
    (one_rank_more, "feasibility"),
    (undefined_where_unseen, "unseen"),
    (restless, "repetition"),
    (centres_in_place, "contract"),
    (capped_rank, "ranks"),
    (wrong_if_large, "large"),
    (wrong_beyond_80_columns, "large"),
    (wrong_beyond_1500_entries, "ranks"),
    (writes_indices, "contract"),
    (normalises_weights_in_place, "contract"),
    (weights_as_a_mask, "weights"),
    (squares_weights, "weighted_loss"),
    (remembers_shapes, "repetition"),
    (with_certificate(BoundTooHigh), "certificate"),
    (with_certificate(ObjectiveTooLow), "certificate"),
]
