"""A result in a notebook: a table and two small figures, in one piece of HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lowrank_opt.completion.loop.history import History
    from lowrank_opt.completion.loop.status import CompletionStatus
    from lowrank_opt.completion.model.bias import AdditiveBias
    from lowrank_opt.completion.model.ids import Ids
    from lowrank_opt.operator import LowRankOperator

_WIDTH, _HEIGHT, _MARGIN = 220, 110, 8
_POINTS = 200
_BLUE, _RED = "#0072B2", "#D55E00"
_CELL = "text-align:left;padding:1px 12px 1px 0;background:none"
_NAME = f"{_CELL};font-weight:normal;white-space:nowrap;opacity:0.7"


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
    figures = [_spectrum(result), _convergence(result)]
    return (
        '<div style="font-size:90%">'
        f"<strong>CompletionResult</strong> {_table(_rows(result))}"
        f'<div style="display:flex;flex-wrap:wrap;gap:16px">{"".join(figures)}</div></div>'
    )


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


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [
        f'<tr><th style="{_NAME}">{escape(name)}</th><td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    ]
    return f'<table style="border:none;margin:4px 0">{"".join(lines)}</table>'


def _spectrum(result: Shown) -> str:
    values = [x for x in result.operator.singular_values().double().tolist() if math.isfinite(x)]
    top = max(values, default=0.0)
    if not top > 0:
        return ""
    step = (_WIDTH - 2 * _MARGIN) / len(values)
    bars = [
        f'<rect x="{_MARGIN + k * step + 0.1 * step:.1f}" y="{_place(x / top):.1f}" '
        f'width="{0.8 * step:.2f}" height="{_place(0) - _place(x / top):.1f}" fill="{_BLUE}"/>'
        for k, x in enumerate(values)
    ]
    return _figure(f"singular values, the largest {top:.4g}", "".join(bars))


def _convergence(result: Shown) -> str:
    history = result.history
    curves = [
        _curve(history.objective, _BLUE),
        _curve(history.validation_rmse, _RED),
    ]
    if not any(curves):
        return ""
    words = [f'<span style="color:{_BLUE}">objective</span>'] if curves[0] else []
    words += [f'<span style="color:{_RED}">validation RMSE</span>'] if curves[1] else []
    steps = len(history) - 1
    return _figure(f"{' and '.join(words)} over {steps} steps", "".join(curves), marked_up=True)


def _curve(values: Sequence[float], colour: str) -> str:
    """Return a line from the largest to the smallest value; nothing without two of them."""
    known = [(k, x) for k, x in enumerate(values) if math.isfinite(x)]
    if len(known) < 2:
        return ""
    # A long history is thinned out; its last point stays.
    thinned = [*known[:: -(-len(known) // _POINTS)], known[-1]]
    low, high = min(x for _, x in known), max(x for _, x in known)
    span, last = (high - low) or 1.0, max(len(values) - 1, 1)
    points = " ".join(
        f"{_MARGIN + (_WIDTH - 2 * _MARGIN) * k / last:.1f},{_place((x - low) / span):.1f}"
        for k, x in thinned
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _place(share: float) -> float:
    """Return how far down a share of the height is, from the top."""
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)


def _figure(caption: str, content: str, *, marked_up: bool = False) -> str:
    base = _place(0)
    axis = (
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{base}" y2="{base}" '
        'stroke="currentColor" stroke-opacity="0.4"/>'
    )
    text = caption if marked_up else escape(caption)
    return (
        '<figure style="margin:0">'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f"{content}{axis}</svg>"
        f'<figcaption style="font-size:85%">{text}</figcaption></figure>'
    )
