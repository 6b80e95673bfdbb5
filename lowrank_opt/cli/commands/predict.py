"""``lowrank-opt predict``: the predictions of a saved model for a file of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_opt.cli.output import add_output, table
from lowrank_opt.cli.streams import say
from lowrank_opt.cli.tables import add_columns, announce, open_table, report

if TYPE_CHECKING:
    from argparse import Namespace

    from lowrank_opt.cli.parsers import Commands


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("predict", help="predict the pairs of a file with a saved model")
    parser.add_argument("model", help="folder that `complete` wrote")
    parser.add_argument("pairs", help="file with a user and an item on each line (- for a pipe)")
    add_output(parser)
    parser.add_argument(
        "--clip", nargs=2, type=float, metavar=("LOW", "HIGH"), help="limits of predictions"
    )
    add_columns(parser, value=False)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.cli.models import SavedModel

    limits = checked_limits(options.clip)
    model = SavedModel(options.model)
    file = open_table(options.pairs, options, value=False, known=model.knows)
    names = ["user", "item"] if file.names is None else [file.names[c] for c in file.texts]
    total = unknown = 0
    with table(options, [*names, "prediction"]) as out:
        announce(options, options.pairs, file)
        for chunk in file.chunks():
            users, items = model.positions(chunk.texts)
            predictions = model.predict(users, items).clamp(*limits)
            out.rows(zip(*chunk.texts, predictions.tolist(), strict=True))
            total, unknown = total + len(chunk), unknown + int(((users < 0) | (items < 0)).sum())
    report(options.pairs, file.bad, file.unterminated)
    if unknown > 0:
        say(
            f"warning: {unknown} of {total} pairs have a user or an item that the model does not "
            "know: predicted without it"
        )
    return 0


def checked_limits(clip: list[float] | None) -> tuple[float, float]:
    """Return the smallest and the largest prediction.

    Raises
    ------
    OptionError
        If they do not ascend.
    """
    from lowrank_opt.errors import OptionError

    low, high = clip or (float("-inf"), float("inf"))
    if not low <= high:
        raise OptionError(f"--clip must be a smaller and a larger number; got {low} {high}")
    return low, high
