"""Complete MovieLens-100K: the norm bound as the regulariser, on the five official folds.

``python -m experiments.movielens`` prints a table and writes a JSON record and figures. Every
setting is chosen on a tenth of the *training* fold; each test fold is looked at once per method.
"""

import argparse
import contextlib
import io
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch

import lowrank_opt as lo
from experiments.movielens_figures import CurvePoint, Spectrum, draw_figures
from experiments.movielens_fit import (
    BIAS_PENALTY,
    HELD_OUT,
    TOLERANCE,
    Outcome,
    clipped,
    evaluate,
    fit_parameterization,
)
from experiments.movielens_methods import CURVE_RADII, CURVE_RANKS, METHODS, PROFILE, with_profile
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from problems import movielens
from problems.metrics import rmse

CURVE_FOLD, GAP = 1, 1e-4


def curve_point(rank: int, radius: float, path: str | None, seed: int) -> CurvePoint:
    """Return the test RMSE at the optimum of a ball, for the figure; nothing is chosen by it."""
    train, test = movielens.fold("ml-100k", CURVE_FOLD, path=path)
    generator = torch.Generator().manual_seed(seed)
    ball = lo.HomogeneousBall(train.shape, rank, radius=radius, generator=generator)
    began = time.process_time()
    fitted = fit_parameterization(ball, train, gap=GAP)
    seconds = time.process_time() - began
    assert fitted.result is not None, "a parameterization was fitted"
    gap = float(fitted.result.certificate().gap) / fitted.result.history.objective[-1]
    error = rmse(clipped(fitted, test), test.values)
    return CurvePoint(rank, radius, error, gap, fitted.result.status.name, seconds)


def profile_values(path: str | None, seed: int) -> list[float]:
    """Return the singular values fitted under individual bounds, for the figure."""
    train, _ = movielens.fold("ml-100k", CURVE_FOLD, path=path)
    bounded = with_profile(train, torch.Generator().manual_seed(seed))
    fit_parameterization(bounded, train)
    return bounded().detach().singular_values().tolist()


def ready() -> None:
    """Prepare a worker: the licence counts as announced, and no fit pays for compilation."""
    with contextlib.redirect_stderr(io.StringIO()):
        movielens.announce()
    values = lo.Observations([0, 1, 2], [0, 1, 0], [1.0, 2.0, 3.0], (3, 2))
    lo.complete(values, lo.HomogeneousBall((3, 2), 1, radius=1.0), max_iterations=3)


def table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one line per method, mean and deviation over the folds."""
    header = ["method", "test RMSE", "MAE", "fit s", "rank", "nuclear norm", "bound", "laws"]
    groups = ([o for o in outcomes if o.method == method.name] for method in METHODS)
    return header, [_row(group) for group in groups if group]


def _row(outcomes: Sequence[Outcome]) -> list[str]:
    bounds = sorted({o.setting["radius"] for o in outcomes if "radius" in o.setting})
    fitted = outcomes[0].rank > 0
    verdict = "hold" if all(o.holds for o in outcomes) else "BROKEN"
    return [
        outcomes[0].method,
        mean_and_spread([o.rmse for o in outcomes]),
        mean_and_spread([o.mae for o in outcomes]),
        f"{sum(o.seconds for o in outcomes) / len(outcomes):.2f}",
        str(outcomes[0].rank) if fitted else "-",
        mean_and_spread([o.nuclear_norm for o in outcomes], digits=0) if fitted else "-",
        " / ".join(f"{b:g}" for b in bounds) or "-",
        verdict if fitted else "-",
    ]


def study(session: Session) -> int:
    """Run the experiment; the status is 0 if all bounds hold."""
    options, start = session.options, time.perf_counter()
    path, seed, folds = options.data, options.seed, options.folds
    methods, ranks, radii = METHODS, CURVE_RANKS, CURVE_RADII
    if session.smoke:
        methods, ranks, radii, folds = METHODS[1:4:2], CURVE_RANKS[:1], CURVE_RADII[:1], folds[:1]
    # Fetch, check and cache the data before any worker starts.
    movielens.load("ml-100k", path=path)
    grid = list(itertools.product(ranks, radii))
    calls = [partial(evaluate, m, fold, path, seed) for m in methods for fold in folds]
    outcomes = session.run(calls, "methods on folds")
    points = [partial(curve_point, *x, path, seed) for x in grid]
    curve = session.run(points, "error against radius")
    profile = session.run([partial(profile_values, path, seed)], "individual bounds")[0]
    seconds = time.perf_counter() - start
    header, rows = table(outcomes)
    print(f"\n{text_table(header, rows)}\n")
    print(f"mean ± standard deviation over folds {folds}; every setting was chosen on a")
    print(f"tenth of the training fold; {seconds:.0f} s in all, one thread per fit.")
    curves = {rank: [p for p in curve if p.rank == rank] for rank in ranks}
    paths = draw_figures(session.folder, curves, _references(outcomes), _spectra(outcomes, profile))
    session.write("record.json", **_record(outcomes, curve, seed, seconds))
    (session.folder / "table.md").write_text(markdown_table(header, rows) + "\n", encoding="utf-8")
    print(f"wrote {session.folder}: record.json, table.md, {', '.join(p.name for p in paths)}")
    return 0 if all(o.holds for o in outcomes) else 1


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--data", help="folder that holds ml-100k; by default it is looked for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _record(
    outcomes: Sequence[Outcome], curve: Sequence[CurvePoint], seed: int, seconds: float
) -> dict[str, Json]:
    return {
        "experiment": "movielens",
        "seed": seed,
        "seconds": seconds,
        "bias_penalty": BIAS_PENALTY,
        "tolerance": TOLERANCE,
        "held_out": HELD_OUT,
        "outcomes": [asdict(o) for o in outcomes],
        "asked_gap": GAP,
        "curve": [asdict(point) for point in curve],
        "table": markdown_table(*table(outcomes)),
    }


def _references(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the horizontal line of the figure: the biases alone, on the curve's fold."""
    return {o.method: o.rmse for o in outcomes if o.fold == CURVE_FOLD and o.method == "biases"}


def _spectra(outcomes: Sequence[Outcome], profile: list[float]) -> list[Spectrum]:
    shown = ("NBLoRA, p = 1", "HomogeneousBall", "DeLoRA")
    first = [o for o in outcomes if o.method in shown and o.fold == outcomes[0].fold]
    spectra = [Spectrum(o.method, o.singular_values, o.setting["radius"]) for o in first]
    return [*spectra, Spectrum("NBLoRA(bounds=...)", profile, bounds=PROFILE)]


main = experiment(study, __doc__, ready=ready, options=_options, folder="results/movielens")

if __name__ == "__main__":
    sys.exit(main())
