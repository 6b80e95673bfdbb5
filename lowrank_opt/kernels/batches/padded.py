"""Groups of entries as rectangular batches, for devices that solve many rows at once.

Rows of about equal length are padded to the longest of them and share a batch: sums over the
entries of a row become products of small matrices. Batches are bounded, so that memory does not
grow with entries x rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.observations import CompressedAxis

# Numbers gathered at a time.
BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, and where their entries are.

    Parameters
    ----------
    rows : Tensor, shape (B,), int64
    positions : Tensor, shape (B, L), int64
        Of entries, in the order of the axis; zero where a row has ended.
    present : Tensor, shape (B, L), bool
    """

    rows: Tensor
    positions: Tensor
    present: Tensor

    def gather(self, entries: Tensor) -> Tensor:
        """Return one number for each entry, zero where a row has ended, shape (B, L)."""
        return torch.where(self.present, entries[self.positions], entries.new_zeros(()))


def batches(axis: CompressedAxis, width: int) -> Iterator[Batch]:
    """Yield every row of an axis once, rows without entries too.

    Parameters
    ----------
    axis : CompressedAxis
    width : int
        Numbers that are gathered for each entry: a batch holds `BLOCK` of them, or one row.

    Examples
    --------
    >>> from lowrank_opt.observations import Observations
    >>> axis = Observations([0, 0, 2], [0, 1, 1], [1.0, 2.0, 3.0], (3, 2)).csr
    >>> sorted(int(i) for batch in batches(axis, 1) for i in batch.rows)
    [0, 1, 2]
    """
    counts = axis.pointers.diff()
    order = counts.argsort(descending=True, stable=True)
    # The cut is planned on the host: one transfer for an axis, none for a batch.
    lengths = counts[order].cpu().numpy()
    start = 0
    while start < len(lengths):
        longest = max(int(lengths[start]), 1)
        # Rows less than half as long as the first would be mostly padding.
        alike = int((-2 * lengths).searchsorted(-lengths[start], side="right"))
        end = min(max(alike, start + 1), start + max(1, BLOCK // (longest * width)))
        yield _batch(axis, order[start:end], longest)
        start = end


def _batch(axis: CompressedAxis, rows: Tensor, longest: int) -> Batch:
    steps = torch.arange(longest, device=rows.device)
    begin, end = axis.pointers[rows], axis.pointers[rows + 1]
    positions = begin.unsqueeze(1) + steps
    present = positions < end.unsqueeze(1)
    return Batch(rows, positions.where(present, 0), present)
