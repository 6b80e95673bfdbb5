r"""What sums of scaled rank-one components share: sizes, scores, and which ones to keep.

A component i of ``W = scaling * sum_i c_i l_i r_i^T`` is active while c_i is not zero. Budgets over
several modules are met by ranking the concatenated scores of all of them with `keep_largest`.
"""

import torch
from torch import Tensor

from lowrank_opt.errors import RankError
from lowrank_opt.linalg import lp_norm, working_dtype


def component_norms(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    r"""Return :math:`|c_i|\, \|l_i\|\, \|r_i\|`, the norms of the rank-one terms, shape (r,).

    Examples
    --------
    >>> component_norms(torch.eye(3, 2), torch.tensor([2.0, -1.0]), 3 * torch.eye(4, 2))
    tensor([6., 3.], dtype=torch.float64)
    """
    dtype = working_dtype(left)
    return values.to(dtype).abs() * lp_norm(left.to(dtype).mT, 2) * lp_norm(right.to(dtype).mT, 2)


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


class SensitivityAverage:
    r"""Running importance of parameters: :math:`\bar I \cdot \bar U` of :math:`I = |w\, g|`.

    Exponential averages of the sensitivity I and of its uncertainty :math:`|I - \bar I|`.

    Parameters
    ----------
    beta1, beta2 : float
        Decays of the two averages, in [0, 1).

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), equations 9 to 11.

    Examples
    --------
    >>> average = SensitivityAverage(0.5, 0.5)
    >>> average.update({"w": (torch.tensor([2.0]), torch.tensor([3.0]))})
    >>> average.importance("w")
    tensor([4.5000])
    """

    def __init__(self, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self._mean: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Take in pairs (parameter, gradient), by name."""
        for name, (w, g) in pairs.items():
            now = (w * g).abs()
            mean = self._mean.get(name, torch.zeros_like(now))
            mean = self.beta1 * mean + (1 - self.beta1) * now
            spread = self._spread.get(name, torch.zeros_like(now))
            self._spread[name] = self.beta2 * spread + (1 - self.beta2) * (now - mean).abs()
            self._mean[name] = mean

    def keep(self, name: str, index: Tensor) -> None:
        """Forget the columns of a parameter, shape (..., r), that are not in `index`."""
        for kept in (self._mean, self._spread):
            if name in kept:
                kept[name] = kept[name][..., index]

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the averages of all names that begin so, by the rest of the names."""
        kept = {"mean": self._mean, "spread": self._spread}
        return {
            f"{what}/{name.removeprefix(prefix)}": x.clone()
            for what, averages in kept.items()
            for name, x in averages.items()
            if name.startswith(prefix)
        }

    def load(self, prefix: str, state: dict[str, Tensor]) -> None:
        """Take over averages from `state`."""
        for key, x in state.items():
            what, _, name = key.partition("/")
            averages = self._mean if what == "mean" else self._spread
            averages[f"{prefix}{name}"] = x.clone()

    def importance(self, name: str) -> Tensor:
        """Return the importance of every entry of a parameter that has been updated."""
        return self._mean[name] * self._spread[name]
