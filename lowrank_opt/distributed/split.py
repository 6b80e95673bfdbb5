"""Entries of all, cut into those of each process, and put together again."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.distributed.cut import as_cut
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import as_part, bare, by_owner, cuts
from lowrank_opt.observations import Observations
from lowrank_opt.observations.coordinates import Duplicates, as_reals
from lowrank_opt.observations.parts import together


def split_rows(observations: Observations, processes: Processes | None = None) -> Observations:
    """Return this process's rows of entries that all processes have.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        The same in every process.
    processes : Processes, optional
        All of them by default.

    Returns
    -------
    Observations, shape (m, n)
        With a `part`: solvers with the trait `distributed` compute with it as with all entries.
        None where the rows of a process have none, or where there are no rows left for it.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> split_rows(Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))).part.spans
    (slice(0, 2, None), slice(0, 2, None))
    >>> dist.destroy_process_group()
    """
    found = Processes() if processes is None else processes
    ends = cuts(observations.shape[0], found.size)
    here = slice(ends[found.rank], ends[found.rank + 1])
    mine = (observations.rows >= here.start) & (observations.rows < here.stop)
    i, j, v = (x[mine] for x in (observations.rows, observations.cols, observations.values))
    w = None if observations.weights is None else observations.weights[mine]
    return as_part(bare(i, j, v, w, observations.shape), found)


def own_rows(
    rows: Tensor,
    cols: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    weights: Tensor | None = None,
    *,
    duplicates: Duplicates = "error",
    cut: bool = False,
    processes: Processes | None = None,
) -> Observations:
    """Return this process's rows of entries that came to the processes in any way.

    Each entry is sent to the process of its row. Copies of a pair meet there, in the order of the
    processes that had them, and within each in its own.

    Parameters
    ----------
    rows, cols, values, weights
        As in `Observations`: this process's share, which may be empty.
    shape : tuple of int
        Of the whole matrix.
    duplicates : {"error", "mean", "sum", "last"}
    cut : bool
        Number the rows within each process, as `cut_rows`: nothing is as long as all rows.
    processes : Processes, optional

    Raises
    ------
    ObservationError
        In all processes: as `Observations`, of the entries of all.
    """
    found = Processes() if processes is None else processes
    ends = cuts(shape[0], found.size)
    order, sizes = by_owner(rows, ends)
    parts = [x if x is None else x[order] for x in (rows, cols, values, weights)]
    i, j, v, w = (x if x is None else found.exchange(x, sizes)[0] for x in parts)
    assert i is not None, "sent"
    assert j is not None, "sent"
    assert v is not None, "sent"
    here = slice(ends[found.rank], ends[found.rank + 1]) if cut else slice(0, shape[0])
    with together(found):
        size = (here.stop - here.start, shape[1])
        own = _checked(i - here.start, j, v, size, w, duplicates)
    return as_cut(own, found, shape) if cut else as_part(own, found)


def _checked(
    rows: Tensor,
    cols: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    weights: Tensor | None,
    duplicates: Duplicates,
) -> Observations:
    """Return entries of one process: no entry, or no weight, is a matter of all of them."""
    if len(rows) == 0:
        return bare(rows, cols, as_reals(values, "values", values.device), weights, shape)
    if weights is None or not bool((weights == 0).all()):
        return Observations(rows, cols, values, shape, weights, duplicates=duplicates)
    # Of copies without weights the mean is the plain one.
    found = Observations(rows, cols, values, shape, weights + 1, duplicates=duplicates)
    none = torch.zeros_like(found.values)
    return Observations.of_pattern(found.pattern, found.values, none)


def gather_observations(observations: Observations) -> Observations:
    """Return the entries of all processes, in every one, in canonical order by rows."""
    part = observations.part
    return observations if part is None else part.whole(observations)
