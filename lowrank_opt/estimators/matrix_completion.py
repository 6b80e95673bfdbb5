"""Completion of a matrix from index pairs, as a scikit-learn regressor."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.path import RegularizationPath
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.estimators.bases import BaseEstimator, RegressorMixin
from lowrank_opt.estimators.choice.callbacks import (
    CallbackSupportMixin,
    Watch,
    fitted_attributes,
    watched,
    with_callbacks,
)
from lowrank_opt.estimators.choice.choosing import choose_and_fit, clip_range
from lowrank_opt.estimators.choice.known import Known
from lowrank_opt.estimators.choice.options import check_options, given_settings
from lowrank_opt.estimators.choice.search import (
    Search,
    Sides,
    check_levels,
    chosen_solver,
    described_by,
)
from lowrank_opt.estimators.choice.starts import Bias, moved, spread_or_zero
from lowrank_opt.estimators.data.entries import Entries, entries_of
from lowrank_opt.estimators.data.side import with_side
from lowrank_opt.estimators.data.side_maps import SideFit
from lowrank_opt.estimators.predictions import PredictingCompletion
from lowrank_opt.solvers import Solver
from lowrank_opt.tables import Triplets, read_triplets

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.utils import Tags

    from lowrank_opt.tables.ids import Labels
    from lowrank_opt.tables.triplets import Interactions, Reals


class MatrixCompletion(CallbackSupportMixin, PredictingCompletion, RegressorMixin, BaseEstimator):
    """Complete a matrix from observed entries: pairs of ids and a value each.

    Without any argument, rank, penalty and the shrinkage of biases are chosen on held-out entries,
    along a path on which each fit starts where the last one ended; then all entries are fitted.
    Biases alone are tried too: where no matrix beside them predicts the held-out entries better,
    as of very few entries a row, ``rank_`` is zero, and `result_` has a matrix of zeros.

    Parameters
    ----------
    shape : tuple of int, optional
        ``(m, n)``, if ids are positions ``0..m-1`` and ``0..n-1``. By default ids are anything:
        integers, strings, other labels.
    rank : int, optional
        Largest rank of the matrix beside the biases.
    radius : float, optional
        Bound on the weighted nuclear norm, for the solver "gradient".
    penalty : float, optional
        Of the weighted nuclear norm, for the solver "als".
    bias : {"additive"} or None
        Fit a constant for each row and column; or none, and no mean either.
    bias_penalty : float, optional
        In entries: a row with that many gets about half of its mean deviation.
    weighted : bool
        For the solver "gradient": scale rows and columns by count^(-1/4) in the norm, the weighted
        trace norm. Without, `radius` bounds the nuclear norm itself.
    solver : str or Solver
        "auto" is "gradient" if a radius is given, "als" if a penalty or no bias is asked for, and
        "variational" otherwise. Other names and objects are those of `lowrank_opt.solvers`, as in
        ``ALS(exponent=1.0)``; a solver of your own is a frozen dataclass with `traits` and `solve`.
        Solvers that need a penalty are searched along penalties, those of a norm bound along radii,
        others along ranks.
    validation : float or None
        Share of the entries that settings are chosen on, and intervals calibrated. None chooses
        nothing, biases alone neither; nor are they chosen with side information, or where all
        settings are given.
    clip : {"auto"}, pair of float or None
        Smallest and largest prediction. "auto" takes those of the values if they look like
        ratings: at most 100 distinct values, each 10 times on average.
    tolerance : float, optional
        Of the solver.
    max_iterations : int, optional
        Of the solver: iterations, sweeps, or draws kept of the posterior.
    random_state : int, RandomState or None
    warm_start : bool
        Fit again with the settings of the last fit, and from its result where the solver can: rows
        and columns are matched by their ids. Nothing is chosen anew, and intervals stay.
    loss : {"squared", "ordered_probit"}
        "ordered_probit" takes values as ordered levels, such as stars: only their order matters for
        the fit, and a prediction is the mean level. For the solver "bayesian", which "auto" is
        then; entries without weights, each pair once.

    Attributes
    ----------
    result_ : CompletionResult or BayesianResult
        With the ids.
    path_ : RegularizationPath
        The settings tried, their errors on held-out entries, and seconds; empty if all were given.
        Fits along it are rough. The last point are biases alone, of rank zero.
    setting_ : dict of str to float
        The settings used, given or chosen; also as `rank_`, and `radius_` or `penalty_`. With a
        rank of zero only `bias_penalty` counts.
    row_labels_, col_labels_ : Labels
        The ids of the rows and columns.
    clip_ : pair of float or None
    n_features_in_ : int
        Two.
    feature_names_in_ : array, shape (2,)
        If the ids came in the columns of a frame.

    Notes
    -----
    `set_callbacks` takes callbacks of scikit-learn 1.9. The tasks are the fit, in it one for each
    setting that is tried, in that its iterations, with objective and errors as metadata. A callback
    that returns True at the end of a setting's fit ends the search.

    References
    ----------
    Weighted trace norm: Salakhutdinov and Srebro (2010), equation 3; its alternating minimisation:
    Hastie, Mazumder, Lee and Zadeh (2015), Matrix completion and low-rank SVD via fast alternating
    least squares, section 2.

    Examples
    --------
    >>> users, films = ["ann", "ann", "bob", "bob", "eve"], ["M", "Up", "M", "Her", "Up"]
    >>> model = MatrixCompletion(random_state=0).fit((users, films), [5, 3, 4, 2, 1])
    >>> prediction, known = model.predict([("eve", "M"), ("eve", "?")], return_known=True)
    >>> known.tolist()
    ['pair', 'row']
    """

    def __init__(
        self,
        shape: tuple[int, int] | None = None,
        *,
        rank: int | None = None,
        radius: float | None = None,
        penalty: float | None = None,
        bias: Bias = "additive",
        bias_penalty: float | None = None,
        weighted: bool = True,
        solver: str | Solver = "auto",
        validation: float | None = 0.1,
        clip: Literal["auto"] | tuple[float, float] | None = "auto",
        tolerance: float | None = None,
        max_iterations: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        loss: Literal["squared", "ordered_probit"] = "squared",
    ) -> None:
        self.shape = shape
        self.rank = rank
        self.radius = radius
        self.penalty = penalty
        self.bias: Bias = bias
        self.bias_penalty = bias_penalty
        self.weighted = weighted
        self.solver = solver
        self.validation = validation
        self.clip: Literal["auto"] | tuple[float, float] | None = clip
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.random_state = random_state
        self.warm_start = warm_start
        self.loss: Literal["squared", "ordered_probit"] = loss

    def fit(
        self,
        X: Interactions,
        y: Reals | None = None,
        sample_weight: Reals | None = None,
        *,
        row_features: object = None,
        col_features: object = None,
    ) -> Self:
        """Fit the matrix to entries.

        Parameters
        ----------
        X : array, frame, list, sparse matrix or path
            Pairs of ids, with `y`: shape (nnz, 2), row ids first. Without `y`, everything that
            holds values too: a frame of three columns, a sparse matrix, `Observations`, a dense
            matrix with NaN, a file; see `lowrank_opt.tables.read_triplets`.
        y : array, shape (nnz,), optional
            Finite. A pair that comes again counts again.
        sample_weight : array, shape (nnz,), optional
            Nonnegative; zero leaves an entry out.
        row_features, col_features : frame, array or sparse matrix, optional
            Side information: a frame of pandas with ids as its index, another frame with ids in
            its first column, or an array with a line for each position. Text and categories become
            indicators. Ids that have features and no entry are predicted too; of others, see
            `predict`. For a solver that takes side information, such as "bayesian", which "auto" is
            then.

        Returns
        -------
        MatrixCompletion

        Raises
        ------
        ShapeError, ObservationError
            If the entries are not what is said above.
        OptionError
            If a parameter is outside its domain.
        """
        found = read_triplets(X, y, sample_weight)
        return self.fit_triplets(found, row_features=row_features, col_features=col_features)

    @with_callbacks
    def fit_triplets(
        self,
        found: Triplets,
        *,
        row_features: object = None,
        col_features: object = None,
        point: bool = False,
    ) -> Self:
        """Fit what `read_triplets` returned; if `point`, for a point estimate to be taken of it."""
        check_options(self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        entries, side, encodings = with_side(
            entries_of(found, self.shape), row_features, col_features
        )
        self._described = described_by(side, entries.shape)
        self._side = SideFit.learn(encodings, side, entries.observations)
        pairs = (found.rows, found.cols)
        weights = {} if found.weights is None else {"sample_weight": found.weights}
        data = {"X": pairs, "y": found.values, "metadata": weights}
        with watched(self, data, partial(self._attributes, entries)) as watch:
            return self._fit_entries(entries, seed, side, watch, point=point)

    def take(self, entries: Entries, result: AnyResult) -> None:
        """Take over a result that was computed elsewhere, from these entries."""
        self.row_labels_: Labels = entries.row_labels
        self.col_labels_: Labels = entries.col_labels
        self.n_features_in_ = 2
        if entries.names is not None:
            self.feature_names_in_: NDArray[np.object_] = np.array(entries.names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        observations = entries.observations
        self._known = Known.of(result, observations, self.bias, self._described)
        self._spread = spread_or_zero(observations, self.bias)
        self.result_ = result
        self.name_result()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # Index pairs are no features: checks with numbers of any width do not apply.
        tags.input_tags.two_d_array = False
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.input_tags.sparse = True
        tags.target_tags.required = False
        return tags

    def _attributes(
        self, entries: Entries, result: AnyResult, setting: Mapping[str, float]
    ) -> dict[str, object]:
        """Return what a fit would leave that ended with this setting."""
        twin = copy(self)
        clip = clip_range(entries.observations) if self.clip == "auto" else self.clip
        twin.clip_, twin._intervals, twin.path_ = clip, None, RegularizationPath(())
        twin.set_setting(setting)
        twin.take(entries, result)
        return fitted_attributes(twin)

    def _fit_entries(
        self, entries: Entries, seed: int, side: Sides, watch: Watch | None, *, point: bool
    ) -> Self:
        observations, given = entries.observations, given_settings(self, entries.shape)
        draws = any(side) or self.loss != "squared"
        solver = chosen_solver(
            "bayesian" if self.solver == "auto" and draws else self.solver,
            given,
            bias=self.bias,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        search = Search(solver, self.bias, self.weighted, seed, side, watch, loss=self.loss)
        check_levels(search, observations)
        if self.warm_start and hasattr(self, "result_"):
            setting = {**self.setting_, **given}
            setting["rank"] = min(setting["rank"], float(min(entries.shape)))
            result = search.refit(observations, setting, self._start(entries))
        else:
            self.path_: RegularizationPath
            result, setting, self.path_, self._intervals = choose_and_fit(
                observations,
                search,
                given,
                bias=self.bias,
                validation=self.validation,
                seed=seed,
                point=point,
            )
        clip = clip_range(observations) if self.clip == "auto" else self.clip
        self.clip_: tuple[float, float] | None = clip
        self.set_setting(setting)
        self.take(entries, result)
        return self

    def _start(self, entries: Entries) -> CompletionResult | None:
        """Return the last result, with its rows and columns where the entries have them."""
        if not isinstance(self.result_, CompletionResult):
            return None
        places = (
            self.row_labels_.positions(entries.row_labels.ids),
            self.col_labels_.positions(entries.col_labels.ids),
        )
        return moved(self.result_, *map(torch.from_numpy, places))
