"""The door for several processes: what is random comes from the first one."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_opt.completion import complete as complete_here
from lowrank_opt.completion.model.problem import CompletionProblem, Model
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.distributed.cut import CutPart
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import ProcessPart
from lowrank_opt.errors import ObservationError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization


def complete(
    observations: Observations | CompletionProblem,
    model: Model = None,
    *,
    generator: torch.Generator | None = None,
    **options: Any,  # noqa: ANN401
) -> AnyResult:
    """Complete a matrix of whose entries every process has a part.

    Called in all processes, with the same arguments besides the entries; all return the same
    result, which is that of one process with all entries, to rounding.

    Parameters
    ----------
    observations : Observations or CompletionProblem
        Entries from `split_rows` or `own_rows`.
    model, **options
        As in `lowrank_opt.complete`. The parameters of a parameterization become those of the
        first process; where rows are cut, it has the rows of this process, which stay its own.
    generator : torch.Generator, optional
        That of the first process counts.

    Returns
    -------
    CompletionResult or BayesianResult
        With all factors; of entries whose rows are cut, with those of this process's rows.

    Raises
    ------
    ObservationError
        If the entries have no part.
    OptionError
        If the solver does not have the trait `distributed`.

    Notes
    -----
    The processes take the same decisions because they compute them from the same numbers: use
    machines of one kind, with equally many threads.
    """
    entries = observations if isinstance(observations, Observations) else observations.observations
    if not isinstance(entries.part, ProcessPart | CutPart):
        raise ObservationError(
            "entries must be a part of those of all processes; got entries of one: pass them "
            "through split_rows or own_rows"
        )
    processes = entries.part.processes
    asked = observations.model if isinstance(observations, CompletionProblem) else model
    if isinstance(asked, Parameterization):
        cut = (entries.part.cut, entries.part.cut_columns)
        named = (asked.alike_rows, asked.alike_cols)
        own = {name for name, spread in zip(named, cut, strict=True) if spread}
        _synchronize(asked, processes, own)
    shared = _same_generator(generator, processes, entries.device)
    if isinstance(observations, CompletionProblem):
        return complete_here(observations, generator=shared, **options)
    return complete_here(entries, model, generator=shared, **options)


@torch.no_grad()
def _synchronize(model: Parameterization, processes: Processes, own: set[str]) -> None:
    """Make all tensors those of the first process, but those of each one's own lines."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if name not in own:
            x.copy_(processes.from_first(x))


def _same_generator(
    generator: torch.Generator | None, processes: Processes, device: torch.device
) -> torch.Generator:
    seeds = torch.randint(2**62, (1,), generator=generator) if generator is None else None
    if generator is None or seeds is not None:
        assert seeds is not None, "drawn above"
        return torch.Generator().manual_seed(int(processes.from_first(seeds.to(device))))
    state = processes.from_first(generator.get_state().to(device)).cpu()
    same = torch.Generator(generator.device)
    same.set_state(state)
    return same
