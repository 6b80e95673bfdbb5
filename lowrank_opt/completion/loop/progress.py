"""Telling the user how far an iteration is."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from lowrank_opt.completion.loop.history import Iteration

Progress: TypeAlias = bool | Callable[[Iteration], None]


@contextmanager
def reporting(progress: Progress, max_iterations: int) -> Generator[Callable[[Iteration], None]]:
    """Yield a function to call once for each iteration.

    Parameters
    ----------
    progress : bool or callable
        True for a bar on standard error; a callable is called itself.
    max_iterations : int
    """
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=max_iterations, desc="complete", unit="it") as bar:

        def show(iteration: Iteration) -> None:
            postfix = {"objective": f"{iteration.objective:.6g}"}
            if iteration.validation_rmse == iteration.validation_rmse:
                postfix["validation"] = f"{iteration.validation_rmse:.4f}"
            bar.set_postfix(postfix, refresh=False)
            bar.update()

        yield show
