"""A result in a notebook: a table and two small figures, in one piece of HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from lowrank_opt.completion.loop.history import History
    from lowrank_opt.completion.loop.status import CompletionStatus
    from lowrank_opt.completion.model.bias import AdditiveBias
    from lowrank_opt.completion.model.ids import Ids
    from lowrank_opt.operator import LowRankOperator

_WIDTH, _HEIGHT, _MARGIN = 220, 110, 8
_POINTS = 200
_BLUE, _RED = "#0072B2", "#D55E00"
# Jinja2, which torch brings, escapes what it fills in.
_PAGE = """\
<div style="font-size:90%"><strong>CompletionResult</strong>
<table style="border:none;margin:4px 0">
{%- set cell = "text-align:left;padding:1px 12px 1px 0;background:none" %}
{%- for name, value in rows %}
<tr><th style="{{ cell }};font-weight:normal;white-space:nowrap;opacity:0.7">{{ name }}</th>
<td style="{{ cell }}">{{ value }}</td></tr>
{%- endfor %}
</table>
<div style="display:flex;flex-wrap:wrap;gap:16px">
{%- for figure in figures %}
<figure style="margin:0">
<svg xmlns="http://www.w3.org/2000/svg" width="{{ width }}" height="{{ height }}" role="img">
{%- for x, y, w, h in figure.bars %}
<rect x="{{ x }}" y="{{ y }}" width="{{ w }}" height="{{ h }}" fill="{{ blue }}"/>
{%- endfor %}
{%- for curve in figure.curves %}
<polyline points="{{ curve.points }}" fill="none" stroke="{{ curve.colour }}" stroke-width="1.6"/>
{%- endfor %}
<line x1="{{ margin }}" x2="{{ width - margin }}" y1="{{ base }}" y2="{{ base }}"
 stroke="currentColor" stroke-opacity="0.4"/></svg>
<figcaption style="font-size:85%">
{%- for curve in figure.curves %}
{%- if not loop.first %} and {% endif -%}
<span style="color:{{ curve.colour }}">{{ curve.name }}</span>
{%- endfor %}{{ figure.caption }}</figcaption></figure>
{%- endfor %}
</div></div>
"""


class Curve(NamedTuple):
    """A line in a figure, and its name in the caption."""

    name: str
    colour: str
    points: str


class Figure(NamedTuple):
    """What a figure shows: bars (x, y, width, height), curves, and a caption."""

    bars: Sequence[tuple[str, str, str, str]]
    curves: Sequence[Curve]
    caption: str


class Shown(Protocol):
    """What is read of a result: this file is imported by that of results, and imports it not."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        ...

    @property
    def operator(self) -> LowRankOperator:
        """The matrix."""
        ...

    @property
    def bias(self) -> AdditiveBias:
        """The additive part."""
        ...

    @property
    def status(self) -> CompletionStatus:
        """Why the iteration stopped."""
        ...

    @property
    def history(self) -> History:
        """How it went."""
        ...

    @property
    def row_ids(self) -> Ids | None:
        """Names of the rows."""
        ...

    @property
    def col_ids(self) -> Ids | None:
        """Names of the columns."""
        ...


def to_html(result: Shown) -> str:
    """Return HTML that needs nothing from elsewhere: no script, no style sheet, no image."""
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    figures = [x for x in (_spectrum(result), _convergence(result)) if x is not None]
    text = page.render(
        rows=_rows(result),
        figures=figures,
        width=_WIDTH,
        height=_HEIGHT,
        margin=_MARGIN,
        base=_place(0),
        blue=_BLUE,
    )
    return text.replace(">\n<", "><")


def _rows(result: Shown) -> list[tuple[str, str]]:
    m, n = result.shape
    history, operator = result.history, result.operator
    rows = [
        ("matrix", f"{m} × {n}, {str(operator.dtype).removeprefix('torch.')}"),
        ("rank", f"at most {operator.rank}"),
        ("nuclear norm", f"{float(operator.schatten_norm(1)):.6g}"),
        ("mean", f"{result.bias.mean:.6g}"),
        ("status", result.status.value),
    ]
    if len(history) > 0:
        steps, seconds = len(history) - 1, history.seconds[-1]
        fall = f"{history.objective[0]:.6g} → {history.objective[-1]:.6g}"
        rows.append(("objective", f"{fall} in {steps} steps, {seconds:.2f} s"))
    errors = [x for x in history.validation_rmse if not math.isnan(x)]
    if errors:
        rows.append(("validation RMSE", f"{min(errors):.4f}"))
    ids = [name for name, x in (("rows", result.row_ids), ("columns", result.col_ids)) if x]
    return rows + ([("ids", f"of {' and '.join(ids)}")] if ids else [])


def _spectrum(result: Shown) -> Figure | None:
    values = [x for x in result.operator.singular_values().double().tolist() if math.isfinite(x)]
    top = max(values, default=0.0)
    if not top > 0:
        return None
    step = (_WIDTH - 2 * _MARGIN) / len(values)
    bars = [
        (
            f"{_MARGIN + k * step + 0.1 * step:.1f}",
            f"{_place(x / top):.1f}",
            f"{0.8 * step:.2f}",
            f"{_place(0) - _place(x / top):.1f}",
        )
        for k, x in enumerate(values)
    ]
    return Figure(bars, (), f"singular values, the largest {top:.4g}")


def _convergence(result: Shown) -> Figure | None:
    history = result.history
    drawn = [
        Curve(name, colour, _points(values))
        for name, colour, values in (
            ("objective", _BLUE, history.objective),
            ("validation RMSE", _RED, history.validation_rmse),
        )
    ]
    curves = [curve for curve in drawn if curve.points]
    return Figure((), curves, f" over {len(history) - 1} steps") if curves else None


def _points(values: Sequence[float]) -> str:
    """Return a line from the largest to the smallest value; nothing without two of them."""
    known = [(k, x) for k, x in enumerate(values) if math.isfinite(x)]
    if len(known) < 2:
        return ""
    # A long history is thinned out; its last point stays.
    thinned = [*known[:: -(-len(known) // _POINTS)], known[-1]]
    low, high = min(x for _, x in known), max(x for _, x in known)
    span, last = (high - low) or 1.0, max(len(values) - 1, 1)
    return " ".join(
        f"{_MARGIN + (_WIDTH - 2 * _MARGIN) * k / last:.1f},{_place((x - low) / span):.1f}"
        for k, x in thinned
    )


def _place(share: float) -> float:
    """Return how far down a share of the height is, from the top."""
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
