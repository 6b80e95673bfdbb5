"""What a fit with side information knows of ids that have features and come later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.completion.after.from_features import FeatureMap, lines_of
from lowrank_opt.completion.model.ids import from_tensors, to_tensors
from lowrank_opt.estimators.data.side import newcomers
from lowrank_opt.tables.features import Encoding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_opt.completion.solvers.traits import AnyResult
    from lowrank_opt.estimators.data.side import Encodings
    from lowrank_opt.observations import Observations
    from lowrank_opt.tables.features import Matrix
    from lowrank_opt.tables.ids import Ids, Labels

Lines: TypeAlias = tuple[Tensor | None, Tensor | None]

NAMES = ("row_features", "col_features")


@dataclass(frozen=True, eq=False)
class SideMaps:
    """From features to factors and biases, as `lines_of` has them; of rows, and of columns.

    Parameters
    ----------
    encodings : pair of Encoding or None
        How the features that were fitted became numbers.
    maps : pair of FeatureMap or None
    """

    encodings: Encodings = (None, None)
    maps: tuple[FeatureMap | None, FeatureMap | None] = (None, None)

    def of(self, result: AnyResult) -> SideMaps:
        """Return this, which holds for the result it was learned from and what grew out of it."""
        del result
        return self

    def lines(self, maps: SideMaps) -> Lines:
        """Return no lines: there are no features to say any."""
        del maps
        return None, None

    def arrivals(self, side: int, features: object, labels: Labels) -> tuple[Ids, Tensor]:
        """Return ids that have features, and their lines.

        Parameters
        ----------
        side : int
            Zero for rows, one for columns.
        features : frame, array or sparse matrix
        labels : Labels
            The ids that are known.

        Raises
        ------
        ObservationError, ShapeError
            If the fit had no features of this side, or these do not fit to those.
        """
        ids, matrix = newcomers(features, labels, self.encodings[side], NAMES[side])
        found = self.maps[side]
        assert found is not None, "features that were fitted have a map"
        return ids, found.at(matrix)

    def parts(self) -> tuple[list[Any], dict[str, Tensor]]:
        """Return what files hold: a description, and tensors."""
        facts, tensors = list[Any](), dict[str, Tensor]()
        for name, encoding, found in zip(NAMES, self.encodings, self.maps, strict=True):
            if encoding is None or found is None:
                facts.append(None)
                continue
            columns = None if encoding.columns is None else [title for title, _ in encoding.columns]
            facts.append({"width": encoding.width, "columns": columns})
            tensors |= {f"{name}.{key}": x for key, x in found.to_tensors().items()}
            for k, (_, known) in enumerate(encoding.columns or ()):
                tensors |= {} if known is None else to_tensors(known, f"{name}.categories.{k}")
        return facts, tensors

    @classmethod
    def of_parts(cls, facts: Sequence[Any], tensors: dict[str, Tensor]) -> SideMaps:
        """Return what `parts` came from."""
        encodings: list[Encoding | None] = [None, None]
        maps: list[FeatureMap | None] = [None, None]
        for side, (name, fact) in enumerate(zip(NAMES, facts, strict=True)):
            if fact is None:
                continue
            start = f"{name}."
            own = {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
            columns = fact["columns"] and tuple(
                (title, from_tensors(own, f"categories.{k}"))
                for k, title in enumerate(fact["columns"])
            )
            encodings[side] = Encoding(int(fact["width"]), columns)
            maps[side] = FeatureMap.from_tensors(own)
        return cls((encodings[0], encodings[1]), (maps[0], maps[1]))


@dataclass(frozen=True, eq=False)
class SideFit:
    """Features that were fitted, of which maps are learned when they are needed.

    Parameters
    ----------
    encodings : pair of Encoding or None
    features : pair of list of matrix
        One at most on each side.
    observed : pair of array of bool
        Which rows and columns have entries: the others are where their features put them.
    """

    encodings: Encodings
    features: tuple[Sequence[Matrix], Sequence[Matrix]]
    observed: tuple[NDArray[np.bool_], NDArray[np.bool_]]

    @classmethod
    def learn(
        cls,
        encodings: Encodings,
        features: tuple[Sequence[Matrix], Sequence[Matrix]],
        observations: Observations,
    ) -> SideFit | SideMaps:
        """Return what there is to learn from; nothing without features."""
        if not any(features):
            return SideMaps()
        counts = (observations.row_counts, observations.col_counts)
        rows, cols = ((x > 0).cpu().numpy() for x in counts)
        return cls(encodings, features, (rows, cols))

    def of(self, result: AnyResult) -> SideMaps:
        """Return the maps to the factors of a result."""
        found: list[FeatureMap | None] = []
        for side, (part, seen) in enumerate(zip(self.features, self.observed, strict=True)):
            if not part:
                found.append(None)
                continue
            lines = lines_of(result, side)
            found.append(FeatureMap.of(lines[torch.from_numpy(seen)], part[0][seen]))
        return SideMaps(self.encodings, (found[0], found[1]))

    def lines(self, maps: SideMaps) -> Lines:
        """Return what the features say of the rows and of the columns that were fitted."""
        rows, cols = (
            found.at(part[0]) if found is not None else None
            for part, found in zip(self.features, maps.maps, strict=True)
        )
        return rows, cols
