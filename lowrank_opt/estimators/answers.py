"""What a fitted `Recommender` answers: predictions, lists, similar users and items."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from lowrank_opt.errors import ObservationError, OptionError
from lowrank_opt.estimators.arrivals import arrived
from lowrank_opt.estimators.choice.options import check_needed_count
from lowrank_opt.estimators.ranking import Candidates, Recommendations, best_columns, most_similar
from lowrank_opt.estimators.saved_recommender import SavedRecommender
from lowrank_opt.tables.arrays import as_array
from lowrank_opt.tables.ids import UNKNOWN, Labels, as_ids, single_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_opt.estimators.predictions import Floats
    from lowrank_opt.tables.ids import Ids
    from lowrank_opt.tables.triplets import Interactions

# Entries of lists that are filled up beyond what there is.
_ROOM = 10**7


class AnsweringRecommender(SavedRecommender):
    """Ranks what a fit leaves."""

    def predict(
        self,
        X: Interactions,
        *,
        return_known: bool = False,
        row_features: object = None,
        col_features: object = None,
    ) -> Floats | tuple[Floats, ...]:
        """Predict ratings, of new users and items by their features; see `MatrixCompletion`."""
        check_is_fitted(self)
        return self.model_.predict(
            X, return_known=return_known, row_features=row_features, col_features=col_features
        )

    def recommend(
        self,
        users: object = None,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        items: object = None,
        row_features: object = None,
        col_features: object = None,
    ) -> Recommendations:
        """Return the k items with the largest predictions for each user.

        Works in blocks of users: memory does not grow with users times items. Users that were
        never seen get the items that are rated best. Items without a rating are listed if they
        were fitted with features.

        Parameters
        ----------
        users : sequence of ids, or one id, optional
            All users by default.
        k : int
        exclude_seen : bool
            Leave out what the user has rated.
        items : sequence of ids, or one id, optional
            Recommend among these only; all items by default.
        row_features, col_features : frame, array or sparse matrix, optional
            Of new users and items, for this list alone; `partial_fit` keeps them. See
            `MatrixCompletion.predict`.

        Returns
        -------
        Recommendations
            Items and predictions, shape (users, k), the best first.

        Raises
        ------
        OptionError
            If k is not a positive integer.
        ObservationError
            If ids are of another kind than those fitted, or an item was never seen.
        """
        check_is_fitted(self)
        check_needed_count("k", k)
        if row_features is not None or col_features is not None:
            joined = self._joined(row_features, col_features)
            return joined.recommend(users, k, exclude_seen=exclude_seen, items=items)
        asked = self.row_labels_.ids if users is None else _asked(users, "users")
        positions = self.row_labels_.find(asked, "users")
        candidates = self._candidates()
        if items is not None:
            asked_items = _asked(items, "items")
            among = known_positions(self.col_labels_, asked_items, "items", "leave it out")
            candidates = candidates.among(torch.from_numpy(among))
        _check_room(k, len(asked), len(self.col_labels_))
        found, scores = best_columns(candidates, positions, k, exclude_seen=exclude_seen)
        if self.model_.clip_ is not None:
            low, high = self.model_.clip_
            scores = np.clip(scores, low, high)
        return Recommendations.of(asked, self.col_labels_, found, scores)

    def similar_users(self, users: object, k: int = 10) -> Recommendations:
        """Return the k users whose rows of the matrix point in the most similar direction.

        Parameters
        ----------
        users : sequence of ids, or one id
        k : int

        Returns
        -------
        Recommendations
            Other users and cosines, shape (users, k), the most similar first. Biases are left out.

        Raises
        ------
        ObservationError
            If a user was never seen.
        """
        check_is_fitted(self)
        check_needed_count("k", k)
        asked = _asked(users, "users")
        positions = known_positions(self.row_labels_, asked, "users", "fold them in first")
        _check_room(k, len(asked), len(self.row_labels_))
        found, cosines = most_similar(self._candidates().flipped(), positions, k)
        return Recommendations.of(asked, self.row_labels_, found, cosines)

    def similar_items(self, items: object, k: int = 10) -> Recommendations:
        """Return the k items whose columns of the matrix point in the most similar direction.

        Parameters
        ----------
        items : sequence of ids, or one id
        k : int

        Returns
        -------
        Recommendations
            Other items and cosines, shape (items, k), the most similar first. Biases are left out.

        Raises
        ------
        ObservationError
            If an item was never seen.
        """
        check_is_fitted(self)
        check_needed_count("k", k)
        asked = _asked(items, "items")
        positions = known_positions(
            self.col_labels_, asked, "items", "recommend from what is rated"
        )
        _check_room(k, len(asked), len(self.col_labels_))
        found, cosines = most_similar(self._candidates(), positions, k)
        return Recommendations.of(asked, self.col_labels_, found, cosines)

    def _joined(self, row_features: object, col_features: object) -> Self:
        """Return a copy that knows new users and items by their features."""
        twin = copy(self)
        twin.model_ = copy(self.model_)
        twin._commit(arrived(self._state(), None, row_features, col_features), "both")
        return twin

    def _candidates(self) -> Candidates:
        return Candidates(self.result_, self._entries.observations, described=self.model_.described)


def _check_room(k: int, lines: int, there: int) -> None:
    """Raise OptionError if lists that are filled up to k would take memory for nothing."""
    if k > there and lines * k > _ROOM:
        raise OptionError(
            f"k must be at most {there}, as many as there are, where {lines} lists would be filled "
            f"up to it; got k={k}: pass k={there} for all"
        )


def _asked(ids: object, name: str) -> Ids:
    """Return ids as a vector; one alone is a vector of one."""
    if isinstance(ids, Iterator):
        ids = list(ids)
    if getattr(ids, "ndim", None) == 0:
        ids = as_array(ids).reshape(1)
    return as_ids(cast("Sequence[object]", [ids] if single_id(ids) else ids), name)


def known_positions(
    labels: Labels, ids: Sequence[object] | Ids, name: str, cure: str
) -> NDArray[np.int64]:
    """Return positions; raise ObservationError if there are unknown ids."""
    positions = labels.find(ids, name)
    unknown = positions == UNKNOWN
    if unknown.any():
        first = list(ids)[int(unknown.argmax())]
        raise ObservationError(
            f"{name} must be among the {len(labels)} known ones; got {int(unknown.sum())} of "
            f"{len(positions)} unknown, the first {first!r}: {cure}"
        )
    return positions
