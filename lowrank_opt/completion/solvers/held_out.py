"""Entries that are not fitted, by which an iteration is stopped early."""

from __future__ import annotations

import torch

from lowrank_opt.completion.results.cut import predict_entries
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.errors import ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import total


def training_and_validation(
    observations: Observations,
    validation: float | Observations | None,
    generator: torch.Generator | None = None,
) -> tuple[Observations, Observations | None]:
    """Return what to fit, and what to judge iterates by.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    validation : float, Observations or None
        A share in (0, 1) of the observations, taken out of them at random; or other entries.
    generator : torch.Generator, optional

    Raises
    ------
    ShapeError
        If the entries are not of the same matrix, on the same device.
    ObservationError
        If the share cannot be held out.
    """
    if validation is None:
        return observations, None
    if not isinstance(validation, Observations):
        if observations.part is not None:
            return observations.part.share(observations, validation, generator)
        return observations.split(validation, generator=generator)
    if (validation.shape, validation.device) != (observations.shape, observations.device):
        raise ShapeError(
            "validation entries must be of the same matrix, on the same device; got "
            f"{validation.shape} on {validation.device} for {observations.shape} on "
            f"{observations.device}"
        )
    return observations, validation.to(dtype=observations.dtype)


def root_mean_square_error(
    result: CompletionResult | BayesianResult, entries: Observations
) -> float:
    """Return the root of the (weighted) mean squared error of predictions, in float64."""
    predictions = (
        predict_entries(result, entries)
        if isinstance(result, CompletionResult)
        else result.predict(entries.rows, entries.cols)
    )
    errors = predictions.double() - entries.values.double()
    squares, w = errors.square(), entries.weights
    if entries.part is not None:
        mass = torch.ones_like(squares) if w is None else w.double()
        return float((total(entries, mass * squares) / total(entries, mass)).sqrt())
    if w is None:
        return float(squares.mean().sqrt())
    return float((torch.dot(w.double(), squares) / w.double().sum()).sqrt())
