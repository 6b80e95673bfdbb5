"""``torchrun -m lowrank_opt complete``: a folder of Parquet files, in several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_opt.cli.streams import say
from lowrank_opt.errors import OptionError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from lowrank_opt.completion import Checkpoint, CompletionResult
    from lowrank_opt.distributed.folder import PartialRatings
    from lowrank_opt.files import Json
    from lowrank_opt.observations import Observations


def run(
    options: Namespace,
    folder: Path,
    solver: str,
    every: int,
    fit: Callable[[Namespace, str, Observations, Checkpoint | None], CompletionResult],
    held: Callable[[Path], AbstractContextManager[None]],
) -> int:
    """Complete in all processes; the first one speaks, and writes the model.

    Raises
    ------
    OptionError
        If there are weights, which a folder is read without.
    """
    if options.weight is not None:
        raise OptionError(
            f"--weight needs one process; got {options.weight!r} in several: start the command "
            "without torchrun"
        )
    from lowrank_opt.distributed.saving import save

    with _group() as first, held(folder) if first else nullcontext():
        options.quiet = options.quiet or not first
        ratings = _read(options, solver)
        checkpoint = _checkpoint(options, folder, solver, every, ratings.observations)
        result = fit(options, solver, ratings.observations, checkpoint)
        save(result, ratings, folder)
        facts = _facts(result, ratings)
        if first:
            norm = facts["nuclear_norm"]
            lines = result.summary(rows=facts["users"], cols=facts["items"], nuclear_norm=norm)
            print(json.dumps(facts) if options.json else lines)
        if checkpoint is not None and result.status.succeeded:
            checkpoint.remove()
        return 0 if result.status.succeeded else 1


@contextmanager
def _group() -> Generator[bool]:
    """Join the other processes; yield whether this is the first one."""
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # On one machine a launcher restarts workers with the store of before, which still has the
        # addresses of those that are gone. Several launchers may count their restarts differently.
        store = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def _read(options: Namespace, solver: str) -> PartialRatings:
    from lowrank_opt.distributed import cut_columns
    from lowrank_opt.distributed.folder import read_folder
    from lowrank_opt.observations.parts import whole_shape
    from lowrank_opt.solvers import solver_of

    traits = solver_of(solver).traits
    if options.cut_items and not traits.cut_columns:
        raise OptionError(
            f"--cut-items needs a solver that keeps some columns alone; got {solver!r}: use "
            "--solver als, or --radius"
        )
    ratings = read_folder(
        options.ratings,
        row=options.user,
        col=options.item,
        value=options.value,
        duplicates=options.duplicates,
        # Then no process has the factors of all rows.
        cut=traits.cut,
    )
    if options.cut_items:
        ratings = replace(ratings, observations=cut_columns(ratings.observations))
    if not options.quiet:
        part, (m, n) = ratings.observations.part, whole_shape(ratings.observations)
        assert part is not None, "as it was read"
        say(f"read {options.ratings}: {part.count} ratings, {m} users x {n} items")
    return ratings


def _checkpoint(
    options: Namespace, folder: Path, solver: str, every: int, observations: Observations
) -> Checkpoint | None:
    if every == 0:
        return None
    from lowrank_opt.completion import Checkpoint
    from lowrank_opt.distributed import SharedStore
    from lowrank_opt.distributed.digest import checksum

    # The number of processes is no setting: any number may go on.
    names = ("rank", "radius", "penalty", "validation", "tolerance", "seed")
    settings: dict[str, Json] = {name: getattr(options, name) for name in names}
    settings |= {"solver": solver, "data": checksum(observations)}
    again = options.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    path, store = folder / "checkpoint", SharedStore()
    checkpoint = Checkpoint(path, every=every, resume=again, settings=settings, store=store)
    if again:
        found = checkpoint.restored() is not None
        if not options.quiet:
            say(f"going on from {path}" if found else f"no checkpoint in {path}: starting anew")
    return checkpoint


def _facts(result: CompletionResult, ratings: PartialRatings) -> dict[str, Any]:
    from lowrank_opt.completion.results.cut import condensed
    from lowrank_opt.observations.parts import whole_shape

    history, part = result.history, ratings.observations.part
    m, n = whole_shape(ratings.observations)
    small = condensed(result.operator, ratings.observations)
    assert part is not None, "as it was read"
    return {
        "status": result.status.name,
        "message": result.status.value,
        "ratings": part.count,
        "users": m,
        "items": n,
        "rank": result.operator.rank,
        "mean": result.bias.mean,
        "nuclear_norm": float(small.schatten_norm(1)),
        "objective": history.objective[-1] if len(history) > 0 else None,
        "steps": len(history) - 1,
        "seconds": history.seconds[-1] if len(history) > 0 else 0.0,
    }
