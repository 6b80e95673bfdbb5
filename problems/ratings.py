"""Ratings as tidy columns: contiguous indices beside the original ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings of items by users, one entry a rating.

    Attributes
    ----------
    user, item : int64 array, shape (n,)
        Indices from 0, contiguous: the row and the column of the rating.
    rating : float32 array, shape (n,)
        Multiples of one half, so exact.
    timestamp : int64 array, shape (n,)
        Seconds since 1970.
    user_ids : int64 array, shape (users,)
        Original id of each row, increasing.
    item_ids : int64 array, shape (items,)
        Original id of each column, increasing.

    Examples
    --------
    >>> ratings = Ratings.from_ids([7, 9], [20, 10], [4.0, 2.5], [0, 0])
    >>> ratings.shape, ratings.item.tolist(), ratings.item_ids.tolist()
    ((2, 2), [1, 0], [10, 20])
    """

    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    rating: npt.NDArray[np.float32]
    timestamp: npt.NDArray[np.int64]
    user_ids: npt.NDArray[np.int64]
    item_ids: npt.NDArray[np.int64]

    @classmethod
    def from_ids(
        cls,
        user: npt.ArrayLike,
        item: npt.ArrayLike,
        rating: npt.ArrayLike,
        timestamp: npt.ArrayLike,
    ) -> Ratings:
        """Index the users and the items that occur, in the order of their ids.

        Parameters
        ----------
        user, item : array of int, shape (n,)
            Original ids.
        rating : array of float, shape (n,)
            Values.
        timestamp : array of int, shape (n,)
            Seconds since 1970.

        Returns
        -------
        Ratings
            In the same order.
        """
        user_ids, rows = np.unique(np.asarray(user, dtype=np.int64), return_inverse=True)
        item_ids, cols = np.unique(np.asarray(item, dtype=np.int64), return_inverse=True)
        return cls(
            user=rows.astype(np.int64),
            item=cols.astype(np.int64),
            rating=np.array(rating, dtype=np.float32),
            timestamp=np.array(timestamp, dtype=np.int64),
            user_ids=user_ids,
            item_ids=item_ids,
        )

    def __len__(self) -> int:
        """Count the ratings."""
        return len(self.rating)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of users and of items."""
        return len(self.user_ids), len(self.item_ids)

    @property
    def density(self) -> float:
        """Share of the matrix that is rated."""
        users, items = self.shape
        return len(self) / (users * items)

    def take(self, index: npt.NDArray[np.int64]) -> Ratings:
        """Select ratings; the numbering of users and items, and so the shape, stays.

        Parameters
        ----------
        index : int64 array, shape (k,)
            Positions, in the order wanted.

        Returns
        -------
        Ratings
        """
        return replace(
            self,
            user=self.user[index],
            item=self.item[index],
            rating=self.rating[index],
            timestamp=self.timestamp[index],
        )

    def observations(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Observations:
        """Give the ratings as observed entries of a users x items matrix.

        Parameters
        ----------
        dtype : torch.dtype, optional
            Of the values; the default dtype of torch if left out.
        device : torch.device or str, optional
            Of all tensors; the CPU if left out.

        Returns
        -------
        Observations
            Of shape (users, items), in the same order.

        Raises
        ------
        ObservationError
            If an entry is rated twice, or there is none.
        """
        values = torch.tensor(self.rating, dtype=dtype or torch.get_default_dtype(), device=device)
        rows = torch.tensor(self.user, device=device)
        cols = torch.tensor(self.item, device=device)
        return Observations(rows, cols, values, shape=self.shape)

    def to_pandas(self) -> pd.DataFrame:
        """Give the ratings as a frame with the original ids.

        Returns
        -------
        pandas.DataFrame
            Columns `user_id`, `item_id`, `rating`, `timestamp`, in the same order.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "user_id": self.user_ids[self.user],
                "item_id": self.item_ids[self.item],
                "rating": self.rating,
                "timestamp": self.timestamp,
            }
        )

    def first_duplicate(self) -> tuple[int, int] | None:
        """Find a user and item that are rated twice.

        Returns
        -------
        tuple of int, or None
            Positions of the earliest repetition: the first rating and the one that repeats it.
        """
        key = self.user * self.shape[1] + self.item
        if bool((np.diff(key) > 0).all()):
            return None
        order = np.argsort(key, kind="stable")
        (repeats,) = np.nonzero(np.diff(key[order]) == 0)
        if len(repeats) == 0:
            return None
        at = repeats[np.argmin(order[repeats + 1])]
        return int(order[at]), int(order[at + 1])
