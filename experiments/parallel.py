"""Independent fits on all cores, one thread each, with one progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


def run_parallel(
    calls: Sequence[Callable[[], T]],
    *,
    description: str,
    prepare: Callable[[], None],
    quiet: bool = False,
) -> list[T]:
    """Return the results of `calls`, in order, computed in worker processes.

    Parameters
    ----------
    calls : sequence of callables
        Picklable: partial applications of functions of modules.
    description : str
        Of the progress bar.
    prepare : callable
        Run once in each worker, before its first call.
    quiet : bool
        No progress bar.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, len(calls))
    with ProcessPoolExecutor(workers, context, _initialize, (prepare,)) as pool:
        futures: list[Future[T]] = [pool.submit(call) for call in calls]
        try:
            for _ in tqdm(as_completed(futures), description, len(futures), disable=quiet):
                pass
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _initialize(prepare: Callable[[], None]) -> None:
    # Two fits side by side use two cores better than two threads inside one fit.
    torch.set_num_threads(1)
    prepare()
