"""``lowrank-opt complete``: a file of ratings to a saved model."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_opt.cli.streams import launched, output, say
from lowrank_opt.cli.tables import add_columns, count, report
from lowrank_opt.errors import OptionError

if TYPE_CHECKING:
    from argparse import Namespace

    from torch import Generator as TorchGenerator
    from torch import Tensor

    from lowrank_opt import HomogeneousBall
    from lowrank_opt.cli.parsers import Commands
    from lowrank_opt.completion import Checkpoint, CompletionResult, Iteration
    from lowrank_opt.completion.solvers.traits import Traits
    from lowrank_opt.files import Json
    from lowrank_opt.observations import Observations
    from lowrank_opt.observations.ratings import Ratings

_RANK = 12
_EVERY, _SELDOM, _PAUSE = 1, 10, 1.0
_SECONDS = 10.0
# Multiplications of a sweep, 160,000 ratings of rank 12, above which compiled loops are worth it.
_WORTH_LOOPS = 1 << 24
_INTERRUPTED = 130


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "complete",
        help="complete the matrix of a file of ratings, and save the model",
        epilog="Status: 0 if the iteration ended by its own criterion, 1 if not, 2 after a wrong "
        "call, data that cannot be used or output that cannot be written, 70 after a fault of the "
        "program, 130 after Ctrl-C and 143 after the signal TERM. The best model is saved with "
        "0 and 1, and when the iteration is ended by a signal.",
    )
    parser.add_argument(
        "ratings",
        help="file with a user, an item and a value on each line: text, JSON lines, Parquet, "
        "compressed or not (- for a pipe)",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument("--rank", type=int, metavar="R", help=f"at most ({_RANK})")
    parser.add_argument("--radius", type=float, metavar="X", help="bound on the nuclear norm")
    parser.add_argument("--penalty", type=float, default=0.0, metavar="X", help="of the solver")
    parser.add_argument(
        "--solver",
        metavar="NAME",
        help="variational, which needs no settings; gradient, if there is a radius; or another "
        "one of the library",
    )
    parser.add_argument(
        "--validation", type=float, metavar="SHARE", help="of the ratings, held out to stop early"
    )
    parser.add_argument("--tolerance", type=float, metavar="X", help="of the solver's criterion")
    parser.add_argument("--max-iterations", type=int, metavar="N", help="at most")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers")
    parser.add_argument(
        "--duplicates", choices=("error", "last", "mean"), default="error", help="(%(default)s)"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=count,
        metavar="N",
        help="iterations, 0 for never (1 for variational, 10 for gradient, and after the first "
        "one at most once a second)",
    )
    parser.add_argument(
        "--cut-items",
        action="store_true",
        help="under torchrun, with als or a radius: each process keeps the factors of its own "
        "users and items",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress, no word on the data")
    parser.add_argument("--json", action="store_true", help="print the summary as a JSON object")
    add_columns(parser, value=True, weight=True)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.completion import check_writable

    _ = output()
    folder, solver = check_writable(options.out), _solver(options)
    if launched():
        from lowrank_opt.cli import complete_parts

        return complete_parts.run(options, folder, solver, _every(options, solver), _fit, _held)
    with _held(folder):
        return _completed(options, folder, solver)


@contextmanager
def _held(folder: Path) -> Generator[None]:
    """Hold the folder, made if need be: a second process would write over the first one's model."""
    from lowrank_opt.locks import locked

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, wait=False):
            yield
    finally:
        if new:
            with suppress(OSError):
                # Not empty: the model, or a checkpoint.
                folder.rmdir()


def _completed(options: Namespace, folder: Path, solver: str) -> int:
    from dataclasses import replace

    from lowrank_opt.observations.ratings import read_ratings

    ratings = read_ratings(
        options.ratings,
        row=options.user,
        col=options.item,
        value=options.value,
        weight=options.weight,
        separator=options.separator,
        header=options.header,
        duplicates=options.duplicates,
        max_bad_lines=options.max_bad_lines,
        progress=None if options.quiet else _Lines(),
    )
    _describe(options, ratings)
    checkpoint = _checkpoint(options, solver, folder, ratings.observations)
    result = _fit(options, solver, ratings.observations, checkpoint)
    if _on_terminal() and not options.quiet:
        say("")
    replace(result, row_ids=ratings.row_ids, col_ids=ratings.col_ids).save(folder)
    print(json.dumps(_facts(result, ratings)) if options.json else result.summary())
    return _ended(result, checkpoint)


def _solver(options: Namespace) -> str:
    """Return the name of the solver, and refuse what does not fit it before the file is read."""
    solver = options.solver or ("variational" if options.radius is None else "gradient")
    traits = _traits(solver)
    if "parameterization" in traits.sets and options.radius is None:
        raise OptionError(f"the solver {solver} needs --radius: a bound on the nuclear norm")
    if options.resume and options.checkpoint_every == 0:
        raise OptionError("--resume needs checkpoints; got --checkpoint-every 0: leave it out")
    if options.rank is not None and options.rank < 1:
        raise OptionError(f"--rank must be at least 1; got {options.rank}")
    return solver


def _traits(name: str) -> Traits:
    from lowrank_opt.solvers import solver_of

    return solver_of(name).traits


def _describe(options: Namespace, ratings: Ratings) -> None:
    report(options.ratings, ratings.bad, ratings.unterminated)
    if ratings.merged:
        say(f"{ratings.merged} lines repeat a pair: {options.duplicates} taken")
    if not options.quiet:
        m, n = ratings.observations.shape
        entries, weights = ratings.observations, ratings.observations.weights
        weighed = "" if weights is None else f" with weights from {_range(weights)}"
        say(
            f"read {options.ratings}: {ratings.reading}; {len(entries)} ratings from "
            f"{_range(entries.values)}{weighed}, {m} users x {n} items, {ratings.merged} repeated; "
            f"ids such as {ratings.row_ids[0]!r} and {ratings.col_ids[0]!r}"
        )


def _range(x: Tensor) -> str:
    low, high = map(float, x.aminmax())
    return f"{low:g} to {high:g}"


def _facts(result: CompletionResult, ratings: Ratings) -> dict[str, object]:
    """Return the summary as numbers and names."""
    (m, n), history = result.shape, result.history
    errors = [x for x in history.validation_rmse if not math.isnan(x)]
    return {
        "status": result.status.name,
        "message": result.status.value,
        "ratings": len(ratings.observations),
        "users": m,
        "items": n,
        "repeated": ratings.merged,
        "malformed": len(ratings.bad.numbers),
        "rank": result.operator.rank,
        "mean": result.bias.mean,
        "nuclear_norm": float(result.operator.schatten_norm(1)),
        "objective": history.objective[-1] if len(history) > 0 else None,
        "steps": len(history) - 1,
        "seconds": history.seconds[-1] if len(history) > 0 else 0.0,
        "validation_rmse": min(errors) if errors else None,
    }


def _every(options: Namespace, solver: str) -> int:
    """Return the number of iterations between checkpoints, zero for none."""
    if options.checkpoint_every is not None:
        return int(options.checkpoint_every)
    traits = _traits(solver)
    # Steps along a gradient are short, and the state of a sampler has all its draws.
    return _SELDOM if "parameterization" in traits.sets or solver == "gibbs" else _EVERY


def _checkpoint(
    options: Namespace, solver: str, folder: Path, observations: Observations
) -> Checkpoint | None:
    from lowrank_opt.completion.loop.checkpoint import Checkpoint, fingerprint

    every = _every(options, solver)
    if every == 0:
        return None
    # The number of iterations is no setting: an iteration that ended early may be given more.
    names = ("rank", "radius", "penalty", "validation", "tolerance", "seed")
    settings: dict[str, Json] = {name: getattr(options, name) for name in names}
    settings |= {"solver": solver, "data": fingerprint(observations)}
    path = folder / "checkpoint"
    pause = _PAUSE if options.checkpoint_every is None else 0.0
    checkpoint = Checkpoint(
        path, every=every, seconds=pause, resume=options.resume, settings=settings
    )
    if options.resume:
        found = checkpoint.restored() is not None
        say(f"going on from {path}" if found else f"no checkpoint in {path}: starting anew")
    return checkpoint


def _fit(
    options: Namespace, solver: str, observations: Observations, checkpoint: Checkpoint | None
) -> CompletionResult:
    import torch

    from lowrank_opt.completion import CompletionResult, complete
    from lowrank_opt.observations.parts import whole_shape
    from lowrank_opt.solvers import solver_of

    generator = torch.Generator().manual_seed(options.seed)
    rank = min(options.rank or _RANK, *whole_shape(observations))
    given = {
        name: value
        for name in ("tolerance", "max_iterations", "validation")
        if (value := getattr(options, name)) is not None
    }
    given |= {"generator": generator, "progress": _Progress(quiet=options.quiet)}
    given |= {"checkpoint": checkpoint, "penalty": options.penalty}
    model = rank if options.radius is None else _ball(options, observations, rank, generator)
    with _computed(options, solver, observations, rank):
        result = complete(observations, model, solver=solver_of(solver), **given)
    return result if isinstance(result, CompletionResult) else result.to_completion()


def _ball(
    options: Namespace, observations: Observations, rank: int, generator: TorchGenerator
) -> HomogeneousBall:
    """Return the ball that is searched: that of the rows, and columns, that there are here."""
    import torch

    from lowrank_opt import HomogeneousBall
    from lowrank_opt.observations.parts import held_shape, is_cut

    shape, radius = held_shape(observations), options.radius
    if observations.part is None:
        return HomogeneousBall(shape, rank, radius=radius, generator=generator)
    from lowrank_opt.distributed.maps import check_rows, start_columns_

    check_rows(observations, rank)
    apart = is_cut(observations, 1)
    # Of columns that are cut the start is drawn for all processes together.
    drawn = torch.Generator().manual_seed(0) if apart else generator
    ball = HomogeneousBall(shape, rank, radius=radius, generator=drawn)
    if apart:
        start_columns_(ball, observations, generator)
    return ball


@contextmanager
def _computed(
    options: Namespace, solver: str, observations: Observations, rank: int
) -> Generator[None]:
    """Choose how to compute; say when loops are compiled, once after an installation."""
    from lowrank_opt.kernels import use_backend
    from lowrank_opt.kernels.backend import VARIABLE
    from lowrank_opt.observations.parts import entry_count

    # Numba takes longer to be loaded than plain torch takes for the whole of a small fit.
    work = entry_count(observations) * (rank + 2) * (rank + 3) // 2
    if solver == "variational" and work <= _WORTH_LOOPS and not os.environ.get(VARIABLE):
        with use_backend("torch"):
            yield
        return
    if options.quiet or find_spec("numba") is None:
        yield
        return
    from lowrank_opt.kernels.loops.compiler import compiling

    with compiling(lambda: say("compiling loops for this machine, once: some seconds")):
        yield


def _ended(result: CompletionResult, checkpoint: Checkpoint | None) -> int:
    from lowrank_opt.completion import CompletionStatus

    if result.status.succeeded:
        if checkpoint is not None:
            checkpoint.remove()
        return 0
    hint = "" if checkpoint is None else " --resume goes on from the last checkpoint."
    say(f"warning: {result.status.value} The best model was saved.{hint}")
    return _INTERRUPTED if result.status is CompletionStatus.INTERRUPTED else 1


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]


class _Lines:
    """Says now and then how many lines were read."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self.last >= _SECONDS:
            self.last = time.monotonic()
            say(f"read {count} lines")


class _Progress:
    """Says how far the iteration is: in place on a terminal, else a line now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.last, self.wide = quiet, -math.inf, _on_terminal()

    def __call__(self, iteration: Iteration) -> None:
        if self.quiet or not (self.wide or time.monotonic() - self.last >= _SECONDS):
            return
        self.last = time.monotonic()
        text = f"{iteration.seconds:8.1f} s  objective {iteration.objective:.6g}"
        if not math.isnan(iteration.validation_rmse):
            text += f"  validation RMSE {iteration.validation_rmse:.4f}"
        say(f"\r{text:<70}" if self.wide else text, end="" if self.wide else "\n")
