"""The loops over rows on the threads of torch: least squares, draws and posteriors.

A row is computed by one thread in one order, so that results do not depend on their number.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.loops.moments import draw_pass, pack_moments, posterior_pass
from lowrank_opt.kernels.loops.nonnegative import nonnegative_pass
from lowrank_opt.kernels.loops.normal_equations import conjugate_gradient_pass, exact_pass
from lowrank_opt.kernels.protocol import Given, RowEntries
from lowrank_opt.observations import CompressedAxis

_RANGES_PER_THREAD = 4
# Multiplications below which a pass is over before a second thread has started.
_WORTH_A_THREAD, _WORTH_A_POSTERIOR = 1 << 18, 1 << 20


def solve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    precision: Tensor,
    strengths: Tensor,
    pull: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """Do what `RowProblems.solve` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    pulls = x.new_zeros(x.shape) if pull is None else pull
    scratch = torch.empty_like(entries.values)
    middle = (features, offsets, scale, precision, strengths, pulls, noise)
    work = len(entries.values) * features.shape[1] ** 2
    threads = threads_for(work, _WORTH_A_THREAD)
    sweep(exact_pass, entries.axis, threads, *entries[1:], *middle, scratch, x, losses)
    return losses


def improve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    diagonal: Tensor,
    strengths: Tensor,
    steps: int,
) -> Tensor:
    """Do what `RowProblems.improve` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    scratch = torch.empty_like(entries.values)
    middle = (features, offsets, diagonal, strengths, steps)
    threads = threads_for(len(entries.values) * features.shape[1] * steps, _WORTH_A_THREAD)
    parts = (*entries[1:], *middle, scratch, x, losses)
    sweep(conjugate_gradient_pass, entries.axis, threads, *parts)
    return losses


def nonnegative_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    diagonal: Tensor,
    strengths: Tensor,
    free: int,
) -> Tensor:
    """Do what `RowProblems.solve_nonnegative` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    scratch = torch.empty_like(entries.values)
    middle = (features, offsets, diagonal, strengths, free)
    threads = threads_for(len(entries.values) * features.shape[1] ** 2, _WORTH_A_THREAD)
    parts = (*entries[1:], *middle, scratch, x, losses)
    sweep(nonnegative_pass, entries.axis, threads, *parts)
    return losses


def posterior(
    given: Given, means: Tensor, products: Tensor, losses: Tensor, logdets: Tensor
) -> None:
    """Write the posterior of each row, as `GaussianRows.posterior`."""
    axis, *parts = given
    sweep(posterior_pass, axis, _threads_of(given), *parts, means, products, losses, logdets)


def draw(given: Given, noise: Tensor, means: Tensor, losses: Tensor) -> None:
    """Write a draw from the posterior of each row, as `GaussianRows.draw`."""
    axis, *parts = given
    sweep(draw_pass, axis, _threads_of(given), *parts, noise, means, losses)


def pack(means: Tensor, products: Tensor) -> None:
    """Write the packed ``z z^T`` of each row z of means."""
    pack_moments(means.numpy(), products.numpy())


def _threads_of(given: Given) -> int:
    return threads_for(len(given.values) * given.products.shape[1], _WORTH_A_POSTERIOR)


def threads_for(work: int, worth: int) -> int:
    """Return torch's number of threads for work that is worth them, else one."""
    return torch.get_num_threads() if work >= worth else 1


def sweep(kernel: Callable[..., None], axis: CompressedAxis, threads: int, *parts: object) -> None:
    """Run a pass over all groups of an axis; parts that are tensors become arrays."""
    data = (axis.pointers, axis.indices, *parts)
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in data]
    pointers = axis.pointers.numpy()
    if threads == 1:
        kernel(0, len(pointers) - 1, *arrays)
        return
    bounds = balanced_ranges(pointers, threads * _RANGES_PER_THREAD)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda ends: kernel(*ends, *arrays), pairwise(bounds)))


def balanced_ranges(pointers: NDArray[np.integer], ranges: int) -> list[int]:
    """Cut groups into ranges of about equal work: entries, and a constant for each group."""
    groups = len(pointers) - 1
    work = pointers + np.arange(groups + 1) * 16
    inner = np.searchsorted(work, np.linspace(0, work[-1], ranges + 1)[1:-1])
    return [0, *inner.tolist(), groups]
