"""What a fitted `MatrixCompletion` says of pairs of ids: predictions, deviations, intervals."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from lowrank_opt.completion.after.from_features import biases_in, with_lines
from lowrank_opt.errors import OptionError
from lowrank_opt.estimators.choice.draws import draws_of
from lowrank_opt.estimators.choice.known import posterior_deviations
from lowrank_opt.estimators.folders.saved import SavedCompletion
from lowrank_opt.tables import UNKNOWN, Triplets, read_pairs

if TYPE_CHECKING:
    from lowrank_opt.tables.triplets import Interactions

Floats: TypeAlias = NDArray[np.floating]

_NO_ERRORS = (
    "got a fit of too few entries, of equal values, with validation=None, or from a folder of an "
    "earlier release"
)
_LEVELS = np.array(["mean", "column", "row", "pair"])


class PredictingCompletion(SavedCompletion):
    """Predicts from what a fit leaves."""

    def predict(
        self,
        X: Interactions,
        *,
        return_known: bool = False,
        return_std: bool = False,
        row_features: object = None,
        col_features: object = None,
    ) -> Floats | tuple[Floats, ...]:
        """Predict entries; ids that were never seen are no error.

        A pair with an unknown column is predicted by mean and row bias, one with an unknown row by
        mean and column bias, one with both unknown by the mean.

        Parameters
        ----------
        X : array, frame, list or sparse matrix
            Pairs of ids, shape (k, 2).
        return_known : bool
            Also return what each prediction rests on: "pair", "row", "column" or "mean".
        return_std : bool
            Also return the standard deviation of a new value: the root mean square of the errors
            on held-out entries of which as much was known, see `predict_interval`; or the
            deviation of the posterior, of the solver "bayesian", rescaled by these.
        row_features, col_features : frame, array or sparse matrix, optional
            Of ids that were not fitted, for a model that was fitted with such features: they are
            predicted by what their features say, the others as without. Frames have ids and the
            columns that were fitted, in any order; arrays a line for each position, known ones
            first. Lines of ids that were fitted are left out.

        Returns
        -------
        array, shape (k,)
            In the dtype of the values, float32 or float64; or a tuple of predictions, then
            standard deviations, then levels, as asked for.

        Raises
        ------
        ShapeError
            If there are not two columns.
        ObservationError
            If ids are of another kind than those fitted, such as text where those are integers; or
            features are missing, have other columns or categories, or none were fitted.
        OptionError
            If there are no errors to tell deviations by, or columns have other names.
        """
        check_is_fitted(self)
        pairs = read_pairs(X, known=self._knows)
        i, j = self._found(pairs)
        mean, std = self._predict(i, j, return_std=return_std)
        joined = self.joined(row_features, col_features)
        if joined is not self:
            i, j = joined._found(pairs)
            mean = joined._of_arrivals(self, i, j, mean)
        row_known, col_known = (
            joined._known.counts("row", i) > 0,
            joined._known.counts("col", j) > 0,
        )
        levels = [_LEVELS[2 * row_known + col_known]] if return_known else []
        found = [mean, *([] if std is None else [std]), *levels]
        return found[0] if len(found) == 1 else tuple(found)

    def joined(self, row_features: object, col_features: object) -> Self:
        """Return a copy that also knows the ids that come with features; itself without any.

        The factors of an id that was not fitted are those that its features say.

        Raises
        ------
        ObservationError, ShapeError
            As `predict`.
        """
        given = (row_features, col_features)
        if all(x is None for x in given):
            return self
        result, labels = self.result_, [self.row_labels_, self.col_labels_]
        biases = [np.empty(0), np.empty(0)]
        for side, features in enumerate(given):
            if features is None:
                continue
            ids, lines = self.side_maps().arrivals(side, features, labels[side])
            new = labels[side].positions(ids) == UNKNOWN
            lines = lines[torch.from_numpy(new)]
            labels[side] = labels[side].extended(ids[new])
            biases[side] = biases_in(lines, result).numpy()
            result = with_lines(result, lines, side)
        twin = copy(self)
        twin.result_, (twin.row_labels_, twin.col_labels_) = result, labels
        twin._known = self._known.joined(biases[0], biases[1])
        return twin

    def predict_interval(
        self,
        X: Interactions,
        *,
        coverage: float = 0.9,
        row_features: object = None,
        col_features: object = None,
    ) -> tuple[Floats, Floats]:
        r"""Return intervals that contain new values with a given probability, for each kind.

        Predictions plus and minus quantiles of the errors on the entries that settings were chosen
        on, by the path's best fit, which had not seen them; separately for what is known of an
        entry: row and column, one of them or none, and groups by their numbers of entries. Where
        all settings were given, the first call fits a second time, without a share `validation`
        of the entries; so does `save`, for the model that is loaded.

        Let n entries have been held out in the group of a new one. If its error and theirs are
        exchangeable, the chance that it is covered is :math:`\lceil (n + 1) c \rceil / (n + 1)`
        for the coverage c: at least c, and less than 1 / (n + 1) more. With tied errors, as
        values on a scale give them where nothing is known, it is at most 2 / (n + 1) more: of two
        ways to end an interval between them a hash of the ids takes one, so that the same pair has
        the same interval always. (An error of zero is always covered.) Ends are computed in
        float64, from predictions in the dtype of the values.

        Exchangeable are entries held out at random, and new rows and columns that have as many
        entries as those there were. What is not exact: the held-out entries chose the settings,
        if these were not given, and the final fit has seen them besides.
        `lowrank_opt.completion.after.conformal` gives a guarantee without these two, for entries
        set aside. What was measured is in the results of the documentation, under "coverage by
        group".

        Parameters
        ----------
        X : array, frame, list or sparse matrix
            Pairs of ids, shape (k, 2).
        coverage : float
            In (0, 1).
        row_features, col_features : frame, array or sparse matrix, optional
            Of ids that were not fitted, as for `predict`. Intervals around their predictions are as
            wide as without features, from errors where row or column had never been seen.

        Returns
        -------
        lower, upper : array, shape (k,)
            Infinite, or the bounds of `clip_`, if there are too few errors for the coverage.

        Raises
        ------
        OptionError
            If there are no errors of held-out entries, or the coverage is no share.

        References
        ----------
        Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world, sections 2.3
        (smoothed predictors) and 4.5 (one calibration for each category).
        """
        check_is_fitted(self)
        intervals = self.calibrated()
        if intervals is None:
            raise OptionError(
                f"intervals need errors on held-out entries; {_NO_ERRORS}: fit with a share of "
                "validation"
            )
        pairs = read_pairs(X, known=self._knows)
        i, j = self._found(pairs)
        joined = self.joined(row_features, col_features)
        margin = intervals.margins(
            self._known.counts("row", i),
            self._known.counts("col", j),
            coverage,
            draws=draws_of(pairs.rows, pairs.cols),
            deviations=posterior_deviations(self.result_, i, j),
        )
        predicted = self._clipped(self._known.predict(self.result_, i, j))
        if joined is not self:
            predicted = joined._of_arrivals(self, *joined._found(pairs), predicted)
        predicted = predicted.astype(np.float64)
        low, high = self.clip_ or (-np.inf, np.inf)
        return (predicted - margin).clip(low, high), (predicted + margin).clip(low, high)

    def _of_arrivals(
        self, before: Self, i: NDArray[np.int64], j: NDArray[np.int64], predicted: Floats
    ) -> Floats:
        """Return predictions from before some ids joined, with theirs filled in."""
        new = (i >= len(before.row_labels_)) | (j >= len(before.col_labels_))
        found = self._clipped(self._known.predict(self.result_, i[new], j[new]))
        predicted = predicted.copy()
        predicted[new] = found
        return predicted

    def _found(self, pairs: Triplets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        self.check_names(pairs)
        return self.row_labels_.find(pairs.rows, "rows"), self.col_labels_.find(pairs.cols, "cols")

    def _clipped(self, values: Floats) -> Floats:
        return values if self.clip_ is None else values.clip(*self.clip_)

    def _predict(
        self, i: NDArray[np.int64], j: NDArray[np.int64], *, return_std: bool
    ) -> tuple[Floats, Floats | None]:
        if not return_std:
            return self._clipped(self._known.predict(self.result_, i, j)), None
        mean = self._known.predict(self.result_, i, j)
        posterior = posterior_deviations(self.result_, i, j)
        rows, cols = self._known.counts("row", i), self._known.counts("col", j)
        if (intervals := self.calibrated()) is not None:
            std = intervals.deviations(rows, cols, deviations=posterior)
        elif posterior is not None:
            # What is not known varies as the values do.
            std = np.where((rows > 0) & (cols > 0), posterior, self._spread)
        else:
            raise OptionError(
                "standard deviations need errors on held-out entries, or draws from a posterior; "
                f"{_NO_ERRORS}: fit with a share of validation, or use solver='bayesian'"
            )
        return self._clipped(mean), std.astype(mean.dtype)

    def _knows(self, row: str, col: str) -> bool:
        """Whether one of two ids is known: tells data from names in a file."""
        sides = ((self.row_labels_, row), (self.col_labels_, col))
        return any(labels.positions([x])[0] >= 0 for labels, x in sides)

    def check_names(self, pairs: Triplets) -> None:
        """Raise OptionError if ids come in columns of other names than those fitted."""
        fitted = getattr(self, "feature_names_in_", None)
        if fitted is not None and pairs.names is not None and list(fitted) != list(pairs.names):
            raise OptionError(
                "The feature names should match those that were passed during fit: "
                f"{list(fitted)}; got {list(pairs.names)}: select and order the columns"
            )
