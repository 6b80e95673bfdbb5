"""Values of mean zero and variance one: solvers with priors or step sizes work in that unit."""

from __future__ import annotations

from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import largest as largest_of


def standardize(
    observations: Observations, *, centre: bool = True
) -> tuple[float, float, Observations]:
    """Return the weighted mean, the weighted standard deviation, and the standardised entries.

    In float64 until the end. If all values (of positive weight) are equal, the deviation is taken
    as one. Without centring the mean is zero, and deviations are those from zero.

    Examples
    --------
    >>> mean, unit, scaled = standardize(Observations([0, 1], [0, 0], [1.0, 5.0], (2, 1)))
    >>> mean, unit, scaled.values.tolist()
    (3.0, 2.0, [-1.0, 1.0])
    """
    mean = weighted_mean(observations) if centre else 0.0
    centred = observations.values.double() - mean
    # Squares of 1e-200 underflow: measure in the unit of the largest deviation first.
    w = observations.weights
    seen = centred if w is None else centred.where(w > 0, 0.0)
    largest = float(largest_of(observations, seen.abs()))
    if largest == 0:
        return mean, 1.0, observations.with_values(centred.to(observations.dtype))
    relative = observations.with_values((centred / largest).square().to(observations.dtype))
    unit = largest * weighted_mean(relative) ** 0.5
    return mean, unit, observations.with_values((centred / unit).to(observations.dtype))
