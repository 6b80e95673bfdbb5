"""``lowrank-opt recommend``: the best items for users of a saved model."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from lowrank_opt.cli.output import add_output, table
from lowrank_opt.cli.tables import add_format, announce, report
from lowrank_opt.errors import DataError, OptionError

if TYPE_CHECKING:
    from argparse import Namespace

    from lowrank_opt.cli.models import SavedModel
    from lowrank_opt.cli.parsers import Commands


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("recommend", help="list the best items for users")
    parser.add_argument("model", help="folder that `complete` wrote")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--user", action="append", metavar="ID", help="may be given several times")
    asked.add_argument("--all", action="store_true", help="for all users of the model")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="items a user (%(default)s)")
    add_output(parser)
    parser.add_argument(
        "--exclude-seen", metavar="FILE", help="file of ratings, whose pairs are left out"
    )
    group = parser.add_argument_group("the file of seen pairs")
    group.add_argument("--user-column", metavar="COLUMN", help="name of its users' column (first)")
    group.add_argument("--item-column", metavar="COLUMN", help="name of its items' column (second)")
    add_format(group)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.cli.models import SavedModel

    if options.k < 1:
        raise OptionError(f"-k must be at least 1; got {options.k}")
    model = SavedModel(options.model)
    if options.all:
        options.user = model.user_ids
    unknown = [user for user in options.user if user not in model.users.position]
    if unknown:
        raise DataError(
            f"a user must be one that the model knows; got {', '.join(map(repr, unknown))}: "
            "complete again with their ratings"
        )
    seen = _seen(options, model)
    with table(options, ["user", "item", "prediction"]) as out:
        for user in options.user:
            i = model.users.position[user]
            best = _best(model, i, seen[user], options.k)
            out.rows((model.rows[i], model.cols[j], score) for j, score in best)
    return 0


def _best(model: SavedModel, user: int, seen: set[int], k: int) -> list[tuple[int, float]]:
    """Return positions and predictions of the k best items not seen, best first."""
    import numpy as np
    import torch

    n = len(model.item_ids)
    scores = model.predict(np.full(n, user), np.arange(n))
    scores[list(seen)] = -torch.inf
    # Stable: of equal predictions, the item that came first.
    order = torch.sort(scores, descending=True, stable=True).indices[: min(k, n - len(seen))]
    return [(int(j), float(scores[j])) for j in order]


def _seen(options: Namespace, model: SavedModel) -> dict[str, set[int]]:
    """Return the positions of the items that each of the users has in the file."""
    from lowrank_opt.tables.files import open_table

    seen: dict[str, set[int]] = defaultdict(set)
    if options.exclude_seen is None:
        return seen
    file = open_table(
        options.exclude_seen,
        (options.user_column, options.item_column),
        separator=options.separator,
        header=options.header,
        max_bad_lines=options.max_bad_lines,
        known=model.knows,
    )
    announce(options, options.exclude_seen, file)
    asked, position = set(options.user), model.items.position
    for chunk in file.chunks():
        for user, item in zip(*(map(str, ids) for ids in chunk.texts), strict=True):
            if user in asked and item in position:
                seen[user].add(position[item])
    report(options.exclude_seen, file.bad, file.unterminated)
    return seen
