"""What all displays share: axes, colours, and what is said when matplotlib is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_opt.errors import OptionError
from lowrank_opt.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: distinguishable with any colour vision.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
GREY = "0.45"


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the axes, or new ones of a new figure.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    if ax is not None:
        return ax
    with extra("plots"):
        import matplotlib.pyplot as plt
    return plt.subplots(figsize=(5.4, 3.8), layout="constrained")[1]


def tidy(ax: Axes) -> None:
    """Leave out the frame's upper right, and draw a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.9", lw=0.8)
    ax.set_axisbelow(True)


def only_integers(ax: Axes) -> None:
    """Mark whole numbers on the horizontal axis."""
    with extra("plots"):
        from matplotlib.ticker import MaxNLocator
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def check_choice(name: str, choice: str, known: tuple[str, ...]) -> None:
    """Raise OptionError unless the choice is a known one."""
    if choice not in known:
        names = ", ".join(map(repr, known))
        raise OptionError(f"{name} must be {names}; got {name}={choice!r}")


def fitted(estimator: object, attribute: str) -> object:
    """Return what fitting left on an estimator.

    Raises
    ------
    OptionError
        If there is no such attribute.
    """
    found = getattr(estimator, attribute, None)
    if found is None:
        raise OptionError(
            f"a display needs a fitted estimator with {attribute}; got {type(estimator).__name__} "
            "without: call fit first"
        )
    return found
