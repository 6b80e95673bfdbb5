"""Imputation of missing values by a low-rank matrix, as a scikit-learn transformer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.impute import MissingIndicator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.fold_in import FactorPrior, fold_in_rows
from lowrank_opt.completion.after.path import RegularizationPath
from lowrank_opt.estimators.bases import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from lowrank_opt.estimators.choice.callbacks import (
    CallbackSupportMixin,
    Watch,
    watched,
    with_callbacks,
)
from lowrank_opt.estimators.choice.choosing import choose_and_fit
from lowrank_opt.estimators.choice.options import check_imputer_options
from lowrank_opt.estimators.choice.search import Search
from lowrank_opt.estimators.choice.starts import EXPONENT
from lowrank_opt.estimators.data.columns import (
    ColumnScales,
    check_numbers,
    column_bounds,
    is_nan,
    without_masks,
)
from lowrank_opt.estimators.folders.saved_imputer import SavedImputer
from lowrank_opt.observations import Observations
from lowrank_opt.solvers import ALS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from sklearn.utils import Tags

Matrix = NDArray[np.floating]

_LARGEST_RANK = 128


class LowRankImputer(
    CallbackSupportMixin, OneToOneFeatureMixin, TransformerMixin, SavedImputer, BaseEstimator
):
    r"""Replace missing values by those of a matrix of low rank.

    Columns are centred and scaled by what is observed of them. The matrix minimises the squared
    error on observed entries plus a penalty on the weighted nuclear norm, which is chosen on
    held-out entries like the rank, unless given. A row is transformed by a ridge regression on the
    column factors alone, so that new rows are no different from those of the fit.

    Parameters
    ----------
    rank : int, optional
        Largest rank; chosen up to it where no penalty is given, and up to 128 by default.
    penalty : float, optional
        In units of standard deviations of the columns. Chosen by default.
    missing_values : float or pandas.NA
        What stands for a missing value; NaN by default. Masked entries, None and pandas.NA are
        missing besides.
    keep_empty_features : bool
        Columns without any value at the fit are removed by `transform`, as `SimpleImputer` does;
        or, if True, kept and filled with zero.
    add_indicator : bool
        Append a column of truth values for each that had gaps at the fit, as `MissingIndicator`.
    min_value, max_value : float or array, shape (n,)
        Bounds of imputed values, of all columns or of each.
    validation : float
        Share of the observed entries that settings are chosen on.
    tolerance : float
        Relative decrease of the objective in a sweep at which to stop.
    max_iterations : int
        Most sweeps.
    random_state : int, RandomState or None
        Of the start, and of the held-out entries.

    Attributes
    ----------
    result_ : CompletionResult or None
        Of the scaled columns, those without values left out; None if no column varies.
    path_ : RegularizationPath
        The settings tried, and their errors on held-out entries in standard deviations of the
        columns. The last point, of rank zero, are the means of the columns: where no matrix is
        better than these, it is chosen; where none is much better, low rank is no fair model.
    rank_ : int
    penalty_ : float
    statistics_ : array, shape (n,)
        Mean of each column; without values NaN, or zero with `keep_empty_features`.
    indicator_ : MissingIndicator or None
    n_features_in_ : int
    feature_names_in_ : array, shape (n,)
        If the columns of the input have names.

    References
    ----------
    Hastie, Mazumder, Lee and Zadeh (2015), Matrix completion and low-rank SVD via fast alternating
    least squares, sections 2 and 5.

    Examples
    --------
    >>> X = np.outer(np.arange(1.0, 9.0), [1.0, 2.0, -1.0, 3.0])
    >>> X[3, 1] = X[5, 2] = np.nan
    >>> filled = LowRankImputer(rank=2, penalty=1e-6, random_state=0).fit_transform(X)
    >>> filled[[3, 5], [1, 2]].round(1)
    array([ 8., -6.])
    """

    def __init__(
        self,
        rank: int | None = None,
        *,
        penalty: float | None = None,
        missing_values: float = math.nan,
        keep_empty_features: bool = False,
        add_indicator: bool = False,
        min_value: float | ArrayLike = -math.inf,
        max_value: float | ArrayLike = math.inf,
        validation: float = 0.1,
        tolerance: float = 1e-5,
        max_iterations: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.rank = rank
        self.penalty = penalty
        self.missing_values = missing_values
        self.keep_empty_features = keep_empty_features
        self.add_indicator = add_indicator
        self.min_value = min_value
        self.max_value = max_value
        self.validation = validation
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.random_state = random_state

    @with_callbacks
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit column means and scales, and column factors.

        Parameters
        ----------
        X : array or frame, shape (n_samples, n_features)
            Missing values are `missing_values`.
        y : ignored

        Raises
        ------
        ValueError
            If X is not a finite matrix apart from what is missing.
        OptionError
            If a parameter is outside its domain.
        """
        with watched(self, {"X": X}) as watch:
            return self._fit(X, watch)

    def _fit(self, X: ArrayLike, watch: Watch | None) -> Self:
        check_imputer_options(self)
        data = self._validated(X, reset=True)
        self._bounds = column_bounds(self.min_value, self.max_value, data.shape[1])
        self.indicator_: MissingIndicator | None = None
        if self.add_indicator:
            self.indicator_ = MissingIndicator(error_on_new=False).fit(data)
        self.scales_: ColumnScales = ColumnScales.of(data)
        statistics = self.scales_.statistics
        kept = np.nan_to_num(statistics) if self.keep_empty_features else statistics
        self.statistics_: Matrix = kept
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        where = X.device if isinstance(X, torch.Tensor) else torch.device("cpu")
        self._fit_scaled(torch.from_numpy(self.scales_.scaled(data)).to(where), seed, watch)
        return self

    def transform(self, X: ArrayLike) -> Matrix:
        """Return X with its missing values filled; all others stay as they are.

        Parameters
        ----------
        X : array or frame, shape (k, n)
            Dense, of any library.

        Returns
        -------
        array, shape (k, n_features_out)
            float32 if X is, else float64.
        """
        check_is_fitted(self)
        data = self._validated(X, reset=False)
        filled = self._filled(data)
        if self.indicator_ is None:
            return filled
        return np.hstack((filled, self.indicator_.transform(data).astype(filled.dtype)))

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Return the names of the columns that `transform` returns."""
        check_is_fitted(self)
        names = super().get_feature_names_out(input_features)
        filled = names if self.keep_empty_features else names[self.scales_.kept]
        if self.indicator_ is None:
            return filled
        return np.concatenate((filled, self.indicator_.get_feature_names_out(names)))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = is_nan(self.missing_values)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _validated(self, X: ArrayLike, *, reset: bool) -> Matrix:
        """Return a checked copy, with NaN where a value is missing."""
        table: Any = X
        if hasattr(table, "collect_schema") and not hasattr(table, "to_numpy"):
            table = table.collect()  # a lazy frame
        check_numbers(table)
        nan, gaps = is_nan(self.missing_values), without_masks(table)
        finite: Any = "allow-nan" if nan or gaps is not table else True
        data: Matrix = validate_data(
            self,
            gaps,
            reset=reset,
            dtype=(np.float64, np.float32),
            ensure_all_finite=finite,
            copy=True,
        )
        if not nan:
            data[data == self.missing_values] = np.nan
        return data

    def _filled(self, data: Matrix) -> Matrix:
        kept = self.scales_.kept
        filled = data[:, kept]
        missing = np.isnan(filled)
        if missing.any():
            low, high = (np.broadcast_to(x[kept], filled.shape)[missing] for x in self._bounds)
            filled[missing] = self._predicted(data, missing).clip(low, high)
        if not self.keep_empty_features or kept.all():
            return filled
        empty = np.clip(np.zeros(data.shape[1]), *self._bounds)
        whole = np.where(np.isnan(data), empty, data).astype(data.dtype)
        whole[:, kept] = filled
        return whole

    def _fit_scaled(self, scaled: torch.Tensor, seed: int, watch: Watch | None) -> None:
        self.path_, self.result_ = RegularizationPath(()), None
        self.rank_, self.penalty_ = min(self.rank or 1, *scaled.shape), self.penalty or 1.0
        if not bool(scaled.abs().nan_to_num().any()):
            return
        given = {"bias_penalty": 1.0}
        ample = min(self.rank or _LARGEST_RANK, *scaled.shape)
        if self.penalty is not None:
            given["penalty"] = float(self.penalty)
            given |= {} if self.rank is None else {"rank": float(ample)}
        solver = ALS(
            exponent=EXPONENT, tolerance=self.tolerance, max_iterations=self.max_iterations
        )
        search = Search(solver, None, weighted=True, seed=seed, watch=watch, ample=ample)
        observations = Observations.from_dense(scaled)
        choice = choose_and_fit(
            observations, search, given, bias=None, validation=self.validation, seed=seed
        )
        assert isinstance(choice.result, CompletionResult), "als gives no draws"
        self.result_: CompletionResult | None = choice.result
        self.path_: RegularizationPath = choice.path
        self.rank_: int = int(choice.setting["rank"])
        self.penalty_: float = choice.setting["penalty"]

    def _predicted(self, data: Matrix, missing: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the missing values of the kept columns, in the order of the mask."""
        i, j = missing.nonzero()
        if self.result_ is None or missing.all():
            return self.scales_.unscaled(np.zeros(len(j)), j)
        scaled = torch.from_numpy(self.scales_.scaled(data)).to(self.result_.operator.device)
        observations = Observations.from_dense(scaled)
        rank, penalty = self.result_.operator.rank, self.penalty_
        prior = FactorPrior.ridge(rank, penalty=penalty, bias_penalty=None, exponent=EXPONENT)
        rows = fold_in_rows(self.result_, observations, prior)
        return self.scales_.unscaled(rows.predict(i, j).double().cpu().numpy(), j)
