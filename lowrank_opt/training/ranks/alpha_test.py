"""HeteroLoRA's ALPHA-TEST: how far each update may be turned down before a metric suffers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import torch

from lowrank_opt.training.roles import FactorPair


def alpha_test(
    pairs: Iterable[FactorPair],
    metric: Callable[[], float],
    *,
    tolerance: float,
    bisections: int = 7,
) -> list[float]:
    r"""Return the least scale of each update at which the metric is still within `tolerance`.

    One update at a time is multiplied by :math:`\alpha \in [0, 1]`, found by bisection to
    ``2**-bisections``; an update that can be switched off altogether scores 0. Parameters are bit
    by bit what they were.

    Parameters
    ----------
    pairs : iterable of FactorPair
    metric : callable
        Evaluates the model; larger is better, and it should fall as an update is turned down.
    tolerance : float
        Nonnegative, in the unit of the metric.
    bisections : int
        Each is one evaluation for each pair.

    Raises
    ------
    ValueError
        If the tolerance is negative or not finite.

    References
    ----------
    HeteroLoRA (arXiv 2406.14956), section 3.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.training import factor_pairs
    >>> update = Factored((2, 2), 1).assign(torch.ones(2, 2), project=True)
    >>> alpha_test(factor_pairs(update), lambda: float(update().to_dense().sum()), tolerance=1.0)
    [0.75]
    """
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be >= 0 and finite; got tolerance={tolerance!r}")
    needed = metric() - tolerance
    return [_least_scale(pair, metric, needed, bisections) for pair in pairs]


def _least_scale(
    pair: FactorPair, metric: Callable[[], float], needed: float, bisections: int
) -> float:
    def passes(alpha: float) -> bool:
        with _turned_down(pair, alpha):
            return metric() >= needed

    if passes(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


@contextmanager
def _turned_down(pair: FactorPair, alpha: float) -> Generator[None]:
    scaled = pair.left if pair.core is None else pair.core
    kept = scaled.detach().clone()
    try:
        with torch.no_grad():
            scaled.mul_(alpha)
        yield
    finally:
        with torch.no_grad():
            scaled.copy_(kept)
