"""``lowrank-opt evaluate``: the errors of a saved model on a file of ratings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_opt.cli.commands.predict import checked_limits
from lowrank_opt.cli.output import add_output, table
from lowrank_opt.cli.streams import say
from lowrank_opt.cli.tables import add_columns, announce, open_table, report
from lowrank_opt.errors import DataError

if TYPE_CHECKING:
    from argparse import Namespace

    import numpy as np

    from lowrank_opt.cli.parsers import Commands


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "evaluate", help="root mean squared and mean absolute error on a file of ratings"
    )
    parser.add_argument("model", help="folder that `complete` wrote")
    parser.add_argument("ratings", help="file of ratings that the model has not seen (or -)")
    add_output(parser)
    parser.add_argument(
        "--clip", nargs=2, type=float, metavar=("LOW", "HIGH"), help="limits of predictions"
    )
    parser.add_argument(
        "--max-rmse", type=float, metavar="X", help="end with status 1 if the error is larger"
    )
    add_columns(parser, value=True)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    import numpy as np

    from lowrank_opt.cli.models import SavedModel

    limits = checked_limits(options.clip)
    model = SavedModel(options.model)
    file = open_table(options.ratings, options, value=True)
    announce(options, options.ratings, file)
    # Count, sum of squares and sum of moduli: of all lines, and of those with known ids.
    sums = np.zeros((2, 3))
    for chunk in file.chunks():
        users, items = model.positions(chunk.texts)
        assert chunk.values is not None, "a column of numbers was asked for"
        errors = np.abs(model.predict(users, items).clamp(*limits).numpy() - chunk.values)
        for row, x in zip(sums, (errors, errors[(users >= 0) & (items >= 0)]), strict=True):
            row += (len(x), np.dot(x, x), x.sum())
    report(options.ratings, file.bad, file.unterminated)
    if sums[0, 0] == 0:
        raise DataError(f"a file of ratings must have a line of data; {options.ratings!r} has none")
    rmse = math.sqrt(sums[0, 1] / sums[0, 0])
    metrics = _metrics(sums)
    if options.json:
        with table(options, list(metrics)) as out:
            out.rows([list(metrics.values())])
    else:
        with table(options, ["metric", "value"]) as out:
            out.rows(metrics.items())
    if options.max_rmse is not None and not rmse <= options.max_rmse:
        say(f"the root mean squared error is {rmse:.6g}, more than {options.max_rmse:g}")
        return 1
    return 0


def _metrics(sums: np.ndarray) -> dict[str, float]:
    (lines, squares, moduli), (known, known_squares, known_moduli) = sums.tolist()
    metrics = {
        "lines": lines,
        "coverage": known / lines,
        "rmse": math.sqrt(squares / lines),
        "mae": moduli / lines,
    }
    if 0 < known < lines:
        metrics |= {
            "rmse_known": math.sqrt(known_squares / known),
            "mae_known": known_moduli / known,
        }
    return metrics
