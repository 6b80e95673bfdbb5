"""Recommendations from a completed matrix: lists, similar items, new ratings without a refit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, cast

from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from lowrank_opt.completion import CompletionResult
from lowrank_opt.errors import ObservationError
from lowrank_opt.estimators.answers import AnsweringRecommender, known_positions
from lowrank_opt.estimators.arrivals import arrived
from lowrank_opt.estimators.choice.callbacks import CallbackSupportMixin
from lowrank_opt.estimators.choice.choosing import fitted_completion
from lowrank_opt.estimators.data.entries import entries_of
from lowrank_opt.estimators.matrix_completion import MatrixCompletion
from lowrank_opt.estimators.updates import Updater
from lowrank_opt.tables import Triplets, read_triplets

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from lowrank_opt.tables.triplets import Interactions, Reals

# Of a posterior mean, which has the rank of all its draws together.
_LARGEST_RANK = 64


class Recommender(CallbackSupportMixin, AnsweringRecommender):
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
    observations_ : Observations
        All ratings, those that were folded in too, by the positions of their ids.

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
        self,
        X: Interactions,
        y: Reals | None = None,
        sample_weight: Reals | None = None,
        *,
        row_features: object = None,
        col_features: object = None,
    ) -> Self:
        """Fit ratings.

        Parameters
        ----------
        X : array, frame, list, sparse matrix or path
            Pairs of user and item, with ratings in `y` or in a third column, as
            `MatrixCompletion.fit`.
        y, sample_weight : array, shape (nnz,), optional
        row_features, col_features : frame, array or sparse matrix, optional
            What is known of users, and of items, as `MatrixCompletion.fit`. Those without a rating
            are predicted, listed and compared by their features, and ratings that they get later
            are judged against that.

        Raises
        ------
        ShapeError, ObservationError, OptionError
            As `MatrixCompletion.fit`.
        """
        model = MatrixCompletion() if self.estimator is None else clone(self.estimator)
        if own := getattr(self, "_skl_callbacks", None):
            model.set_callbacks(*own)
        found = read_triplets(X, y, sample_weight)
        model.fit_triplets(found, row_features=row_features, col_features=col_features, point=True)
        result = fitted_completion(model.result_)
        if result.operator.rank > _LARGEST_RANK:
            result = _truncated(result)
        entries = entries_of(found, model.shape).widened(model.row_labels_, model.col_labels_)
        lines, biased = model.learn_side(result), model.bias is not None
        self._updater = Updater.of(result, entries.observations, biased=biased, lines=lines)
        self.model_: MatrixCompletion = model
        self._take(entries, result)
        return self

    def partial_fit(
        self,
        X: Interactions | None = None,
        y: Reals | None = None,
        sample_weight: Reals | None = None,
        *,
        row_features: object = None,
        col_features: object = None,
    ) -> Self:
        """Take new ratings, of known and of new users and items; the first call is a fit.

        The rows and columns that the ratings are in are solved again, in turn, from all of their
        ratings; a rating of a pair that was rated before replaces the old one. The rest stays.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`; none, if there are features alone.
        row_features, col_features : frame, array or sparse matrix, optional
            Of new users and items, if some were fitted: they stand where these put them, and their
            ratings are judged against that. See `MatrixCompletion.predict`.
        """
        if not hasattr(self, "model_"):
            given = {"row_features": row_features, "col_features": col_features}
            return self.fit(cast("Interactions", X), y, sample_weight, **given)
        found = self._new_ratings(X, y, sample_weight, row_features, col_features)
        self._commit(arrived(self._state(), found, row_features, col_features), "both")
        return self

    def fold_in_rows(
        self,
        X: Interactions | None = None,
        y: Reals | None = None,
        sample_weight: Reals | None = None,
        *,
        row_features: object = None,
    ) -> Self:
        """Solve the rows of new users, or of old ones with more ratings; items stay as they are.

        Parameters
        ----------
        X, y, sample_weight, row_features
            As for `partial_fit`.

        Raises
        ------
        ObservationError
            If an item was never seen, or features do not fit.
        """
        check_is_fitted(self)
        found = self._new_ratings(X, y, sample_weight, row_features, None)
        if found is not None:
            cure = "use fold_in_cols first, or partial_fit"
            known_positions(self.col_labels_, found.cols, "columns", cure)
        self._commit(arrived(self._state(), found, row_features, None), "row")
        return self

    def fold_in_cols(
        self,
        X: Interactions | None = None,
        y: Reals | None = None,
        sample_weight: Reals | None = None,
        *,
        col_features: object = None,
    ) -> Self:
        """Solve the columns of new items, or of old ones with more ratings; users stay.

        Parameters
        ----------
        X, y, sample_weight, col_features
            As for `partial_fit`.

        Raises
        ------
        ObservationError
            If a user was never seen, or features do not fit.
        """
        check_is_fitted(self)
        found = self._new_ratings(X, y, sample_weight, None, col_features)
        if found is not None:
            cure = "use fold_in_rows first, or partial_fit"
            known_positions(self.row_labels_, found.rows, "rows", cure)
        self._commit(arrived(self._state(), found, None, col_features), "column")
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # Ratings are no features: checks with numbers of any width do not apply.
        tags.input_tags.two_d_array = False
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.input_tags.sparse = True
        return tags

    def _new_ratings(
        self,
        X: Interactions | None,
        y: Reals | None,
        sample_weight: Reals | None,
        row_features: object,
        col_features: object,
    ) -> Triplets | None:
        if X is None:
            if row_features is None and col_features is None:
                raise ObservationError("something must come: ratings, or features; got neither")
            return None
        return self._checked(read_triplets(X, y, sample_weight))

    def _checked(self, found: Triplets) -> Triplets:
        """Return new ratings, whose ids are of the kind that was fitted."""
        self.model_.check_names(found)
        self.row_labels_.find(found.rows, "rows")
        self.col_labels_.find(found.cols, "cols")
        return found


def _truncated(result: CompletionResult) -> CompletionResult:
    operator = result.operator.truncate(min(_LARGEST_RANK, *result.shape))
    return CompletionResult(operator, result.bias, result.status, result.history)
