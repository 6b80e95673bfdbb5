"""Interactions as observations: ids become positions, repeated pairs become weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.tables.arrays import narrowed
from lowrank_opt.tables.ids import UNKNOWN, Ids, Labels, Positions
from lowrank_opt.tables.triplets import Triplets


@dataclass(frozen=True, eq=False)
class Entries:
    """Observations, and the ids of their rows and columns.

    Parameters
    ----------
    observations : Observations
    row_labels, col_labels : Labels
    names : tuple of str or None
        Of the columns that held the ids.
    """

    observations: Observations
    row_labels: Labels
    col_labels: Labels
    names: tuple[str, str] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.observations.shape

    def widened(self, rows: Labels, cols: Labels) -> Entries:
        """Return the same entries, with labels that begin with these and go on."""
        seen, shape = self.observations, (len(rows), len(cols))
        if shape != seen.shape:
            seen = Observations(seen.rows, seen.cols, seen.values, shape, seen.weights)
        return Entries(seen, rows, cols, self.names)


def entries_of(found: Triplets, shape: tuple[int, int] | None) -> Entries:
    """Return the entries, of weights that repeat as often as a pair comes.

    Parameters
    ----------
    found : Triplets
        With values.
    shape : tuple of int or None
        If ids are positions.

    Raises
    ------
    ShapeError
        If the triplets are those of a matrix of another shape.
    ObservationError
        If ids are no positions in a matrix of that shape, or no entry has a weight.
    """
    if None not in (shape, found.shape) and tuple(shape or ()) != found.shape:
        raise ShapeError(f"the matrix must have shape {shape}; got {found.shape}")
    shape = shape or found.shape
    if shape is None:
        rows, i = Labels.of(found.rows, "rows")
        cols, j = Labels.of(found.cols, "cols")
        return _entries(found, rows, cols, i, j)
    rows, cols = (Labels.range(int(size)) for size in shape)
    i = _positions(rows, found.rows, "rows")
    return _entries(found, rows, cols, i, _positions(cols, found.cols, "cols"))


def extended(entries: Entries, found: Triplets) -> Entries:
    """Return the entries with others added; a pair that comes again replaces the old value."""
    rows, cols = entries.row_labels.extended(found.rows), entries.col_labels.extended(found.cols)
    new = _entries(found, rows, cols, rows.positions(found.rows), cols.positions(found.cols))
    there = entries.observations.device
    old, added = (x.observations.to(device="cpu") for x in (entries, new))
    weights = None
    if old.weights is not None or added.weights is not None:
        weights = np.concatenate([_weights_of(old), _weights_of(added)])
    parts = (
        np.concatenate([a.numpy(), b.numpy()])
        for a, b in ((old.rows, added.rows), (old.cols, added.cols), (old.values, added.values))
    )
    i, j, values = parts
    shape = (len(rows), len(cols))
    if old.values.numpy().dtype == np.float32:
        values = narrowed(values)
    observations = Observations(i, j, values, shape, weights, duplicates="last")
    return Entries(observations.to(device=there), rows, cols, entries.names)


def _entries(found: Triplets, rows: Labels, cols: Labels, i: Positions, j: Positions) -> Entries:
    assert found.values is not None, "entries have values"
    values, weights, shape = found.values, found.weights, (len(rows), len(cols))
    if weights is not None:
        used = _positive(weights)
        i, j, values, weights = i[used], j[used], values[used], weights[used]
    weighed = None if weights is None else torch.from_numpy(weights.astype(values.dtype))
    rows_, cols_, values_ = (torch.from_numpy(x) for x in (i, j, values))
    observations = Observations.of_positions(rows_, cols_, values_, shape, weighed)
    if observations is not None:
        return Entries(observations.to(device=found.device), rows, cols, found.names)
    # The squared loss of a repeated pair is that of its mean, as often.
    repeated = np.ones_like(values) if weights is None else weights
    observations = Observations(i, j, values, shape, repeated, duplicates="mean")
    return Entries(observations.to(device=found.device), rows, cols, found.names)


def _positive(weights: NDArray[np.floating]) -> NDArray[np.bool_]:
    if (weights < 0).any():
        k = int((weights < 0).argmax())
        raise ObservationError(
            f"sample_weight must be nonnegative; got {float(weights[k])!r} at position {k}"
        )
    if not (weights > 0).any():
        raise ObservationError(f"one weight at least must be positive; got {len(weights)} zeros")
    return weights > 0


def _positions(labels: Labels, ids: Ids, name: str) -> Positions:
    positions = labels.positions(ids, name)
    unknown = positions == UNKNOWN
    if unknown.any():
        k = int(unknown.argmax())
        first = ids[k : k + 1].tolist()[0]
        one = ids.dtype.kind == "i" and int(ids.min()) == 1 and int(ids.max()) == len(labels)
        cure = "subtract one from ids that count from 1, or " if one else ""
        raise ObservationError(
            f"with a shape, {name} must be positions in 0..{len(labels) - 1}; got {first!r} at "
            f"position {k}: {cure}leave shape out to use other ids"
        )
    return positions


def _weights_of(observations: Observations) -> NDArray[np.floating]:
    w = observations.weights
    return np.ones(len(observations)) if w is None else w.double().numpy()
