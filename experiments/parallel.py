"""Independent fits on all cores, one thread each, with one progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Self, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class Workers:
    """A pool of processes, one for each core, as a context manager.

    Parameters
    ----------
    prepare : callable
        Run once in each worker, before its first call.
    quiet : bool
        No progress bar.
    """

    def __init__(self, prepare: Callable[[], None], *, quiet: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.quiet = quiet
        self._pool = ProcessPoolExecutor(os.cpu_count(), context, _initialize, (prepare,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, calls: Sequence[Callable[[], T]], description: str) -> list[T]:
        """Return the results of `calls`, in order; each is picklable, a partial application."""
        futures: list[Future[T]] = [self._pool.submit(call) for call in calls]
        done = as_completed(futures)
        for _ in tqdm(done, description, len(futures), unit="fit", disable=self.quiet):
            pass
        return [future.result() for future in futures]


def _initialize(prepare: Callable[[], None]) -> None:
    # Two fits side by side use two cores better than two threads inside one fit.
    torch.set_num_threads(1)
    prepare()
