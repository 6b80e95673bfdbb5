"""``lowrank-opt plot``: a figure of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_opt.cli.output import replacing
from lowrank_opt.cli.tables import add_columns, announce, open_table, report
from lowrank_opt.errors import DataError, OptionError
from lowrank_opt.extras import extra

if TYPE_CHECKING:
    from argparse import Namespace

    from lowrank_opt.cli.models import SavedModel
    from lowrank_opt.cli.parsers import Commands
    from lowrank_opt.plots import ResidualDisplay


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plot", help="draw the singular values of a saved model, its convergence and its errors"
    )
    parser.add_argument("model", help="folder that `complete` wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf, .svg, ...")
    parser.add_argument("--residuals", metavar="FILE", help="ratings, for a third panel of errors")
    parser.add_argument("--quiet", action="store_true", help="no word on what was read")
    add_columns(parser, value=True)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.cli.models import SavedModel

    with extra("plots"):
        import matplotlib as mpl
    mpl.use("Agg")
    model = SavedModel(options.model)
    residuals = None if options.residuals is None else _residuals(options, model)
    _draw(options.out, model, residuals)
    return 0


def _draw(path: str, model: SavedModel, residuals: ResidualDisplay | None) -> None:
    import matplotlib.pyplot as plt

    from lowrank_opt.plots import ConvergenceDisplay, SpectrumDisplay

    panels = 2 if residuals is None else 3
    figure, axes = plt.subplots(1, panels, figsize=(5 * panels, 3.8), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in kinds:
        raise OptionError(f"--out must end in one of {', '.join(sorted(kinds))}; got {path!r}")
    SpectrumDisplay.from_result(model.result).plot(axes[0])
    ConvergenceDisplay.from_result(model.result).plot(axes[1])
    if residuals is not None:
        residuals.plot(axes[2])
    with replacing(path, "the figure") as place:
        figure.savefig(place, dpi=150, format=Path(path).suffix.lstrip("."))


def _residuals(options: Namespace, model: SavedModel) -> ResidualDisplay:
    import numpy as np

    from lowrank_opt.plots import ResidualDisplay

    file = open_table(options.residuals, options, value=True)
    announce(options, options.residuals, file)
    observed, predicted = list[np.ndarray](), list[np.ndarray]()
    for chunk in file.chunks():
        assert chunk.values is not None, "a column of numbers was asked for"
        observed.append(chunk.values)
        predicted.append(model.predict(*model.positions(chunk.texts)).numpy())
    report(options.residuals, file.bad, file.unterminated)
    if not observed:
        raise DataError(f"a file of ratings must have a line; {options.residuals!r} has none")
    return ResidualDisplay(np.concatenate(observed), np.concatenate(predicted))
