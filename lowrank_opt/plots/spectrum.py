"""The singular values of a completed matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.plots.canvas import BLUE, GREY, axes_or_new, fitted, only_integers, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowrank_opt.completion import CompletionResult

_WIDE = 50.0


class SpectrumDisplay:
    r"""Singular values, largest first, and how many of them count.

    Parameters
    ----------
    singular_values : array, shape (r,)
        Decreasing.

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure

    Examples
    --------
    >>> import torch
    >>> operator = LowRankOperator(torch.eye(4, 2), torch.tensor([3.0, 1.0]), torch.eye(5, 2))
    >>> display = SpectrumDisplay.from_result(operator)
    >>> display.singular_values.tolist(), round(display.effective_rank, 3)
    ([3.0, 1.0], 1.755)
    """

    ax_: Axes
    figure_: Figure

    def __init__(self, singular_values: NDArray[np.floating]) -> None:
        self.singular_values: NDArray[np.float64] = np.asarray(singular_values, dtype=np.float64)

    @classmethod
    def from_result(cls, result: CompletionResult | LowRankOperator) -> SpectrumDisplay:
        """Return the display of a result, or of an operator."""
        operator = result if isinstance(result, LowRankOperator) else result.operator
        return cls(operator.detach().singular_values().double().cpu().numpy())

    @classmethod
    def from_estimator(cls, estimator: object) -> SpectrumDisplay:
        """Return the display of a fitted estimator with a ``result_``."""
        return cls.from_result(fitted(estimator, "result_"))  # pyright: ignore[reportArgumentType]

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values' shares; 0 for a zero matrix.

        References
        ----------
        O. Roy and M. Vetterli, The effective rank (EUSIPCO 2007), definition 1.
        """
        total = self.singular_values.sum()
        if not total > 0:
            return 0.0
        shares = self.singular_values / total
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def plot(self, ax: Axes | None = None) -> SpectrumDisplay:
        """Draw it: on a logarithmic scale if the values span more than a factor of 50."""
        ax = axes_or_new(ax)
        values = self.singular_values
        positive = values[values > 0]
        index = np.arange(1, len(values) + 1)
        ax.vlines(index, 0, values, color=BLUE, lw=1, alpha=0.35)
        ax.plot(index, values, "o", color=BLUE, ms=4.5)
        if len(positive) > 0 and positive.max() > _WIDE * positive.min():
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        only_integers(ax)
        tidy(ax)
        ax.set(xlabel="index", ylabel="singular value")
        text = f"nuclear norm {values.sum():.4g}\neffective rank {self.effective_rank:.1f}"
        ax.text(
            0.97, 0.95, text, transform=ax.transAxes, ha="right", va="top", color=GREY, fontsize=9
        )
        self.ax_, self.figure_ = ax, ax.get_figure()  # pyright: ignore[reportAttributeAccessIssue]
        return self
