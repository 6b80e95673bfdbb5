"""Independent fits on all cores, one thread each, with one progress bar: joblib's processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Processes, one for each core, that stay for all runs of a block.

    Parameters
    ----------
    prepare : callable
        Run once in each worker, before its first call.
    quiet : bool
        No progress bar.
    """

    prepare: Callable[[], None]
    quiet: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        get_reusable_executor().shutdown(kill_workers=True)

    def run(self, calls: Sequence[Callable[[], T]], description: str) -> list[T]:
        """Return the results of `calls`, in order; each is picklable, a partial application."""
        processes = Parallel(
            -1, return_as="generator", initializer=_initialize, initargs=(self.prepare,)
        )
        results = processes(delayed(call)() for call in calls)
        return list(tqdm(results, description, len(calls), unit="fit", disable=self.quiet))


def _initialize(prepare: Callable[[], None]) -> None:
    # Two fits side by side use two cores better than two threads inside one fit.
    torch.set_num_threads(1)
    prepare()
