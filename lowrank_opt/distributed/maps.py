"""Parameterizations of the rows of one process."""

from __future__ import annotations

from typing import TypeVar

import torch

from lowrank_opt.distributed.cut import CutPart
from lowrank_opt.errors import OptionError, RankError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization

P = TypeVar("P", bound=Parameterization)


def check_rows(observations: Observations, rank: int) -> None:
    """Raise RankError in all processes if one has fewer of the rows that are cut than the rank.

    A process that raised alone would leave the others waiting.
    """
    part = observations.part
    if part is None or not part.cut:
        return
    fewest = -int(part.largest(torch.tensor(-observations.shape[0])))
    if fewest < rank:
        raise RankError(
            "where rows are cut, each process has a map of its own rows, at least as many as the "
            f"rank; got rank={rank}, and {fewest} rows in a process: use a smaller rank, or fewer "
            "processes"
        )


def own_map(model: P, observations: Observations) -> P:
    """Return the same map with the rows of this process alone, for entries whose rows are cut.

    Without a map of all rows, make one of `observations.shape`; other tensors than its rows become
    those of the first process.

    Parameters
    ----------
    model : Parameterization, shape (m, n)
        With `alike_rows`: a parameter whose lines turn the rows of W alike.
    observations : Observations, shape (k, n)
        From `cut_rows`.

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
    name = model.alike_rows
    if not name:
        raise OptionError(
            "a map must turn with its rows (alike_rows) to have some of them alone; got "
            f"{type(model).__name__}: use one of HomogeneousBall, RadialBall, NBLoRA, "
            "Contractions, SpectralLoRA, SimplexRankOnes, Factored"
        )
    check_rows(observations, model.rank)
    state = dict(model.state_dict())
    state[name] = state[name][part.held[0]]
    made = type(model).from_config(model.config(), state, shape=observations.shape)
    return made.to(device=next(model.parameters()).device)
