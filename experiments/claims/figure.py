"""The figure of one claim: its effects with their intervals, as SVG that any page can hold."""

import math
from collections.abc import Callable, Sequence
from html import escape

from experiments.claims.finding import Effect, Finding

# In pixels of a phone: text of 12 stays readable where the page is 360 wide.
WIDTH, LEFT, RIGHT, ROW, AXIS = 320, 8, 312, 34, 20
COLOURS = {True: "#0a8f63", False: "#d0561b", None: "#8a8a8a"}


def figure(finding: Finding) -> str:
    """Return the figure, one line for each effect; empty if there is none."""
    effects = [e for e in finding.effects if math.isfinite(e.value)]
    if not effects:
        return ""
    low, high = _range(finding, effects)
    place = _scale(low, high, logarithmic=finding.logarithmic)
    bottom = ROW * len(effects) + 4
    parts = [_axis(place, low, high, bottom, finding)]
    parts += [_line(effect, place, ROW * k) for k, effect in enumerate(effects)]
    said = "; ".join(f"{e.label}: {in_words(e)}" for e in effects)
    return (
        f'<svg class="effects" role="img" aria-label="{escape(said)}" '
        f'viewBox="0 0 {WIDTH} {bottom + AXIS}" font-size="12" fill="currentColor">'
        + "".join(parts)
        + "</svg>"
    )


def in_words(effect: Effect) -> str:
    """Return the value and its interval.

    Examples
    --------
    >>> in_words(Effect("x", 1.25, 0.5, 2.0))
    '1.25 (0.5 to 2)'
    """
    if not effect.has_interval:
        return number(effect.value)
    return f"{number(effect.value)} ({number(effect.low)} to {number(effect.high)})"


def number(value: float) -> str:
    """Return three digits.

    Examples
    --------
    >>> number(12.3456), number(-0.0), number(4.2e-8)
    ('12.3', '0', '4.2e-08')
    """
    return f"{value + 0.0:.3g}"


def _range(finding: Finding, effects: Sequence[Effect]) -> tuple[float, float]:
    ends = [x for e in effects for x in (e.value, e.low, e.high) if math.isfinite(x)]
    low, high = min([*ends, finding.reference]), max([*ends, finding.reference])
    return (low, high) if high > low else (low - 1, high + 1)


def _scale(low: float, high: float, *, logarithmic: bool) -> Callable[[float], float]:
    def place(value: float) -> float:
        if logarithmic:
            share = math.log(value / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        return LEFT + 4 + share * (RIGHT - LEFT - 8)

    return place


def _axis(
    place: Callable[[float], float], low: float, high: float, bottom: float, finding: Finding
) -> str:
    zero = place(finding.reference)
    ticks = {low: "start", high: "end"}
    # The value of no effect, where its number has room.
    if LEFT + 60 < zero < RIGHT - 60:
        ticks[finding.reference] = "middle"
    texts = "".join(
        f'<text x="{LEFT if a == "start" else RIGHT if a == "end" else zero:.1f}" '
        f'y="{bottom + 16}" text-anchor="{a}">{number(x)}</text>'
        for x, a in ticks.items()
    )
    return (
        f'<path d="M{LEFT} {bottom}H{RIGHT}" stroke="currentColor" opacity=".5"/>'
        f'<path d="M{zero:.1f} 0V{bottom}" stroke="currentColor" stroke-dasharray="3 3" '
        f'opacity=".6"/>{texts}'
    )


def _line(effect: Effect, place: Callable[[float], float], top: float) -> str:
    colour = "currentColor" if effect.beside else COLOURS[effect.holds]
    y = top + 24
    text = f'<text x="{LEFT}" y="{top + 13}" class="label">{escape(effect.label)}</text>'
    bar = ""
    if effect.has_interval:
        a, b = place(effect.low), place(effect.high)
        bar = f'<path d="M{a:.1f} {y}H{b:.1f}" stroke="{colour}" stroke-width="3" opacity=".55"/>'
    return text + bar + _mark(effect, place(effect.value), y, colour)


def _mark(effect: Effect, x: float, y: float, colour: str) -> str:
    """Draw what holds as a disc, what does not as a square, what is undecided as a ring."""
    if effect.beside or effect.holds is None:
        return (
            f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    if effect.holds:
        return f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}"/>'
    return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5}" width="9" height="9" fill="{colour}"/>'
