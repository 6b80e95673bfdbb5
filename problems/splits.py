"""Seeded random splits: the same generator state gives the same split."""

import torch
from torch import Generator

from lowrank_opt.errors import ObservationError
from lowrank_opt.observations import Observations

Parts = tuple[Observations, Observations]


def random_split(
    observations: Observations,
    *,
    test_fraction: float = 0.1,
    generator: Generator | None = None,
) -> Parts:
    """Hold out a random part, each entry with the same chance.

    Parameters
    ----------
    observations : Observations
        At least two entries.
    test_fraction : float
        Share to hold out, between 0 and 1; rounded to whole entries, at least one in each part.
    generator : torch.Generator, optional
        On the CPU. Seed it to repeat the split; left out, torch's global generator is used.

    Returns
    -------
    train, test : Observations
        Of the shape of `observations`, disjoint, together all of it, each in the given order.

    Raises
    ------
    ObservationError
        If the fraction is not between 0 and 1, or there are fewer than two entries.

    Examples
    --------
    >>> obs = Observations(torch.arange(10), torch.zeros(10, dtype=int), torch.ones(10), (10, 1))
    >>> train, test = random_split(obs, generator=torch.Generator().manual_seed(0))
    >>> len(train), len(test)
    (9, 1)
    """
    count = len(observations)
    if not 0.0 < test_fraction < 1.0:
        raise ObservationError(
            f"test_fraction must be between 0 and 1; got {test_fraction!r}; 0.1 is usual"
        )
    _require_entries(count, 2)
    held = min(max(round(test_fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=generator)
    return _parts(observations, order[:held])


def validation_split(
    train: Observations,
    *,
    validation_fraction: float = 0.1,
    generator: Generator | None = None,
) -> Parts:
    """Hold out a part of a training fold, to choose settings on without a look at the test fold.

    Parameters
    ----------
    train : Observations
        The training fold, at least two entries.
    validation_fraction : float
        Share to hold out, between 0 and 1.
    generator : torch.Generator, optional
        On the CPU; as in `random_split`.

    Returns
    -------
    fitted, validation : Observations
        As `random_split`.

    Raises
    ------
    ObservationError
        As `random_split`.
    """
    return random_split(train, test_fraction=validation_fraction, generator=generator)


def k_folds(
    observations: Observations, *, folds: int = 5, generator: Generator | None = None
) -> list[Parts]:
    """Cut at random into folds of equal size, to within one entry, and test on each in turn.

    Parameters
    ----------
    observations : Observations
        At least `folds` entries.
    folds : int
        At least 2.
    generator : torch.Generator, optional
        On the CPU; as in `random_split`.

    Returns
    -------
    list of (train, test), length folds
        The test parts are disjoint and together are all of `observations`.

    Raises
    ------
    ObservationError
        If there are fewer than two folds, or fewer entries than folds.
    """
    if folds < 2:
        raise ObservationError(f"folds must be at least 2; got {folds!r}; 5 or 10 is usual")
    _require_entries(len(observations), folds)
    order = torch.randperm(len(observations), generator=generator)
    return [_parts(observations, part) for part in torch.tensor_split(order, folds)]


def _parts(observations: Observations, held: torch.Tensor) -> Parts:
    """Separate the entries at the positions `held` from the others."""
    tested = torch.zeros(len(observations), dtype=torch.bool)
    tested[held] = True
    device = observations.values.device
    train, test = (mask.nonzero().squeeze(1).to(device) for mask in (~tested, tested))
    return observations.take(train), observations.take(test)


def _require_entries(count: int, least: int) -> None:
    if count < least:
        raise ObservationError(
            f"a split needs at least {least} entries; got {count}; take fewer folds or more data"
        )
