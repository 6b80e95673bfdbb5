"""How many components may live, and which: schedules and stable global rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import RankError, ShapeError


def cubic_budget(step: int, *, start: int, end: int, warmup: int, finish: int) -> int:
    r"""Return how many components may be active at a step: from `start` down to `end`.

    ``end + (start - end) (1 - t)^3``, t running from 0 at `warmup` to 1 at `finish`; rounded up,
    so that it never increases and reaches `end` at `finish` exactly.

    Parameters
    ----------
    step : int
    start, end : int
        Budgets, 0 <= end <= start.
    warmup, finish : int
        Steps, warmup < finish.

    Raises
    ------
    RankError
        If budgets or steps are in the wrong order.

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), equation 12.

    Examples
    --------
    >>> [cubic_budget(t, start=12, end=8, warmup=10, finish=20) for t in (0, 10, 15, 20, 99)]
    [12, 12, 9, 8, 8]
    """
    if not (0 <= end <= start and 0 <= warmup < finish):
        raise RankError(
            "a budget needs 0 <= end <= start and 0 <= warmup < finish; got "
            f"start={start}, end={end}, warmup={warmup}, finish={finish}"
        )
    left, span = min(max(finish - step, 0), finish - warmup), finish - warmup
    # Integers: -(-a // b) rounds a / b up.
    return end - (-(start - end) * left**3 // span**3)


@dataclass(frozen=True)
class CubicBudget:
    r"""A number of components that falls like a cube from `start` to `final`.

    With :math:`x = (t - t_i) / (T - t_i - t_f)` it is, fast at first and then slow,

    .. math:: b(t) = b_T + (b_0 - b_T) (1 - x)^3

    or, if `late`, slow at first and then fast, :math:`b_0 - (b_0 - b_T) x^3`; between :math:`t_i` =
    `warmup` and :math:`T - t_f` = ``total - hold``, rounded up; constant before and after.

    Parameters
    ----------
    start, final : int
        ``start >= final >= 0``.
    total : int
        Number of steps.
    warmup, hold : int
        Steps at `start` in the beginning, and at `final` in the end.

    late : bool
        Which of the two curves.

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), eq. (12); the late one: Mao et al., DoRA: dynamic rank
    distribution (arXiv 2405.17357), section 3.3, whose warmup is 15 % and whose end 50 % of the
    steps (`dynamic_rank`).

    Examples
    --------
    >>> budget = CubicBudget(start=12, final=4, total=10, warmup=2, hold=4)
    >>> [budget(t) for t in range(0, 11, 2)]
    [12, 12, 5, 4, 4, 4]
    >>> late = CubicBudget.dynamic_rank(start=12, final=4, total=20)
    >>> [late(t) for t in range(0, 11, 2)]
    [12, 12, 12, 12, 10, 4]
    """

    start: int
    final: int
    total: int
    warmup: int = 0
    hold: int = 0
    late: bool = False

    @classmethod
    def dynamic_rank(cls, *, start: int, final: int, total: int) -> CubicBudget:
        """Return the schedule of dynamic-rank DoRA: late, between 15 % and 50 % of the steps."""
        warmup, end = round(0.15 * total), round(0.5 * total)
        return cls(start, final, total, warmup, total - max(end, warmup + 1), late=True)

    def __post_init__(self) -> None:
        if not 0 <= self.final <= self.start:
            raise RankError(
                f"a budget must fall: 0 <= final <= start; got start={self.start}, "
                f"final={self.final}"
            )
        if min(self.warmup, self.hold) < 0 or self.warmup + self.hold >= self.total:
            raise ValueError(
                f"warmup + hold must be less than total; got {self.warmup} + {self.hold} and "
                f"{self.total}"
            )

    def __call__(self, step: int) -> int:
        """Return b(step)."""
        finish = self.total - self.hold
        if self.late:
            done, length = (
                min(max(step - self.warmup, 0), finish - self.warmup),
                finish - self.warmup,
            )
            return self.start - (self.start - self.final) * done**3 // length**3
        ends = {"start": self.start, "end": self.final}
        return cubic_budget(step, **ends, warmup=self.warmup, finish=finish)

    def finished(self, step: int) -> bool:
        """Return whether b has reached `final` for good."""
        return step >= self.total - self.hold


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest scores; of equal ones, the first are kept.

    Parameters
    ----------
    scores : Tensor, shape (k,)
    count : int
        In 0..k.

    Returns
    -------
    Tensor of bool, shape (k,)
        Exactly `count` are true, ties or not.

    Raises
    ------
    RankError
        If `count` is out of range.

    Examples
    --------
    >>> keep_largest(torch.tensor([1.0, 1.0, 3.0]), 2)
    tensor([ True, False,  True])
    """
    if not 0 <= count <= len(scores):
        raise RankError(f"count must be in 0..{len(scores)}; got count={count}")
    order = scores.argsort(descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def top_components(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return masks of exactly `count` components with the largest scores over all modules.

    Ties go to the earlier module and index: never more or fewer than `count`.

    Parameters
    ----------
    scores : sequence of Tensor, shapes (r_l,)
    count : int

    Examples
    --------
    >>> top_components([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])], 2)
    [tensor([False,  True]), tensor([ True, False])]
    """
    flat = torch.cat([s.detach().double().cpu() for s in scores])
    mask = keep_largest(flat, min(max(count, 0), len(flat)))
    return list(mask.split([len(s) for s in scores]))


def greedy_ranks(
    singular_values: Sequence[Tensor], budget: float, *, costs: Sequence[float] | None = None
) -> list[int]:
    r"""Return ranks that spend `budget` on the largest :math:`\sigma_i^2` per cost.

    For equal costs this minimises :math:`\sum_l \|T_l - \Delta W_l\|_F^2` over all ranks. Of the
    gradients :math:`G_l` instead of targets, :math:`\sum_{i \le r_l} \sigma_i(G_l)^2` is the best
    first-order decrease that updates of these ranks can reach.

    Parameters
    ----------
    singular_values : sequence of Tensor, shapes (k_l,)
        Decreasing.
    budget : float
        In units of cost; the number of components by default.
    costs : sequence of float, optional
        Of one component of each matrix: ``m + n``, for a budget of parameters.

    Examples
    --------
    >>> greedy_ranks([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5])], 3)
    [2, 1]
    """
    prices = [1.0] * len(singular_values) if costs is None else list(costs)
    if len(prices) != len(singular_values) or min(prices, default=1.0) <= 0:
        raise ShapeError(
            f"costs must be one positive number for each matrix; got {len(prices)} for "
            f"{len(singular_values)} matrices"
        )
    offers = [
        (-(float(s) ** 2) / price, matrix, index)
        for matrix, (values, price) in enumerate(zip(singular_values, prices, strict=True))
        for index, s in enumerate(values)
    ]
    ranks, closed = [0] * len(prices), set[int]()
    for _, matrix, index in sorted(offers):
        if matrix in closed or index != ranks[matrix] or prices[matrix] > budget:
            closed.add(matrix)
            continue
        ranks[matrix] += 1
        budget -= prices[matrix]
    return ranks


def choose_modules(
    scores: Sequence[float], count: int, *, generator: torch.Generator | None = None
) -> list[bool]:
    """Return which `count` modules get an adapter; ties are broken at random.

    Parameters
    ----------
    scores : sequence of float
    count : int
        At most all of them are chosen.
    generator : torch.Generator, optional

    References
    ----------
    HeteroLoRA (arXiv 2406.14956), section 3.

    Examples
    --------
    >>> choose_modules([0.1, 0.9, 0.5], 2)
    [False, True, True]
    """
    order = torch.randperm(len(scores), generator=generator)
    values = torch.tensor(list(scores), dtype=torch.float64)[order]
    best = order[values.sort(descending=True, stable=True).indices[: max(count, 0)]]
    chosen = set(best.tolist())
    return [k in chosen for k in range(len(scores))]
