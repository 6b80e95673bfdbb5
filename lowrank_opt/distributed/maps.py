"""Parameterizations of the rows of one process."""

from __future__ import annotations

from typing import TypeVar

import torch

from lowrank_opt.completion.model.randomness import normal_lines
from lowrank_opt.distributed.cut import CutPart
from lowrank_opt.errors import OptionError, RankError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import held_shape, whole_lines, whole_shape
from lowrank_opt.parameterizations.base import Parameterization

P = TypeVar("P", bound=Parameterization)


def check_rows(observations: Observations, rank: int) -> None:
    """Raise RankError in all processes if one has fewer lines of what is cut than the rank.

    A process that raised alone would leave the others waiting.
    """
    part = observations.part
    if part is None or not part.cut:
        return
    for side, name in enumerate(("rows", "columns")[: 1 + part.cut_columns]):
        fewest = -int(part.largest(torch.tensor(-held_shape(observations)[side])))
        if fewest < rank:
            raise RankError(
                f"where {name} are cut, each process has a map of its own {name}, at least as many "
                f"as the rank; got rank={rank}, and {fewest} {name} in a process: use a smaller "
                "rank, or fewer processes"
            )


@torch.no_grad()
def start_columns_(
    model: Parameterization, observations: Observations, generator: torch.Generator | None
) -> None:
    """Let the columns of all processes start as an orthonormal frame, as in one process.

    Up to the signs of its columns, and rounding; without the lines of other processes.

    Parameters
    ----------
    model : Parameterization, shape (k, l)
        With `alike_cols`.
    observations : Observations
        From `cut_columns`.
    generator : torch.Generator or None
        In the same state in all processes.
    """
    part, cols = observations.part, model.get_parameter(model.alike_cols)
    assert part is not None, "columns are cut"
    _, held = whole_lines(observations)
    like = cols.detach().double()
    sizes = (whole_shape(observations)[1],)
    (own,) = normal_lines(sizes, held[1:], generator, width=model.rank, like=like)
    Q, R = torch.linalg.qr(own)
    together, mine = part.stacked(R)
    cols.copy_(Q @ torch.linalg.qr(together).Q[mine])


def own_map(model: P, observations: Observations) -> P:
    """Return the same map with the rows of this process alone, for entries whose rows are cut.

    And with its columns alone, where they are cut. Without a map of all rows, make one of
    `observations.shape`; other tensors than its rows become those of the first process.

    Parameters
    ----------
    model : Parameterization, shape (m, n)
        With `alike_rows`: a parameter whose lines turn the rows of W alike.
    observations : Observations, shape (k, n)
        From `cut_rows` or `cut_columns`.

    Raises
    ------
    OptionError
        If rows are not cut, or the map has no such parameter.
    RankError
        In all processes, if one of them has fewer rows than the rank.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.distributed import cut_rows, split_rows
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> part = cut_rows(split_rows(Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))))
    >>> own_map(Factored((2, 2), 1), part).shape
    (2, 2)
    >>> dist.destroy_process_group()
    """
    part = observations.part
    if not isinstance(part, CutPart):
        raise OptionError("rows must be cut; got whole ones: pass entries through cut_rows")
    if not model.alike_rows:
        raise OptionError(
            "a map must turn with its rows (alike_rows) to have some of them alone; got "
            f"{type(model).__name__}: use one of HomogeneousBall, RadialBall, NBLoRA, "
            "Contractions, SpectralLoRA, SimplexRankOnes, Factored"
        )
    if part.cut_columns and not model.alike_cols:
        raise OptionError(
            "a map must turn with its columns (alike_cols) to have some of them alone; got "
            f"{type(model).__name__}: use one of HomogeneousBall, RadialBall, Contractions, "
            "SpectralLoRA, SimplexRankOnes, Factored, or cut_rows"
        )
    check_rows(observations, model.rank)
    state = dict(model.state_dict())
    state[model.alike_rows] = state[model.alike_rows][part.held[0]]
    if part.cut_columns:
        state[model.alike_cols] = state[model.alike_cols][part.held[1]]
    made = type(model).from_config(model.config(), state, shape=held_shape(observations))
    return made.to(device=next(model.parameters()).device)
