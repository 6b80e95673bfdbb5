"""The best columns for each row, a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.fold_in import balanced_factors, transposed
from lowrank_opt.estimators.choice.search import NOBODY, Described
from lowrank_opt.estimators.updates import flipped
from lowrank_opt.extras import extra
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import Ranked
from lowrank_opt.observations import Observations
from lowrank_opt.tables.ids import UNKNOWN, Ids, Labels, Positions

if TYPE_CHECKING:
    from pandas import DataFrame

# Scores of one block of rows and all columns.
_BLOCK = 1 << 22


class Recommendations(NamedTuple):
    """Ranked items, a line for each asked id.

    Parameters
    ----------
    asked : array, shape (u,)
        The users, or items, that were asked for.
    ids : array, shape (u, k)
        The best first. None where there are fewer candidates than k, in an array of objects.
    scores : array, shape (u, k)
        NaN where there is no id.
    positions : array of int, shape (u, k)
        Columns of the matrix; -1 where there is no id.
    """

    asked: Ids
    ids: Ids
    scores: NDArray[np.floating]
    positions: Positions

    @classmethod
    def of(
        cls, asked: Ids, labels: Labels, positions: Positions, scores: NDArray[np.floating]
    ) -> Recommendations:
        """Look the ids up."""
        empty = positions == UNKNOWN
        ids = labels.ids[np.where(empty, 0, positions)]
        if empty.any():
            ids = ids.astype(object)
            ids[empty] = None
        return cls(asked, ids, np.where(empty, np.nan, scores), positions)

    def to_pandas(self) -> DataFrame:
        """Return a data frame with one line for each recommendation: asked, id, score, rank."""
        with extra("experiments"):
            import pandas as pd
        i, t = (self.positions != UNKNOWN).nonzero()
        columns = {"asked": self.asked[i], "id": self.ids[i, t], "score": self.scores[i, t]}
        return pd.DataFrame(columns | {"rank": t + 1})


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is ranked: a completed matrix, and the entries that were seen.

    Parameters
    ----------
    result : CompletionResult, shape (m, n)
    observations : Observations, shape (m, n)
        Columns without an entry are no candidates, unless they are described.
    allowed : Tensor, shape (n,), bool, optional
        The columns that may be ranked; all by default.
    described : pair of array of int
        Positions of rows and columns that have side information.
    """

    result: CompletionResult
    observations: Observations
    allowed: Tensor | None = None
    described: Described = NOBODY

    def among(self, cols: Tensor) -> Candidates:
        """Return candidates of which these columns alone may be ranked."""
        there = self.observations.device
        allowed = torch.zeros(self.result.shape[1], dtype=torch.bool, device=there)
        allowed[cols.to(there)] = True
        return replace(self, allowed=allowed)

    def flipped(self) -> Candidates:
        """Return the candidates of the transpose: rows are ranked."""
        rows, cols = self.described
        turned = flipped(self.observations)
        return Candidates(transposed(self.result), turned, described=(cols, rows))

    @cached_property
    def known_cols(self) -> Tensor:
        """Which columns have an entry or side information and are allowed, shape (n,)."""
        known = self.observations.col_counts > 0
        known[torch.from_numpy(self.described[1]).to(known.device)] = True
        return known if self.allowed is None else known & self.allowed

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Balanced factors, shapes (m, r) and (n, r)."""
        return balanced_factors(self.result.operator)

    def ranked(self, rows: Tensor, *, exclude_seen: bool) -> Ranked:
        """Return what ranks columns for some rows; of row -1, by their biases alone."""
        left, right = self.factors
        lines = torch.where((rows >= 0).unsqueeze(1), left[rows.clamp_min(0)], 0.0)
        seen = self.seen(rows) if exclude_seen else self.seen(rows[:0])
        return Ranked(lines, right, self.result.bias.cols.double(), self.known_cols, seen)

    def heights(self, rows: Tensor) -> Tensor:
        """Return what the scores of some rows have in common, shape (u, 1)."""
        bias = self.result.bias
        own = torch.where(rows >= 0, bias.rows.double()[rows.clamp_min(0)], 0.0)
        return (bias.mean + own).unsqueeze(1)

    def seen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions in `rows`, and columns, of the entries that were seen."""
        csr = self.observations.csr
        counts = torch.where(rows >= 0, csr.counts[rows.clamp_min(0)], 0)
        line = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        within = torch.arange(len(line), device=rows.device) - first[line]
        return line, csr.indices[csr.pointers[rows.clamp_min(0)][line] + within].long()


def best_columns(
    candidates: Candidates, rows: Positions, k: int, *, exclude_seen: bool
) -> tuple[Positions, NDArray[np.floating]]:
    """Return the k columns with the largest predictions for each row, and these.

    Parameters
    ----------
    candidates : Candidates
    rows : array of int, shape (u,)
        -1 for an unknown row.
    k : int
    exclude_seen : bool

    Returns
    -------
    positions, scores : arrays, shape (u, k)
        -1 where there are fewer candidates.
    """
    found: list[tuple[Tensor, Tensor]] = []
    block = max(1, _BLOCK // candidates.result.shape[1])
    asked = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(candidates.observations.device)
    for part in asked.split(block):
        given = candidates.ranked(part, exclude_seen=exclude_seen)
        found.append(_best(given, candidates.heights(part), k))
    return _joined(found, k)


def most_similar(
    candidates: Candidates, cols: Positions, k: int
) -> tuple[Positions, NDArray[np.floating]]:
    """Return the k other columns with the largest cosine to each, and the cosines.

    The columns are those of the low-rank matrix itself: their inner products need no basis.
    """
    left, right = candidates.factors
    vectors = right @ torch.linalg.qr(left, mode="r").R.mT
    length = vectors.norm(dim=1, keepdim=True)
    units = torch.where(length > 0, vectors / length, 0.0)
    found: list[tuple[Tensor, Tensor]] = []
    none = units.new_zeros(len(units))
    for part in torch.from_numpy(cols).to(right.device).split(max(1, _BLOCK // len(right))):
        itself = (torch.arange(len(part), device=part.device), part)
        given = Ranked(units[part], units, none, candidates.known_cols, itself)
        found.append(_best(given, none[:1], k))
    return _joined(found, k)


def _best(given: Ranked, heights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, positions = backend_of(given.rows.device).best_columns(given, k)
    return torch.where(values == -torch.inf, UNKNOWN, positions), values + heights


def _joined(found: list[tuple[Tensor, Tensor]], k: int) -> tuple[Positions, NDArray[np.floating]]:
    if not found:
        return np.empty((0, k), np.int64), np.empty((0, k))
    positions, scores = (torch.cat(x).cpu().numpy() for x in zip(*found, strict=True))
    lacking = ((0, 0), (0, k - positions.shape[1]))
    return np.pad(positions, lacking, constant_values=UNKNOWN), np.pad(scores, lacking)
