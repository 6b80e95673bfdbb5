"""AdaLoRA's running importance of the entries of parameters."""

from __future__ import annotations

import torch
from torch import Tensor


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
        self.beta1: float
        self.beta2: float
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
