"""Biases without a matrix, which whatever is chosen has to beat on the held-out entries."""

from __future__ import annotations

from typing import NamedTuple

from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
from lowrank_opt.completion.after.path import PathPoint, Setting, Walk, follow_path
from lowrank_opt.completion.model.bias import fit_additive_bias, no_bias
from lowrank_opt.completion.solvers.held_out import root_mean_square_error
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

# In entries: where a search begins. Each is a factor of two from the next.
_FIRST_PENALTY, _STEPS = 4.0, 8


class BiasesAlone(NamedTuple):
    """The biases that predict held-out entries best.

    Parameters
    ----------
    point : PathPoint
        Their penalty, and their error.
    result : CompletionResult
    """

    point: PathPoint
    result: CompletionResult

    @property
    def penalty(self) -> float:
        """In entries, as of `fit_additive_bias`."""
        return self.point.setting["bias_penalty"]

    def at(self, setting: Setting) -> PathPoint:
        """Return them as a point of the path that begins at a setting: one of rank zero."""
        nothing = {"rank": 0.0} | ({"radius": 0.0} if "radius" in setting else {})
        return self.point._replace(setting={**setting, **nothing, "bias_penalty": self.penalty})


def biases_alone(observations: Observations, penalty: float | None) -> CompletionResult:
    """Return the result whose matrix is zero, of `fit_additive_bias`; of no biases for None."""
    if penalty is None:
        return with_zero_matrix(no_bias(observations), observations)
    return with_zero_matrix(fit_additive_bias(observations, penalty=penalty), observations)


def with_zero_matrix(
    bias: AdditiveBias,
    observations: Observations,
    status: CompletionStatus = CompletionStatus.CONVERGED,
) -> CompletionResult:
    """Return the result that predicts by biases."""
    zeros = observations.values.new_zeros
    m, n = observations.shape
    return CompletionResult(
        LowRankOperator(zeros(m, 1), zeros(1), zeros(n, 1)), bias, status, History()
    )


def best_biases(
    kept: Observations, held_out: Observations, penalty: float | None = None
) -> BiasesAlone:
    """Return the biases of those entries that predict the others best, at a penalty if given."""
    walks = [Walk("bias_penalty", factor, steps=_STEPS) for factor in (2.0, 0.5)]

    def fit(
        entries: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return biases_alone(entries, setting["bias_penalty"])

    first = {"bias_penalty": penalty or _FIRST_PENALTY}
    path, result = follow_path(fit, kept, held_out, first, walks if penalty is None else ())
    return BiasesAlone(path.best, result)


def zeros_alone(kept: Observations, held_out: Observations) -> BiasesAlone:
    """Return neither biases nor a matrix."""
    result = biases_alone(kept, None)
    error = root_mean_square_error(result, held_out)
    return BiasesAlone(PathPoint({"bias_penalty": 1.0}, error, 0, 0.0), result)
