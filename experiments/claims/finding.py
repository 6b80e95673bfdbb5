"""What a record says of a claim: effects with intervals, and the verdict that follows from them."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

LEVEL = 0.95
# Published gains in accuracy are of several points: an interval without two of them says no.
TELLING = 2.0


class Verdict(StrEnum):
    """What became of a claim."""

    REPRODUCED = "reproduced"
    REFINED = "refined"
    NOT_REPRODUCED = "not reproduced"
    NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Effect:
    """One number that a claim is about.

    Parameters
    ----------
    label : str
    value : float
    low, high : float
        Ends of its interval; NaN if there is none.
    holds : bool, optional
        Whether this part of the claim is what was found; None if the interval does not tell.
    beside : bool
        It is no part of the claim, only shown with it.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    holds: bool | None = None
    beside: bool = False

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclass(frozen=True)
class Finding:
    """All effects of a claim.

    Parameters
    ----------
    effects : tuple of Effect
        None of them if the record cannot say.
    unit : str
        Of all values.
    interval : str
        What the intervals are, or why there are none.
    reference : float
        Value of no effect.
    remark : str
        One more sentence.
    logarithmic : bool
        How the figure shows the values, which are then positive.
    """

    effects: tuple[Effect, ...]
    unit: str
    interval: str
    reference: float = 0.0
    remark: str = ""
    logarithmic: bool = False

    @property
    def verdict(self) -> Verdict:
        """Say whether all, some or none of the parts hold, or whether none of them is decided."""
        parts = [effect.holds for effect in self.effects if not effect.beside]
        if any(parts):
            return Verdict.REPRODUCED if all(parts) else Verdict.REFINED
        return Verdict.NOT_REPRODUCED if False in parts else Verdict.NOT_TESTABLE


@dataclass(frozen=True)
class Claim:
    """One row of the page.

    Parameters
    ----------
    name : str
        Short, for links.
    text : str
        What is claimed, one sentence.
    source : str
        Who claims it; an arXiv number becomes a link.
    record : str
        File name of the record.
    command : str
        What makes that record.
    measure : callable
        Turns the record into a finding.
    """

    name: str
    text: str
    source: str
    record: str
    command: str
    measure: Callable[[Record], Finding]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % interval by Student's t, NaN for one value.

    Examples
    --------
    >>> mean_interval([1.0, 2.0, 3.0])
    (2.0, -0.484..., 4.484...)
    """
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
    half *= statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def share_interval(hits: int, count: int) -> tuple[float, float, float]:
    """Return a share and the ends of its 95 % interval by Clopper and Pearson.

    Examples
    --------
    >>> share_interval(3, 3)
    (1.0, 0.292..., 1.0)
    """
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(LEVEL)
    return hits / count, float(found.low), float(found.high)


def gain(
    label: str, values: Sequence[float], *, telling: float = 0.0, beside: bool = False
) -> Effect:
    """Return the mean of gains and whether there is one.

    There is one where the interval is above zero, and none where it has no `telling` gain in it;
    what lies between is not decided. Without an interval the value itself decides.
    """
    mean, low, high = mean_interval(values)
    if math.isnan(low):
        low_end, high_end = mean, mean
    else:
        low_end, high_end = low, high
    holds = True if low_end > 0 else False if high_end <= telling else None
    return Effect(label, mean, low, high, holds, beside)


def paired(
    rows: Iterable[Mapping[str, Any]], ours: str, theirs: str, quantity: str, *, by: str = "method"
) -> list[float]:
    """Return ``ours - theirs`` for each seed that both have."""
    found: dict[str, dict[Any, float]] = {ours: {}, theirs: {}}
    for row in rows:
        if row[by] in found:
            found[row[by]][row["seed"]] = float(row[quantity])
    seeds = sorted(found[ours].keys() & found[theirs].keys())
    return [found[ours][seed] - found[theirs][seed] for seed in seeds]


def over_seeds(count: int) -> str:
    """Return what an interval over so many seeds is."""
    if count < 2:
        return "one run: the record has no interval over seeds"
    return f"95 % over {count} seeds, Student's t, paired"
