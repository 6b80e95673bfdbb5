"""Side information by ids: a line of features for each row or column, entries or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.estimators.data.entries import Entries
from lowrank_opt.tables.features import Encoding, encoded
from lowrank_opt.tables.frames import is_frame
from lowrank_opt.tables.ids import UNKNOWN, Ids, Labels, Positions

if TYPE_CHECKING:
    from lowrank_opt.tables.features import Matrix


Encodings: TypeAlias = tuple[Encoding | None, Encoding | None]


def with_side(
    entries: Entries, row_features: object, col_features: object
) -> tuple[Entries, tuple[list[Matrix], list[Matrix]], Encodings]:
    """Return entries with room for all ids that have features, these in their order, and how.

    Parameters
    ----------
    entries : Entries
    row_features, col_features : frame, array, sparse matrix or None
        A frame of pandas has ids as its index, other frames in their first column: one for each id
        with an entry, and any others, which are predicted by their features. Arrays have a line
        for each position; ids are positions then.

    Raises
    ------
    ObservationError
        If an id with entries has no features, one comes twice, or a feature is missing.
    ShapeError
        If an array has another number of lines than there are positions.
    """
    rows, left, by_row = _aligned(row_features, entries.row_labels, "row_features")
    cols, right, by_col = _aligned(col_features, entries.col_labels, "col_features")
    return entries.widened(rows, cols), (left, right), (by_row, by_col)


def newcomers(
    features: object, labels: Labels, encoding: Encoding | None, name: str
) -> tuple[Ids, Matrix]:
    """Return ids with features that come after a fit, and the features as the fit had them.

    Parameters
    ----------
    features : frame, array or sparse matrix
        As for `with_side`. Lines of an array are positions, the known ones first.
    labels : Labels
        The known ids.
    encoding : Encoding or None
        That of the fit, if it had features of this side.
    name : str

    Raises
    ------
    ObservationError
        If the fit had none, an id comes twice or is of another kind, or a feature does not fit.
    ShapeError
        If columns are others, or an array has not a line for each known position.
    """
    if encoding is None:
        raise ObservationError(
            f"{name} are used by a model that was fitted with some; this one was not: fit it with "
            f"{name}, or leave them out"
        )
    ids, data = _ids_of(features)
    matrix = encoded(data, name, encoding)[0]
    if ids is None:
        matrix = _by_position(matrix, labels, name, more=True)
        return np.arange(matrix.shape[0]), matrix
    described, positions = _once(ids, name)
    labels.find(described.ids, name)
    order = np.empty(len(described), dtype=np.int64)
    order[positions] = np.arange(len(positions))
    return described.ids, matrix[order]


def _once(ids: Any, name: str) -> tuple[Labels, Positions]:  # noqa: ANN401
    described, positions = Labels.of(ids, name)
    if len(described) < len(positions):
        raise ObservationError(
            f"{name} must have each id once; got {len(positions) - len(described)} again"
        )
    return described, positions


def _aligned(
    features: object, labels: Labels, name: str
) -> tuple[Labels, list[Matrix], Encoding | None]:
    if features is None:
        return labels, [], None
    ids, data = _ids_of(features)
    matrix, encoding = encoded(data, name)
    if ids is None:
        return labels, [_by_position(matrix, labels, name)], encoding
    described, positions = _once(ids, name)
    at = described.find(labels.ids, name)
    if (at == UNKNOWN).any():
        first = labels.to_ids()[int((at == UNKNOWN).argmax())]
        raise ObservationError(
            f"{name} must have a line for each id; got none for {int((at == UNKNOWN).sum())} of "
            f"{len(at)}, the first {first!r}: add them, or leave their entries out"
        )
    extended = labels.extended(ids, name)
    order = np.empty(len(described), dtype=np.int64)
    order[positions] = np.arange(len(positions))
    return extended, [matrix[order[described.positions(extended.ids)]]], encoding


def _ids_of(features: object) -> tuple[Any, object]:
    """Return the ids of a frame and the rest of it; None for what has lines by position."""
    data = cast("Any", features)
    if hasattr(data, "iloc"):
        return data.index.to_numpy(), data
    if not is_frame(data):
        return None, data
    import narwhals as nw

    frame: Any = nw.from_native(data)
    frame = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
    first, *rest = frame.columns
    return frame[first].to_list(), frame.select(rest)


def _by_position(matrix: Matrix, labels: Labels, name: str, *, more: bool = False) -> Matrix:
    lines, known = matrix.shape[0], len(labels)
    if labels.to_ids() != list(range(known)) or not (lines == known or (more and lines > known)):
        raise ShapeError(
            f"{name} in an array must have a line for each position 0..{len(labels) - 1}; got "
            f"{matrix.shape[0]} lines for ids such as {labels.to_ids()[:1]!r}: pass a frame with "
            "the ids as its index, or give the estimator a shape"
        )
    return matrix
