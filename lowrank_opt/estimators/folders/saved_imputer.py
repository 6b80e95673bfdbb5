"""What a fitted `LowRankImputer` is on disk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.impute import MissingIndicator

from lowrank_opt.completion import CompletionResult
from lowrank_opt.estimators.data.columns import ColumnScales, Matrix
from lowrank_opt.estimators.folders import saving
from lowrank_opt.estimators.folders.estimator import SavedEstimator

if TYPE_CHECKING:
    from lowrank_opt.completion.after.path import RegularizationPath


class SavedImputer(SavedEstimator):
    """Saves and loads what a fit leaves."""

    scales_: ColumnScales
    statistics_: Matrix
    result_: CompletionResult | None
    path_: RegularizationPath
    rank_: int
    penalty_: float
    indicator_: MissingIndicator | None
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    _bounds: tuple[Matrix, Matrix]

    def parts(self) -> tuple[dict[str, Any], saving.Tensors]:
        """Return what files hold of the imputer: a description, and tensors."""
        facts: dict[str, Any] = {
            "settings": saving.settings_to_json(self.get_params(deep=False)),
            "path": saving.path_to_json(self.path_),
            "rank": self.rank_,
            "penalty": self.penalty_,
            "names": [str(x) for x in getattr(self, "feature_names_in_", ())],
            "result": None,
        }
        scales = self.scales_
        arrays = {
            "kept": scales.kept,
            "means": scales.means,
            "scales": scales.scales,
            "statistics": self.statistics_,
            "low": self._bounds[0],
            "high": self._bounds[1],
        }
        if self.indicator_ is not None:
            arrays["indicated"] = self.indicator_.features_
        tensors = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
        if self.result_ is not None:
            result = dataclasses.replace(self.result_, problem=None)
            facts["result"], parts = saving.result_to_parts(result)
            tensors |= saving.under("result", parts)
        return facts, tensors

    @classmethod
    def of_parts(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        """Return the imputer with these parts."""
        model = cls(**saving.settings_from_json(facts["settings"]))
        x = {name: t.numpy() for name, t in tensors.items() if not name.startswith("result.")}
        model.scales_ = ColumnScales(x["kept"], x["means"], x["scales"])
        model.statistics_, model._bounds = x["statistics"], (x["low"], x["high"])
        model.n_features_in_ = len(x["kept"])
        if facts["names"]:
            model.feature_names_in_ = np.array(facts["names"], dtype=object)
        model.path_ = saving.path_from_json(facts["path"])
        model.rank_, model.penalty_ = facts["rank"], facts["penalty"]
        model.indicator_ = None
        if "indicated" in x:
            model.indicator_ = _indicator(x["indicated"], len(x["kept"]))
        model.result_ = None
        if facts["result"] is not None:
            found = saving.result_from_parts(facts["result"], saving.of("result", tensors))
            assert isinstance(found, CompletionResult), "imputers have point estimates"
            model.result_ = found
        return model


def _indicator(features: NDArray[np.int64], columns: int) -> MissingIndicator:
    """Return an indicator that was fitted to data with gaps in these columns."""
    data = np.zeros((1, columns))
    data[:, features] = np.nan
    return MissingIndicator(error_on_new=False).fit(data)
