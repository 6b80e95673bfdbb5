"""Fitted estimators as folders: settings and ids with the result, nothing pickled."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from lowrank_opt import files
from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.after.path import PathPoint, RegularizationPath
from lowrank_opt.completion.model.ids import from_tensors, to_tensors
from lowrank_opt.completion.results import storage
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.errors import DataError
from lowrank_opt.estimators.choice.intervals import LEVELS, Intervals, Level
from lowrank_opt.estimators.choice.known import Known
from lowrank_opt.tables.ids import Labels, as_ids

Tensors = dict[str, Tensor]
T = TypeVar("T")

LAYOUT = files.Layout(
    noun="an estimator",
    writer="save",
    format="lowrank_opt.estimator",
    version=1,
    tensors="estimator.safetensors",
    description="estimator.json",
)


def write(path: str | PathLike[str], kind: str, facts: dict[str, Any], tensors: Tensors) -> None:
    """Write a folder; one that it held is replaced whole, or stays.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    files.write(LAYOUT, path, {"kind": kind, **facts}, tensors)


def read(path: str | PathLike[str], kind: str, make: Callable[[dict[str, Any], Tensors], T]) -> T:
    """Return what `make` makes of a folder's description and tensors.

    Raises
    ------
    DataError
        If the folder is missing, damaged, foreign, or of another estimator.
    """
    facts, tensors = files.read(LAYOUT, path)
    if facts.get("kind") != kind:
        raise DataError(
            f"this is for a {kind}; {str(path)!r} holds a {facts.get('kind')}: "
            f"use {facts.get('kind')}.load"
        )
    try:
        return make(cast("dict[str, Any]", facts), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise files.damaged(LAYOUT, path, f"the content is foreign or damaged ({error})") from error


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors with a prefix before their names."""
    return {f"{prefix}.{name}": x for name, x in tensors.items()}


def of(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with that prefix, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}


def settings_to_json(settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the parameters of an estimator; generators of random numbers are left out."""
    return {name: _plain(name, value) for name, value in settings.items()}


def settings_from_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `settings_to_json` came from."""
    return {name: _restored(value) for name, value in found.items()}


def result_to_parts(result: CompletionResult | BayesianResult) -> tuple[dict[str, Any], Tensors]:
    """Return the description and the tensors that `save` would write."""
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        return files.read(storage.LAYOUT, folder)


def result_from_parts(
    description: dict[str, Any], tensors: Tensors
) -> CompletionResult | BayesianResult:
    """Return the result with these parts."""
    kinds = {"CompletionResult": CompletionResult, "BayesianResult": BayesianResult}
    with tempfile.TemporaryDirectory() as folder:
        files.write(storage.LAYOUT, Path(folder), description, tensors)
        return kinds[str(description["kind"])].load(folder)


def labels_to_tensors(name: str, labels: Labels) -> Tensors:
    """Return ids with their types."""
    return to_tensors(labels.to_ids(), name)


def labels_from_tensors(name: str, tensors: Tensors) -> Labels:
    """Return the labels of that name."""
    found = from_tensors(tensors, name)
    if found is None:
        raise ValueError(f"no {name}")
    ids = list(found)
    dtypes = {x.dtype if isinstance(x, np.datetime64 | np.timedelta64) else None for x in ids}
    if len(dtypes) == 1 and None not in dtypes:
        return Labels(np.array(ids))
    return Labels(as_ids(ids, name))


def known_to_tensors(known: Known) -> Tensors:
    """Return counts and fallback."""
    return {
        "row_counts": torch.from_numpy(known.row_counts),
        "col_counts": torch.from_numpy(known.col_counts),
        "rows": known.fallback.rows,
        "cols": known.fallback.cols,
        "mean": torch.tensor(known.fallback.mean, dtype=torch.float64),
    }


def known_from_tensors(tensors: Tensors) -> Known:
    """Return what `known_to_tensors` came from."""
    bias = AdditiveBias(float(tensors["mean"]), tensors["rows"], tensors["cols"])
    return Known(tensors["row_counts"].numpy(), tensors["col_counts"].numpy(), bias)


def intervals_to_tensors(intervals: Intervals | None) -> Tensors:
    """Return calibrated errors; nothing if there are none."""
    tensors: Tensors = {}
    for known, level in ({} if intervals is None else intervals.levels).items():
        name = f"{int(known[0])}{int(known[1])}"
        scale = np.append(level.scale, (level.least, float(level.posterior)))
        parts = {"scale": scale, "row_cuts": level.row_cuts}
        for g, (cuts, scores) in enumerate(zip(level.col_cuts, level.scores, strict=True)):
            parts[f"cuts.{g}"] = cuts
            parts |= {f"scores.{g}.{h}": x for h, x in enumerate(scores)}
        tensors |= under(name, {k: torch.from_numpy(x.copy()) for k, x in parts.items()})
    return tensors


def intervals_from_tensors(tensors: Tensors) -> Intervals | None:
    """Return what `intervals_to_tensors` came from."""
    if not tensors:
        return None
    levels = dict[tuple[bool, bool], Level]()
    for known in LEVELS:
        x = {k: v.numpy() for k, v in of(f"{int(known[0])}{int(known[1])}", tensors).items()}
        cuts = tuple(x[f"cuts.{g}"] for g in range(len(x["row_cuts"]) + 1))
        scores = tuple(
            tuple(x[f"scores.{g}.{h}"] for h in range(len(inner) + 1))
            for g, inner in enumerate(cuts)
        )
        *scale, least, posterior = x["scale"].tolist()
        level = Level(np.array(scale), least, x["row_cuts"], cuts, scores, posterior > 0)
        levels[known] = level
    return Intervals(levels)


def path_to_json(path: RegularizationPath) -> list[Any]:
    """Return the points of a path."""
    return [[dict(p.setting), _number(p.validation_rmse), *p[2:]] for p in path.points]


def path_from_json(found: list[Any]) -> RegularizationPath:
    """Return what `path_to_json` came from."""
    points = (
        PathPoint(setting, float("nan") if rmse is None else rmse, *rest)
        for setting, rmse, *rest in found
    )
    return RegularizationPath(tuple(points))


def _number(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _plain(name: str, value: object) -> Any:  # noqa: ANN401
    if name == "random_state" and not isinstance(value, int | np.integer | None):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return {"array": [_plain(name, x) for x in value.tolist()], "dtype": str(value.dtype)}
    if type(value).__name__ == "NAType":
        return {"float": "nan"}
    if isinstance(value, tuple | list):
        return {"tuple": [_plain("", x) for x in value]}
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("lowrank_opt."):
        fields = {f.name: _plain("", getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"solver": type(value).__name__, "fields": fields}
    raise DataError(
        f"settings in a file must be numbers, text or solvers of lowrank_opt; got {name}="
        f"{value!r}: save model.result_ alone, or pickle the estimator"
    )


def _restored(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_restored(x) for x in value["tuple"])
    if "array" in value:
        return np.array([_restored(x) for x in value["array"]], dtype=value["dtype"])
    if "float" in value:
        return float(value["float"])
    from lowrank_opt import solvers

    fields = {name: _restored(x) for name, x in value["fields"].items()}
    return getattr(solvers, value["solver"])(**fields)
