"""What a fitted `Recommender` is, and how it comes into a folder and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from lowrank_opt.completion import CompletionResult
from lowrank_opt.estimators.arrivals import State
from lowrank_opt.estimators.choice.choosing import clip_range, fitted_completion
from lowrank_opt.estimators.data.entries import Entries
from lowrank_opt.estimators.folders import saving
from lowrank_opt.estimators.folders.estimator import SavedEstimator
from lowrank_opt.estimators.matrix_completion import MatrixCompletion
from lowrank_opt.estimators.updates import RowPrior, Updater
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from lowrank_opt.tables import Labels


_PRIORS = ("row_prior", "col_prior")


class SavedRecommender(SavedEstimator):
    """Holds a fitted model with all its ratings; saves and loads it."""

    model_: MatrixCompletion
    result_: CompletionResult
    row_labels_: Labels
    col_labels_: Labels
    _entries: Entries
    _updater: Updater

    @property
    def observations_(self) -> Observations:
        """All ratings that were taken, by the positions of their ids, with their weights."""
        check_is_fitted(self)
        return self._entries.observations

    def parts(self) -> tuple[dict[str, Any], saving.Tensors]:
        """Return what files hold: those of the model, all ratings, and what new rows start from."""
        facts, tensors = self.model_.parts()
        seen = self._entries.observations
        tensors |= {"seen.rows": seen.rows, "seen.cols": seen.cols, "seen.values": seen.values}
        tensors |= {} if seen.weights is None else {"seen.weights": seen.weights}
        for name in _PRIORS:
            prior: RowPrior = getattr(self._updater, name)
            tensors |= saving.under(name, prior.to_tensors())
        return facts, tensors

    @classmethod
    def of_parts(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        """Return the recommender with these parts."""
        inner = MatrixCompletion.of_parts(facts, tensors)
        model = cls(clone(inner))  # pyright: ignore[reportCallIssue]  # of the class that derives
        model.model_ = inner
        rows, cols = inner.row_labels_, inner.col_labels_
        x = saving.of("seen", tensors)
        shape = (len(rows), len(cols))
        seen = Observations(x["rows"], x["cols"], x["values"], shape, x.get("weights"))
        names = tuple(facts["names"]) or None
        priors = (saving.of(name, tensors) for name in _PRIORS)
        model._updater = Updater(*map(RowPrior.from_tensors, priors))
        result = inner.result_
        model._take(Entries(seen, rows, cols, names), fitted_completion(result))
        # Not chosen anew: folded-in ratings leave it as it is.
        inner.clip_ = None if facts["clip"] is None else (facts["clip"][0], facts["clip"][1])
        return model

    def _state(self) -> State:
        none, model = torch.empty(0, dtype=torch.int64), self.model_
        return State(self._entries, self._updater, model.described, model.side_maps(), none, none)

    def _commit(self, state: State, which: Literal["row", "column", "both"]) -> None:
        """Solve what has changed, and take it over."""
        result = state.solved(self.result_, which)
        self._updater, self.model_.described = state.updater, state.described
        self._take(state.entries, result)

    def _take(self, entries: Entries, result: CompletionResult) -> None:
        self._entries = entries
        self.model_.take(entries, result)
        assert isinstance(self.model_.result_, CompletionResult), "a point estimate was given"
        self.result_ = self.model_.result_
        self.row_labels_, self.col_labels_ = entries.row_labels, entries.col_labels
        self.n_features_in_: int = self.model_.n_features_in_
        if self.model_.clip == "auto":
            # New ratings may reach beyond the old ones.
            self.model_.clip_ = clip_range(entries.observations)
