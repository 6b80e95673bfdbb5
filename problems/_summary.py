"""A short table about ratings, for people."""

import numpy as np

from problems.ratings import Ratings


def summary(ratings: Ratings) -> str:
    """Describe ratings in a few lines.

    Parameters
    ----------
    ratings : Ratings
        At least one.

    Returns
    -------
    str
        Users, items, ratings, density, mean and range, ratings a user and an item.

    Examples
    --------
    >>> print(summary(Ratings.from_ids([1, 1], [1, 2], [3.0, 4.0], [0, 0])).splitlines()[3])
    density            100.00%
    """
    users, items = ratings.shape
    values = ratings.rating.astype(np.float64)
    facts = {
        "users": f"{users:,}",
        "items": f"{items:,}",
        "ratings": f"{len(ratings):,}",
        "density": f"{ratings.density:.2%}",
        "rating, mean (sd)": f"{values.mean():.3f} ({values.std():.3f})",
        "rating, range": f"{values.min():g} .. {values.max():g}",
        "ratings a user": _spread(np.bincount(ratings.user)),
        "ratings an item": _spread(np.bincount(ratings.item)),
    }
    return "\n".join(f"{name:<18} {value}" for name, value in facts.items())


def _spread(counts: np.ndarray[tuple[int], np.dtype[np.intp]]) -> str:
    return f"{counts.min():,} .. {counts.max():,}, median {np.median(counts):g}"
