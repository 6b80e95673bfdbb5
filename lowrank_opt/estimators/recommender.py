"""Recommendations from a completed matrix: lists, similar items, new ratings without a refit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.fold_in import FactorPrior
from lowrank_opt.errors import ObservationError
from lowrank_opt.estimators.choice.callbacks import CallbackSupportMixin
from lowrank_opt.estimators.choice.choosing import clip_range, fitted_completion
from lowrank_opt.estimators.choice.options import check_needed_count
from lowrank_opt.estimators.data.entries import Entries, entries_of, extended
from lowrank_opt.estimators.folders import saving
from lowrank_opt.estimators.matrix_completion import MatrixCompletion
from lowrank_opt.estimators.ranking import Candidates, Recommendations, best_columns, most_similar
from lowrank_opt.estimators.updates import Updater
from lowrank_opt.observations import Observations
from lowrank_opt.tables import Triplets, read_triplets
from lowrank_opt.tables.ids import UNKNOWN, Labels, as_ids, single_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from sklearn.utils import Tags

    from lowrank_opt.estimators.predictions import Floats
    from lowrank_opt.tables.ids import Ids
    from lowrank_opt.tables.triplets import Interactions, Reals

# Of a posterior mean, which has the rank of all its draws together.
_LARGEST_RANK = 64


class Recommender(CallbackSupportMixin, BaseEstimator):
    """Rank items for users by predicted ratings, and take new ratings without fitting again.

    Parameters
    ----------
    estimator : MatrixCompletion, optional
        Cloned and fitted; by default one that chooses its settings.

    Attributes
    ----------
    model_ : MatrixCompletion
        The fitted estimator; it follows what is folded in.
    result_ : CompletionResult
    row_labels_, col_labels_ : Labels
        Ids of users and items.

    Examples
    --------
    >>> ratings = [("ann", "M", 5), ("ann", "Up", 2), ("bob", "M", 4), ("bob", "Her", 5)]
    >>> model = Recommender(MatrixCompletion(random_state=0)).fit(ratings)
    >>> model.recommend(["ann"], k=1).ids
    array([['Her']], dtype=object)
    >>> model.fold_in_rows([("eve", "Up", 4), ("eve", "Her", 1)]).recommend(["eve"], k=1).ids
    array([['M']], dtype=object)
    """

    def __init__(self, estimator: MatrixCompletion | None = None) -> None:
        self.estimator = estimator

    def fit(
        self, X: Interactions, y: Reals | None = None, sample_weight: Reals | None = None
    ) -> Self:
        """Fit ratings.

        Parameters
        ----------
        X : array, frame, list, sparse matrix or path
            Pairs of user and item, with ratings in `y` or in a third column, as
            `MatrixCompletion.fit`.
        y, sample_weight : array, shape (nnz,), optional

        Raises
        ------
        ShapeError, ObservationError, OptionError
            As `MatrixCompletion.fit`.
        """
        model = MatrixCompletion() if self.estimator is None else clone(self.estimator)
        if own := getattr(self, "_skl_callbacks", None):
            model.set_callbacks(*own)
        found = read_triplets(X, y, sample_weight)
        self.model_ = model.fit_triplets(found)
        result = fitted_completion(self.model_.result_)
        if result.operator.rank > _LARGEST_RANK:
            result = _truncated(result)
        entries = entries_of(found, model.shape)
        biased = self.model_.bias is not None
        self._updater = Updater.of(result, entries.observations, biased=biased)
        self._take(entries, result)
        return self

    def partial_fit(
        self, X: Interactions, y: Reals | None = None, sample_weight: Reals | None = None
    ) -> Self:
        """Take new ratings, of known and of new users and items; the first call is a fit.

        The rows and columns that the ratings are in are solved again, in turn, from all of their
        ratings; a rating of a pair that was rated before replaces the old one. The rest stays.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, y, sample_weight)
        found = self._checked(read_triplets(X, y, sample_weight))
        entries = extended(self._entries, found)
        rows, cols = (
            _touched(entries.row_labels, found.rows),
            _touched(entries.col_labels, found.cols),
        )
        result = self._updater.alternate(self.result_, entries.observations, rows, cols)
        self._take(entries, result)
        return self

    def fold_in_rows(
        self, X: Interactions, y: Reals | None = None, sample_weight: Reals | None = None
    ) -> Self:
        """Solve the rows of new users, or of old ones with more ratings; items stay as they are.

        Raises
        ------
        ObservationError
            If an item was never seen.
        """
        return self._fold_in(read_triplets(X, y, sample_weight), "row")

    def fold_in_cols(
        self, X: Interactions, y: Reals | None = None, sample_weight: Reals | None = None
    ) -> Self:
        """Solve the columns of new items, or of old ones with more ratings; users stay.

        Raises
        ------
        ObservationError
            If a user was never seen.
        """
        return self._fold_in(read_triplets(X, y, sample_weight), "column")

    def predict(
        self, X: Interactions, *, return_known: bool = False
    ) -> Floats | tuple[Floats, ...]:
        """Predict ratings; see `MatrixCompletion.predict`."""
        check_is_fitted(self)
        return self.model_.predict(X, return_known=return_known)

    def recommend(
        self,
        users: object = None,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        items: Sequence[object] | Ids | None = None,
    ) -> Recommendations:
        """Return the k items with the largest predictions for each user.

        Works in blocks of users: memory does not grow with users times items. Users that were
        never seen get the items that are rated best.

        Parameters
        ----------
        users : sequence of ids, or one id, optional
            All users by default.
        k : int
        exclude_seen : bool
            Leave out what the user has rated.
        items : sequence of ids, optional
            Recommend among these only; all items by default.

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
        asked = self.row_labels_.ids if users is None else _asked(users, "users")
        positions = self.row_labels_.find(asked, "users")
        candidates = self._candidates()
        if items is not None:
            among = _known(self.col_labels_, items, "items", "leave it out")
            candidates = candidates.among(torch.from_numpy(among))
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
        positions = _known(self.row_labels_, asked, "users", "fold them in first")
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
        positions = _known(self.col_labels_, asked, "items", "recommend from what is rated")
        found, cosines = most_similar(self._candidates(), positions, k)
        return Recommendations.of(asked, self.col_labels_, found, cosines)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a folder with all ratings, from which `load` makes this recommender again.

        Raises
        ------
        DataError
            If the folder cannot be written, or settings or ids have no form in files.
        """
        check_is_fitted(self)
        facts, tensors = self.model_.parts()
        seen = self._entries.observations
        tensors |= {"seen.rows": seen.rows, "seen.cols": seen.cols, "seen.values": seen.values}
        tensors |= {} if seen.weights is None else {"seen.weights": seen.weights}
        for name, prior in self._priors().items():
            exponent = torch.tensor(prior.exponent, dtype=torch.float64)
            parts = {"precision": prior.precision, "mean": prior.mean, "exponent": exponent}
            tensors |= saving.under(name, parts)
        saving.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a folder that `save` wrote.

        Raises
        ------
        DataError
            If it is missing, damaged, foreign, or of another estimator.
        """
        return saving.read(path, cls.__name__, cls._of_parts)

    @classmethod
    def _of_parts(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        inner = MatrixCompletion.of_parts(facts, tensors)
        model = cls(clone(inner))
        model.model_ = inner
        rows, cols = inner.row_labels_, inner.col_labels_
        x = saving.of("seen", tensors)
        shape = (len(rows), len(cols))
        seen = Observations(x["rows"], x["cols"], x["values"], shape, x.get("weights"))
        names = tuple(facts["names"]) or None
        priors = (
            FactorPrior(x["precision"], x["mean"], float(x["exponent"]))
            for x in (saving.of(name, tensors) for name in ("row_prior", "col_prior"))
        )
        model._updater = Updater(*priors)
        result = inner.result_
        model._take(Entries(seen, rows, cols, names), fitted_completion(result))
        # Not chosen anew: folded-in ratings leave it as it is.
        inner.clip_ = None if facts["clip"] is None else (facts["clip"][0], facts["clip"][1])
        return model

    def _priors(self) -> dict[str, FactorPrior]:
        return {"row_prior": self._updater.row_prior, "col_prior": self._updater.col_prior}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # Ratings are no features: checks with numbers of any width do not apply.
        tags.input_tags.two_d_array = False
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.input_tags.sparse = True
        return tags

    def _fold_in(self, found: Triplets, side: Literal["row", "column"]) -> Self:
        check_is_fitted(self)
        found = self._checked(found)
        fixed, ids = (
            (self.col_labels_, found.cols) if side == "row" else (self.row_labels_, found.rows)
        )
        name, other = ("columns", "fold_in_cols") if side == "row" else ("rows", "fold_in_rows")
        _known(fixed, ids, name, f"use {other} first, or partial_fit")
        entries = extended(self._entries, found)
        if side == "row":
            touched = _touched(entries.row_labels, found.rows)
            result = self._updater.rows(self.result_, entries.observations, touched)
        else:
            touched = _touched(entries.col_labels, found.cols)
            result = self._updater.cols(self.result_, entries.observations, touched)
        self._take(entries, result)
        return self

    def _take(self, entries: Entries, result: CompletionResult) -> None:
        self._entries = entries
        self.model_.take(entries, result)
        assert isinstance(self.model_.result_, CompletionResult), "a point estimate was given"
        self.result_ = self.model_.result_
        self.row_labels_, self.col_labels_ = entries.row_labels, entries.col_labels
        self.n_features_in_ = self.model_.n_features_in_
        if self.model_.clip == "auto":
            # New ratings may reach beyond the old ones.
            self.model_.clip_ = clip_range(entries.observations)

    def _checked(self, found: Triplets) -> Triplets:
        """Return new ratings, whose ids are of the kind that was fitted."""
        self.model_.check_names(found)
        self.row_labels_.find(found.rows, "rows")
        self.col_labels_.find(found.cols, "cols")
        return found

    def _candidates(self) -> Candidates:
        return Candidates(self.result_, self._entries.observations)


def _touched(labels: Labels, ids: Ids) -> torch.Tensor:
    return torch.from_numpy(np.unique(labels.positions(ids)))


def _truncated(result: CompletionResult) -> CompletionResult:
    operator = result.operator.truncate(min(_LARGEST_RANK, *result.shape))
    return CompletionResult(operator, result.bias, result.status, result.history)


def _asked(ids: object, name: str) -> Ids:
    """Return ids as a vector; one alone is a vector of one."""
    return as_ids(cast("Sequence[object]", [ids] if single_id(ids) else ids), name)


def _known(labels: Labels, ids: Sequence[object] | Ids, name: str, cure: str) -> NDArray[np.int64]:
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
