"""Saved models on the command line: ids are text, and unknown ones are predicted too."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import DataError

if TYPE_CHECKING:
    from lowrank_opt.completion import CompletionResult

Positions = NDArray[np.int64]


class SavedModel:
    """A saved result, asked by the text of ids.

    Parameters
    ----------
    path : str
        Folder. Without ids in it, rows and columns are called 0, 1, 2, ...

    Attributes
    ----------
    user_ids, item_ids : list of str
    rows, cols : list
        The same ids, of the types that were fitted.
    """

    def __init__(self, path: str) -> None:
        from lowrank_opt.completion import CompletionResult
        from lowrank_opt.completion.model.ids import Lookup

        self.result: CompletionResult = CompletionResult.load(path)
        result, (m, n) = self.result, self.result.shape
        self.rows: list[Hashable] = [*(range(m) if result.row_ids is None else result.row_ids)]
        self.cols: list[Hashable] = [*(range(n) if result.col_ids is None else result.col_ids)]
        self.user_ids: list[str] = [*map(str, self.rows)]
        self.item_ids: list[str] = [*map(str, self.cols)]
        for name, ids in (("users", self.user_ids), ("items", self.item_ids)):
            if len(set(ids)) < len(ids):
                raise DataError(
                    f"{name} must have ids that differ as text, on the command line; {path!r} has "
                    "some that do not, such as 7 and '7': ask the model from Python"
                )
        self.users: Lookup
        self.items: Lookup
        self.users, self.items = Lookup(self.user_ids), Lookup(self.item_ids)

    def predict(self, users: Positions, items: Positions) -> Tensor:
        """Predict pairs of positions, -1 for an unknown one, shape (k,), float64.

        An unknown user has the factors and the bias of nobody: the mean and the item's bias remain.
        """
        i, j = torch.from_numpy(users), torch.from_numpy(items)
        left, scale, right = self.result.operator
        bias = self.result.bias
        known = (i >= 0) & (j >= 0)
        products = ((left[i] * scale) * right[j]).sum(1)
        parts = (
            products.where(known, 0),
            bias.rows[i].where(i >= 0, 0),
            bias.cols[j].where(j >= 0, 0),
        )
        scores = torch.stack([x.double() for x in parts]).sum(0) + bias.mean
        return self.result.link.mean(scores)

    def knows(self, user: str, item: str) -> bool:
        """Whether one of two ids is known."""
        return user in self.users.position or item in self.items.position

    def positions(self, texts: tuple[list[str], ...]) -> tuple[Positions, Positions]:
        """Return the positions of users and items, -1 for an unknown one."""
        # Columns of Parquet are of any type.
        users, items = (map(str, ids) for ids in texts)
        return self.users.positions(users), self.items.positions(items)
