"""Ratings and ids with features that come after a fit, and the rows and columns they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lowrank_opt.estimators.data.entries import Entries, extended
from lowrank_opt.tables.ids import Ids

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_opt.completion import CompletionResult
    from lowrank_opt.estimators.choice.search import Described
    from lowrank_opt.estimators.data.side_maps import SideMaps
    from lowrank_opt.estimators.updates import RowPrior, Updater
    from lowrank_opt.tables import Labels, Triplets
    from lowrank_opt.tables.ids import Positions


@dataclass(frozen=True, eq=False)
class State:
    """What a recommender knows.

    Parameters
    ----------
    entries : Entries
    updater : Updater
    described : pair of array of int
        Positions of rows and columns that have side information.
    maps : SideMaps
        What features say of rows and columns.
    rows, cols : Tensor
        Positions, ascending, of those that are to be solved.
    """

    entries: Entries
    updater: Updater
    described: Described
    maps: SideMaps
    rows: Tensor
    cols: Tensor

    def solved(
        self, result: CompletionResult, which: Literal["row", "column", "both"]
    ) -> CompletionResult:
        """Return the result with what has changed solved: rows, columns, or both in turn."""
        seen = self.entries.observations
        if len(self.rows) + len(self.cols) == 0:
            return result
        if which == "row":
            return self.updater.rows(result, seen, self.rows)
        if which == "column":
            return self.updater.cols(result, seen, self.cols)
        return self.updater.alternate(result, seen, self.rows, self.cols)


def arrived(
    state: State, found: Triplets | None, row_features: object, col_features: object
) -> State:
    """Return the state with ratings and described ids taken in; nothing is solved yet.

    Ids that have side information already keep it.

    Raises
    ------
    ObservationError, ShapeError
        If features do not fit to those of the fit, or the fit had none.
    """
    entries = state.entries if found is None else extended(state.entries, found)
    rated = (None, None) if found is None else (found.rows, found.cols)
    priors = [state.updater.row_prior, state.updater.col_prior]
    labels, described = [entries.row_labels, entries.col_labels], list(state.described)
    touched: list[Tensor] = []
    for side, features in enumerate((row_features, col_features)):
        places = np.empty(0, np.int64)
        if features is not None:
            labels[side], places, priors[side] = _described(
                state.maps, side, features, labels[side], described[side], priors[side]
            )
            described[side] = np.sort(np.append(described[side], places))
        touched.append(_touched(labels[side], rated[side], places))
    return State(
        entries.widened(labels[0], labels[1]),
        type(state.updater)(priors[0], priors[1]),
        (described[0], described[1]),
        state.maps,
        touched[0],
        touched[1],
    )


def _described(
    maps: SideMaps,
    side: int,
    features: object,
    labels: Labels,
    described: Positions,
    prior: RowPrior,
) -> tuple[Labels, Positions, RowPrior]:
    """Return labels, positions of those that are described now, and what is expected of them."""
    ids, lines = maps.arrivals(side, features, labels)
    new = ~np.isin(labels.positions(ids), described)
    labels = labels.extended(ids[new])
    places = labels.positions(ids[new])
    return labels, places, prior.joined(places, lines[torch.from_numpy(new)])


def _touched(labels: Labels, ids: Ids | None, places: Positions) -> Tensor:
    rated = places[:0] if ids is None else labels.positions(ids)
    return torch.from_numpy(np.unique(np.append(rated, places)))
