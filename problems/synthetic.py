"""Planted problems: a known low-rank matrix, seen at random entries, with noise."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lowrank_opt.errors import ObservationError, OptionError, RankError
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator


class PlantedProblem(NamedTuple):
    """What is seen, and the truth behind it.

    Attributes
    ----------
    observations : Observations
        Entries of `truth`, plus noise.
    truth : LowRankOperator
        With orthonormal factors; its entries have root mean square 1.
    """

    observations: Observations
    truth: LowRankOperator


def planted_low_rank(
    shape: tuple[int, int],
    rank: int,
    *,
    oversampling: float = 5.0,
    condition_number: float = 1.0,
    noise: float = 0.0,
    spikiness: float = 0.0,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> PlantedProblem:
    r"""Plant a random matrix of exact rank and observe some of its entries.

    The truth is :math:`W = U \,\mathrm{diag}(s)\, V^T` with `U`, `V` uniform among the matrices
    with orthonormal columns, `s` geometric from the largest to the smallest with ratio
    `condition_number` between them, and :math:`\|W\|_F^2 = mn`. The observed places are uniform
    among all sets of their number; no m x n array is made unless half of the matrix is observed.

    Parameters
    ----------
    shape : tuple of int
        (m, n).
    rank : int
        In 1..min(m, n).
    oversampling : float
        Observed entries divided by the degrees of freedom, r (m + n - r); positive.
    condition_number : float
        Largest over smallest singular value; at least 1, and 1 if the rank is.
    noise : float
        Standard deviation of the Gaussian noise, so its ratio to a typical entry; not negative.
    spikiness : float
        Not negative. Rows of `U` and `V` shrink like :math:`k^{-\text{spikiness}}`, in random
        order, before they are made orthonormal: the larger, the more of the matrix lies in few
        rows and columns, and the higher its `coherence`. 0 is the uniform case.
    generator : torch.Generator, optional
        On the CPU. Seed it to repeat the problem; left out, torch's global generator is used.
    dtype : torch.dtype
        Of factors and values; both are drawn in float64 and rounded.

    Returns
    -------
    PlantedProblem
        The pair `observations`, `truth`.

    Raises
    ------
    RankError
        If the rank is not in 1..min(m, n).
    OptionError
        If the condition number, the noise or the spikiness is outside its domain.
    ObservationError
        If the oversampling asks for no entry or for more than there are.

    Examples
    --------
    >>> seed = torch.Generator().manual_seed(0)
    >>> observations, truth = planted_low_rank((30, 20), 2, generator=seed)
    >>> len(observations), truth.rank
    (480, 2)
    """
    m, n = shape
    truth = _truth(shape, rank, condition_number, noise, spikiness, generator).to(dtype=dtype)
    count = _count(shape, rank, oversampling)
    places = _distinct(m * n, count, generator)
    return PlantedProblem(_seen(truth, places, noise, generator), truth)


def planted_not_at_random(
    shape: tuple[int, int],
    rank: int,
    *,
    oversampling: float = 5.0,
    selection: float = 1.0,
    popularity: float = 1.0,
    condition_number: float = 1.0,
    noise: float = 0.0,
    generator: Generator | None = None,
) -> PlantedProblem:
    r"""Plant a random matrix of which large entries, rows and columns are seen more often.

    Places are drawn one by one without replacement, with probabilities proportional to
    :math:`\exp(\text{selection}\, W_{ij} + \text{popularity}\, (a_i + b_j))`, a and b standard
    normal: people rate what they like, and popular things. Block by block, O(count + n) memory.

    Parameters
    ----------
    shape, rank, oversampling, condition_number, noise, generator
        As in `planted_low_rank`.
    selection : float
        Influence of the value itself; finite. 0 with `popularity` 0 is the uniform case.
    popularity : float
        Influence of row and column; finite.

    Returns
    -------
    PlantedProblem

    Raises
    ------
    RankError, OptionError, ObservationError
        As in `planted_low_rank`.

    References
    ----------
    Draws without replacement as the largest of perturbed logits: Vieira (2014), Gumbel-max trick
    and weighted reservoir sampling.

    Examples
    --------
    >>> seed = torch.Generator().manual_seed(0)
    >>> observations, _ = planted_not_at_random((60, 50), 2, generator=seed)
    >>> bool(observations.values.mean() > 0.2)
    True
    """
    if not (math.isfinite(selection) and math.isfinite(popularity)):
        raise OptionError(
            f"selection and popularity must be finite; got {selection!r} and {popularity!r}"
        )
    truth = _truth(shape, rank, condition_number, noise, 0.0, generator)
    count = _count(shape, rank, oversampling)
    a, b = (torch.randn(k, dtype=torch.float64, generator=generator) for k in shape)
    best, places = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for i in range(shape[0]):
        row = truth.entries(torch.full((shape[1],), i), torch.arange(shape[1]))
        uniform = torch.rand(shape[1], dtype=torch.float64, generator=generator)
        keys = selection * row + popularity * (a[i] + b) - (-uniform.log()).log()
        best = torch.cat((best, keys))
        places = torch.cat((places, i * shape[1] + torch.arange(shape[1])))
        if len(best) > count:
            best, kept = best.topk(count)
            places = places[kept]
    return PlantedProblem(_seen(truth, places.sort().values, noise, generator), truth)


def coherence(truth: LowRankOperator) -> float:
    r"""Return the larger :math:`\tfrac{m}{r} \max_i \|U_i\|^2` of left and right, from 1 to m / r.

    Parameters
    ----------
    truth : LowRankOperator
        With orthonormal factors.

    References
    ----------
    Candes and Recht (2009), Exact matrix completion via convex optimization, definition 1.2.

    Examples
    --------
    >>> coherence(LowRankOperator(torch.eye(4, 2), torch.ones(2), torch.eye(6, 2)))
    3.0
    """
    sizes = (x.square().sum(1).max() * len(x) / truth.rank for x in (truth.left, truth.right))
    return float(max(sizes))


def _truth(
    shape: tuple[int, int],
    rank: int,
    condition_number: float,
    noise: float,
    spikiness: float,
    generator: Generator | None,
) -> LowRankOperator:
    m, n = shape
    _check(shape, rank, condition_number, noise, spikiness)
    s = torch.logspace(0.0, -math.log10(condition_number), rank, dtype=torch.float64)
    U, V = (_orthonormal(k, rank, spikiness, generator) for k in shape)
    return LowRankOperator(U, math.sqrt(m * n) * s / s.norm(), V)


def _seen(
    truth: LowRankOperator, places: Tensor, noise: float, generator: Generator | None
) -> Observations:
    n = truth.shape[1]
    rows, cols = places // n, places % n
    errors = noise * torch.randn(len(places), dtype=torch.float64, generator=generator)
    values = truth.entries(rows, cols) + errors.to(truth.dtype)
    return Observations(rows, cols, values, shape=truth.shape)


def _check(
    shape: tuple[int, int], rank: int, condition_number: float, noise: float, spikiness: float
) -> None:
    m, n = shape
    if not 1 <= rank <= min(m, n):
        raise RankError(f"rank must be in 1..{min(m, n)} for a {m} x {n} matrix; got rank={rank}")
    if not 1.0 <= condition_number < math.inf or (rank == 1 and condition_number != 1.0):
        raise OptionError(
            f"condition_number must be finite and at least 1, and 1 at rank 1; got "
            f"{condition_number!r} at rank {rank}; leave it out for equal singular values"
        )
    if not 0.0 <= noise < math.inf:
        raise OptionError(f"noise must be finite and not negative; got {noise!r}; 0 means none")
    if not 0.0 <= spikiness < math.inf:
        raise OptionError(
            f"spikiness must be finite and not negative; got {spikiness!r}; 0 means none"
        )


def _count(shape: tuple[int, int], rank: int, oversampling: float) -> int:
    m, n = shape
    freedom = rank * (m + n - rank)
    # NaN and infinity cannot be rounded.
    count = round(oversampling * freedom) if math.isfinite(oversampling) else 0
    if not 1 <= count <= m * n:
        raise ObservationError(
            f"oversampling must ask for 1..{m * n} entries of a {m} x {n} matrix; got "
            f"{oversampling!r} times {freedom} degrees of freedom; at most "
            f"{math.floor(100 * m * n / freedom) / 100:g} works here"
        )
    return count


def _orthonormal(rows: int, rank: int, spikiness: float, generator: Generator | None) -> Tensor:
    gaussian = torch.randn(rows, rank, dtype=torch.float64, generator=generator)
    if spikiness > 0:
        order = 1.0 + torch.randperm(rows, generator=generator)
        gaussian *= order.double().pow(-spikiness).unsqueeze(1)
    q, r = torch.linalg.qr(gaussian)
    # With the signs of R's diagonal, Q is uniform (Mezzadri 2007); without, it is LAPACK's choice.
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _distinct(size: int, count: int, generator: Generator | None) -> Tensor:
    """Draw `count` distinct integers below `size`, sorted, using O(count) memory."""
    if 2 * count >= size:
        return torch.randperm(size, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(size, (2 * (count - len(drawn)) + 8,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    # The distinct draws are a uniform set; so is a uniform part of them.
    kept = torch.randperm(len(drawn), generator=generator)[:count]
    return drawn[kept].sort().values
