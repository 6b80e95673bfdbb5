"""What a fitted `MatrixCompletion` is on disk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.estimators.choice.choosing import Calibration
from lowrank_opt.estimators.data.side_maps import Lines, SideFit, SideMaps
from lowrank_opt.estimators.folders import saving
from lowrank_opt.estimators.folders.estimator import SavedEstimator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lowrank_opt.completion.after.path import RegularizationPath
    from lowrank_opt.completion.results.posterior import BayesianResult
    from lowrank_opt.estimators.choice.intervals import Intervals
    from lowrank_opt.estimators.choice.known import Known
    from lowrank_opt.estimators.choice.search import Described
    from lowrank_opt.tables import Labels


class SavedCompletion(SavedEstimator):
    """Saves and loads what a fit leaves."""

    row_labels_: Labels
    col_labels_: Labels
    clip_: tuple[float, float] | None
    path_: RegularizationPath
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    result_: CompletionResult | BayesianResult
    _known: Known
    _intervals: Intervals | Calibration | None
    _spread: float
    _described: Described
    _side: SideFit | SideMaps

    @property
    def described(self) -> Described:
        """Positions of the rows and of the columns that have side information."""
        return self._described

    @described.setter
    def described(self, positions: Described) -> None:
        self._described = positions

    def side_maps(self) -> SideMaps:
        """Return what features say of factors, which is learned when it is asked for."""
        self._side = self._side.of(self.result_)
        return self._side

    def learn_side(self, result: CompletionResult) -> Lines:
        """Learn what features say of the factors of another result, and return it."""
        fitted, self._side = self._side, self._side.of(result)
        return fitted.lines(self._side)

    def calibrated(self) -> Intervals | None:
        """Return the intervals, which a fit that chose nothing makes when they are asked for."""
        if isinstance(self._intervals, Calibration):
            self._intervals = self._intervals.intervals()
        return self._intervals

    def parts(self) -> tuple[dict[str, Any], saving.Tensors]:
        """Return what files hold of the estimator: a description, and tensors."""
        result = self.result_
        if isinstance(result, CompletionResult):
            result = dataclasses.replace(result, row_ids=None, col_ids=None, problem=None)
        description, tensors = saving.result_to_parts(result)
        side, maps = self.side_maps().parts()
        described = zip(("rows", "cols"), self._described, strict=True)
        facts = {
            "settings": saving.settings_to_json(self.get_params(deep=False)),
            "setting": self.setting_,
            "path": saving.path_to_json(self.path_),
            "clip": None if self.clip_ is None else list(self.clip_),
            "names": [str(x) for x in getattr(self, "feature_names_in_", ())],
            "spread": self._spread,
            "side": side,
            "result": description,
        }
        return facts, {
            **saving.under("result", tensors),
            **saving.under("known", saving.known_to_tensors(self._known)),
            **saving.under("intervals", saving.intervals_to_tensors(self.calibrated())),
            **saving.under("side", maps),
            **saving.under("described", {name: torch.from_numpy(x) for name, x in described}),
            **saving.labels_to_tensors("row_labels", self.row_labels_),
            **saving.labels_to_tensors("col_labels", self.col_labels_),
        }

    @classmethod
    def of_parts(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        """Return the estimator with these parts."""
        model = cls(**saving.settings_from_json(facts["settings"]))
        model.row_labels_ = saving.labels_from_tensors("row_labels", tensors)
        model.col_labels_ = saving.labels_from_tensors("col_labels", tensors)
        model.n_features_in_, model.path_ = 2, saving.path_from_json(facts["path"])
        if facts["names"]:
            model.feature_names_in_ = np.array(facts["names"], dtype=object)
        model.clip_ = None if facts["clip"] is None else (facts["clip"][0], facts["clip"][1])
        model.set_setting(facts["setting"])
        model._spread = facts["spread"]
        # Earlier releases wrote how many rows and columns, the first ones, were described.
        rows, cols = map(np.arange, facts.get("described", (0, 0)))
        places = saving.of("described", tensors)
        if places:
            rows, cols = places["rows"].numpy(), places["cols"].numpy()
        model._described = (rows, cols)
        model._side = SideMaps.of_parts(facts.get("side", (None, None)), saving.of("side", tensors))
        model._known = saving.known_from_tensors(saving.of("known", tensors))
        model._intervals = saving.intervals_from_tensors(saving.of("intervals", tensors))
        model.result_ = saving.result_from_parts(facts["result"], saving.of("result", tensors))
        model.name_result()
        return model

    def set_setting(self, setting: Mapping[str, float]) -> None:
        """Take note of the settings used, as attributes too; those of the last fit go."""
        for name in getattr(self, "setting_", {}):
            delattr(self, f"{name}_")
        self.setting_: dict[str, float] = dict(setting)
        for name, value in setting.items():
            setattr(self, f"{name}_", int(value) if name == "rank" else value)

    def name_result(self) -> None:
        """Give the result the ids of its rows and columns."""
        if isinstance(self.result_, CompletionResult):
            rows, cols = (x.to_ids() for x in (self.row_labels_, self.col_labels_))
            self.result_ = dataclasses.replace(self.result_, row_ids=rows, col_ids=cols)
