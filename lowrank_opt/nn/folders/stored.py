"""An adapter folder, read and checked before anything is made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TypeAlias, cast

import torch
from torch import Tensor

from lowrank_opt.errors import DataError, LowRankError, ShapeError
from lowrank_opt.nn.basis.kinds import Side
from lowrank_opt.nn.folders import files
from lowrank_opt.parameterizations.config import Json, JsonObject

Shape: TypeAlias = tuple[int, ...]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Before the names of tensors that are not trained any more.
SETTLED = "settled/"


# Returns a matrix of the base weight of that name.
Bases: TypeAlias = Callable[[str, int], Tensor]


@dataclass(frozen=True)
class BaseLink:
    """A tensor of a parameterization that is the base weight, in a dtype, with prints of it."""

    dtype: torch.dtype
    marks: tuple[int, int]


@dataclass(frozen=True)
class StoredWeight:
    """What a folder says of one weight.

    Attributes
    ----------
    name, layer : str
        The weight, and the type of its layer.
    shape : tuple of int
    tied_to : str
        The weight that shares its update and is listed first; itself if there is none before.
    recipes : list of dict
        Of the parameterizations of its matrices.
    norms : list of float
        Frobenius norms of the updates.
    magnitude : {"rows", "columns"}, optional
        Which lengths of the weight plus its update the adapter has.
    settled : list of int
        Ranks of what is added to them and not trained any more; empty if nothing is.
    base : list of dict
        Which of their tensors are the base weight, and are not in the folder.
    """

    name: str
    layer: str
    shape: Shape
    tied_to: str
    recipes: Sequence[JsonObject]
    norms: Sequence[float]
    settled: Sequence[int]
    base: Sequence[Mapping[str, BaseLink]]
    magnitude: Side | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape that each of its matrices must have."""
        count = len(self.recipes)
        if count == 1:
            return self.shape[0], math.prod(self.shape[1:])
        return self.shape[-2], self.shape[-1]


@dataclass(frozen=True)
class StoredOwn:
    """A tensor that the adapter has of its own, in all the places that share it."""

    places: Sequence[str]
    parameter: bool
    tensor: Tensor

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.places[0]


@dataclass(frozen=True)
class Stored:
    """A whole folder; every tensor of it belongs to a weight or is an own one.

    Attributes
    ----------
    intact : bool
        Whether the description, and the dtype of every tensor, are as they were written.
    """

    name: str
    weights: Mapping[str, StoredWeight]
    own: Sequence[StoredOwn]
    tensors: Mapping[str, Tensor]
    dropout: float = 0.0
    intact: bool = True


def read(path: str | PathLike[str]) -> Stored:
    """Return what is in an adapter folder.

    Raises
    ------
    DataError
        If the folder is missing, damaged or incomplete, or holds NaN.
    """
    description, tensors = files.read(path)
    try:
        return _parsed(description, tensors)
    except LowRankError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: str | PathLike[str], error: Exception) -> DataError:
    """Return the error for a folder whose description has another form than ours."""
    return DataError(
        f"an adapter must be as save_adapter wrote it; {str(path)!r} is damaged ({error!r}): "
        "save it again"
    )


def _parsed(description: JsonObject, tensors: Mapping[str, Tensor]) -> Stored:
    for key, x in tensors.items():
        if x.is_floating_point() and x.dtype not in _FLOATS:
            raise DataError(
                f"an adapter's numbers are of 16 bits or more; {key} holds {x.dtype}: it was not "
                "written by save_adapter"
            )
    weights = [_weight(entry) for entry in cast("list[JsonObject]", description["sites"])]
    named = {weight.name: weight for weight in weights}
    own = [_own(entry, tensors) for entry in cast("list[JsonObject]", description["trained"])]
    places = [place for x in own for place in x.places]
    for what, names in (("weights", [w.name for w in weights]), ("trained tensors", places)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"an adapter has each of its {what} once; got {twice} twice")
    loose = [w.name for w in weights if _first_of(w, named).tied_to != w.tied_to]
    if loose:
        raise DataError(f"tied weights must be tied to one with an update; got {loose}")
    for weight in weights:
        first = named[weight.tied_to]
        if (weight.recipes, weight.magnitude) != (first.recipes, first.magnitude):
            raise DataError(f"tied weights have one update; {weight.name} is described by another")
    for key, x in tensors.items():
        if x.is_floating_point() and bool(torch.isnan(x).any()):
            raise DataError(f"an adapter must be finite; {key} holds NaN: train it again")
    if not weights:
        raise DataError("an adapter must have an update; the folder lists none: save it again")
    dropout = description.get("dropout", 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"a dropout is a probability, got {dropout!r}")
    intact = files.is_sealed(description, tensors)
    return Stored(_text(description["adapter"]), named, own, tensors, float(dropout), intact)


def _first_of(weight: StoredWeight, named: Mapping[str, StoredWeight]) -> StoredWeight:
    first = named.get(weight.tied_to)
    if first is None:
        raise DataError(f"tied weights must be tied to one with an update; got ['{weight.name}']")
    return first


def _weight(entry: JsonObject) -> StoredWeight:
    recipes = cast("list[JsonObject]", entry["members"])
    norms = cast("list[float]", entry["frobenius_norms"])
    shape = tuple(_integer(x) for x in cast("list[Json]", entry["shape"]))
    if not isinstance(recipes, list) or not all(isinstance(recipe, dict) for recipe in recipes):
        raise TypeError("parameterizations must be a list of objects")
    if len(recipes) != len(norms) or not recipes or len(shape) < 2:
        raise ValueError("a weight must have parameterizations, their norms, and two axes")
    if len(recipes) > 1 and math.prod(shape[:-2]) != len(recipes):
        raise ValueError("a weight must have one parameterization for each of its matrices")
    ranks = [_integer(x) for x in cast("list[Json]", entry["settled"])]
    if ranks and len(ranks) != len(recipes):
        raise ValueError("a settled part must have a rank for each matrix")
    base = [_links(x) for x in cast("list[Json]", entry.get("base", [{} for _ in recipes]))]
    if len(base) != len(recipes):
        raise ValueError("the base must be told for each matrix")
    name, layer, tied_to = (_text(entry[key]) for key in ("site", "layer", "tied_to"))
    magnitude = entry.get("magnitude")
    if magnitude not in (None, "rows", "columns"):
        raise ValueError(f"magnitudes are of rows or columns, got {magnitude!r}")
    return StoredWeight(
        name, layer, shape, tied_to, recipes, [float(x) for x in norms], ranks, base, magnitude
    )


def _links(entries: Json) -> dict[str, BaseLink]:
    if not isinstance(entries, dict):
        raise TypeError("tensors that are the base weight must be an object")
    found: dict[str, BaseLink] = {}
    for key, link in entries.items():
        said = cast("JsonObject", link)
        dtype = getattr(torch, _text(said["dtype"]).removeprefix("torch."))
        first, second = cast("list[int]", said["print"])
        if not isinstance(dtype, torch.dtype) or not isinstance(first, int):
            raise TypeError(f"a dtype and two integers expected, got {said!r}")
        found[key] = BaseLink(dtype, (first, second))
    return found


def _own(entry: JsonObject, tensors: Mapping[str, Tensor]) -> StoredOwn:
    places = [_text(x) for x in cast("list[Json]", entry["places"])]
    if entry["kind"] not in ("parameter", "buffer"):
        raise ValueError(f"a tensor is a parameter or a buffer, got {entry['kind']!r}")
    key = own_key(places[0])
    if key not in tensors:
        raise DataError(f"an adapter must be whole; trained tensors missing in the file: {places}")
    parameter, tensor = entry["kind"] == "parameter", tensors[key]
    if parameter and not bool(torch.isfinite(tensor).all()):
        raise DataError(f"an adapter must be finite; {places[0]} is not: train it again")
    if not same_norm(entry["norm"], tensor):
        raise DataError(
            f"a tensor must have the norm that was recorded, {entry['norm']}; {places[0]} has "
            "another: it was changed after saving"
        )
    return StoredOwn(places, parameter, tensor)


def norm_of(x: Tensor) -> float | None:
    """Return the norm of a tensor as it is recorded: None if it is not finite."""
    wide = x.detach().to(torch.complex128 if x.is_complex() else torch.float64)
    norm = float(torch.linalg.vector_norm(wide))
    return norm if math.isfinite(norm) else None


def same_norm(recorded: Json, x: Tensor) -> bool:
    """Whether a tensor has the norm that was recorded."""
    norm = norm_of(x)
    if norm is None or recorded is None:
        return norm is recorded
    return isinstance(recorded, int | float) and abs(norm - recorded) <= 1e-9 * abs(recorded)


def own_key(name: str) -> str:
    """Return under which key the own tensor of that name is in the file."""
    return f"trained/{name}"


def magnitude_key(name: str) -> str:
    """Return under which key the magnitudes of a weight are in the file."""
    return f"{name}/magnitude"


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a word expected, got {value!r}")
    return value


def _integer(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"a size expected, got {value!r}")
    return value


def check_same_shape(key: str, expected: Sequence[int], value: Tensor) -> None:
    """Raise ShapeError unless a tensor has the expected shape."""
    if tuple(expected) != tuple(value.shape):
        raise ShapeError(
            f"the tensor {key} must have shape {tuple(expected)}; got {tuple(value.shape)}"
        )


def check_same_kind(key: str, like: Tensor, value: Tensor) -> None:
    """Raise DataError unless a tensor holds numbers of a kind: real ones of any width, or alike."""
    if value.dtype != like.dtype and not (like.is_floating_point() and value.is_floating_point()):
        raise DataError(
            f"the tensor {key} must hold {like.dtype}; got {value.dtype}: it is damaged, save the "
            "adapter again"
        )


def check_keys(what: str, in_file: Collection[str], expected: Collection[str]) -> None:
    """Raise DataError unless a file has what is expected, and nothing else."""
    missing = sorted(set(expected) - set(in_file))
    unexpected = sorted(set(in_file) - set(expected))
    if missing or unexpected:
        raise DataError(
            f"an adapter must fit exactly; {what} missing in the file: {missing}; unexpected in "
            f"the file: {unexpected}: load it into the model it was saved from"
        )
