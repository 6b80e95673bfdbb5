"""Parameterizations of the rows of one process."""

from __future__ import annotations

from typing import TypeVar

from lowrank_opt.distributed.cut import CutPart
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization

P = TypeVar("P", bound=Parameterization)


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
    state = dict(model.state_dict())
    state[name] = state[name][part.held[0]]
    made = type(model).from_config(model.config(), state, shape=observations.shape)
    return made.to(device=next(model.parameters()).device)
