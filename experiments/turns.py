"""Times of calls that take turns: whatever else the machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Sequence


def seconds(run: Callable[[], object], calls: int = 1) -> tuple[float, float]:
    """Return the time of some calls: of the processor, and on the wall."""
    start = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def in_turns(
    runs: Sequence[Callable[[], object]], turns: int, calls: int = 1
) -> list[list[tuple[float, float]]]:
    """Return the seconds of some calls that take turns; the first turn is not counted."""
    return [[seconds(run, calls) for run in runs] for _ in range(turns + 1)][1:]


def spread(ratios: Sequence[float]) -> str:
    """Return the median and the middle half.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0]), spread([1.5]), spread([])
    ('2.00 (1.50 to 2.50)', '1.50', '')
    """
    if not ratios:
        return ""
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
