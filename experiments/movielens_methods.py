"""The methods compared on MovieLens: how each is built, and the settings it may choose from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import scipy.sparse
import torch
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt.linalg import leading_svd

Setting = Mapping[str, float]
Build = Callable[[lo.Observations, Setting, torch.Generator], lo.Parameterization]

RANK = 10
# Frozen frames of the nested form: leading singular spaces of the centred training matrix.
OUTER_RANK = 80


@dataclass(frozen=True)
class CompletionMethod:
    """One row of the table.

    Attributes
    ----------
    name : str
    build : callable or None
        Makes the parameterization from training entries, a setting and a generator; None for
        methods without factors.
    grid : tuple of mappings
        Settings; the one with the smallest error on held-out *training* entries is used.
    """

    name: str
    build: Build | None
    grid: tuple[Setting, ...]


def _radii(*radii: float) -> tuple[Setting, ...]:
    return tuple({"radius": radius} for radius in radii)


def _homogeneous(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    return lo.HomogeneousBall(obs.shape, RANK, radius=s["radius"], generator=g)


def _nb_lora(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    return lo.NBLoRA(obs.shape, RANK, radius=s["radius"], p=1, generator=g)


def _delora(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    return lo.DeLoRA(obs.shape, RANK, radius=s["radius"], generator=g)


def _factored(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    return lo.Factored(obs.shape, RANK, generator=g)


def _nested(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    inner = lo.HomogeneousBall((OUTER_RANK, OUTER_RANK), RANK, radius=s["radius"], generator=g)
    return lo.NestedSVD(residual_frames(obs, OUTER_RANK), inner)


def _weighted(obs: lo.Observations, s: Setting, g: torch.Generator) -> lo.Parameterization:
    rows, cols = (smoothed_weights(c, obs) for c in (obs.row_counts, obs.col_counts))
    return lo.Weighted(_homogeneous(obs, s, g), rows, cols)


def residual_frames(obs: lo.Observations, rank: int) -> tuple[Tensor, Tensor]:
    """Return leading singular frames of the training matrix, centred by row and column means."""
    values = obs.values - obs.values.mean()
    for index, counts in ((obs.rows, obs.row_counts), (obs.cols, obs.col_counts)):
        sums = torch.zeros(len(counts), dtype=values.dtype).index_add(0, index, values)
        values = values - (sums / (counts + 5))[index]
    pairs = (obs.rows.numpy(), obs.cols.numpy())
    matrix = scipy.sparse.coo_array((values.numpy(), pairs), shape=obs.shape)
    U, _, V = leading_svd(matrix, rank)
    return U.to(obs.values.dtype), V.to(obs.values.dtype)


def smoothed_weights(counts: Tensor, obs: lo.Observations) -> Tensor:
    """Return ``(count / mean count)^(-1/4)``, never-seen rows counted as seen once."""
    return (counts.clamp_min(1).to(obs.values.dtype) / counts.double().mean()) ** -0.25


RADII = _radii(300.0, 350.0, 400.0, 500.0)

METHODS = (
    # A penalty of so many entries leaves the mean alone.
    CompletionMethod("global mean", None, ({"bias_penalty": 1e12},)),
    CompletionMethod("biases", None, tuple({"bias_penalty": x} for x in (1.0, 3.0, 5.0, 8.0))),
    CompletionMethod("Factored", _factored, tuple({"penalty": x} for x in (8.0, 10.0, 12.0, 15.0))),
    CompletionMethod("NBLoRA, p = 1", _nb_lora, RADII),
    CompletionMethod("HomogeneousBall", _homogeneous, RADII),
    CompletionMethod("DeLoRA", _delora, RADII),
    CompletionMethod("NestedSVD(HomogeneousBall)", _nested, _radii(150.0, 250.0, 350.0)),
    CompletionMethod("Weighted(HomogeneousBall)", _weighted, _radii(500.0, 600.0, 700.0, 800.0)),
)

# The figure of test error against radius, for several ranks.
CURVE_RANKS = (5, 10, 20, 40, 100)
CURVE_RADII = (100.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1200.0)

# The figure of singular values: individual bounds, each 0.75 of the one before.
PROFILE = tuple(120 * 0.75**k for k in range(RANK))


def with_profile(obs: lo.Observations, generator: torch.Generator) -> lo.Parameterization:
    """Return NBLoRA with an individual bound for each singular value."""
    return lo.NBLoRA(obs.shape, RANK, bounds=PROFILE, generator=generator)
