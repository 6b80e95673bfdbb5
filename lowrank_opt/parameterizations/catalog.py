"""Every method of this package in one table, read off an instance of each.

What the columns say is asked of the code: the rank and the norm of the declared set, whether the
map is onto it, and W after the zero start. Only cost, image and reference are written down.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from lowrank_opt import parameterizations as maps
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.config import Configured
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.parameterizations.published import compositions, presets, rotations, starts
from lowrank_opt.parameterizations.published.agreement import agreement

# Large enough that 4 r is below min(m, n): ranks are told apart.
_SHAPE, _RANK = (15, 14), 3


@dataclass(frozen=True)
class Row:
    """What the table says of one method, each a short text.

    Attributes
    ----------
    method, rank, norm, onto, zero_start, cost, export_rank, agrees, reference : str
    """

    method: str
    rank: str
    norm: str
    onto: str
    zero_start: str
    cost: str
    export_rank: str
    agrees: str
    reference: str


def examples() -> list[Example]:
    """Return the examples of every class of this package, of its compositions and presets.

    Examples
    --------
    >>> "HomogeneousBall(radius, p)" in [example.name for example in examples()]
    True
    """
    exported = [x for x in vars(maps).values() if isinstance(x, type)]
    own = (x for x in exported if issubclass(x, Configured) and not inspect.isabstract(x))
    of_classes = (example for x in own for example in x.examples())
    published = (compositions, presets, rotations, starts)
    return [*of_classes, *(example for module in published for example in module.examples())]


def rows() -> list[Row]:
    """Return the table: a line for each example, those with the same norm together.

    Examples
    --------
    >>> {row.method: row.norm for row in rows()}["SpectralLoRA(radius)"]
    'spectral'
    """
    return sorted(map(row_of, filter(lambda x: x.listed, examples())), key=_family)


def _family(row: Row) -> tuple[bool, int, str, str]:
    norms = ("none", "nuclear", "Frobenius", "spectral", "Schatten p", "Ky Fan")
    place = norms.index(row.norm) if row.norm in norms else len(norms)
    return row.onto != "yes", place, row.norm, row.method.lower()


def row_of(method: Example) -> Row:
    """Return the line of one method."""
    module = method.make(_SHAPE, _RANK, dtype=torch.float64)
    if not isinstance(module, Parameterization):
        return _row(method, "none", "rows of the sum", onto=False, zero="exact", export="none")
    rank = in_units(module.feasible_set.rank)
    zero = "exact" if starts_at_zero(module) else "none"
    norm = module.feasible_set.norm_name
    return _row(method, rank, norm, onto=module.complete, zero=zero, export=rank)


def _row(method: Example, rank: str, norm: str, *, onto: bool, zero: str, export: str) -> Row:
    reached = "yes" if onto else f"no; {method.image}"
    agrees = agreement(method.name)
    return Row(
        method.name, rank, norm, reached, zero, method.cost, export, agrees, method.reference
    )


def in_units(rank: int) -> str:
    """Return a rank of the example as a multiple of r, or that it is not bounded.

    Examples
    --------
    >>> in_units(6)
    '2 r'
    """
    if rank == min(_SHAPE):
        return "any"
    return "r" if rank == _RANK else f"{rank // _RANK} r"


def starts_at_zero(module: Parameterization) -> bool:
    """Return whether `zero_` gives W = 0 in every entry; False if there is no such start."""
    try:
        op = module.zero_().factors().detach()
    except NotImplementedError:
        return False
    rows = torch.arange(op.shape[0]).repeat_interleave(op.shape[1])
    cols = torch.arange(op.shape[1]).repeat(op.shape[0])
    return not bool(op.entries(rows, cols).any())


def markdown() -> str:
    """Return the table as Markdown, ending with a newline.

    Examples
    --------
    >>> markdown().splitlines()[0].startswith("| method | rank at most |")
    True
    """
    head = ("method", "rank at most", "norm bounded", "onto its set", "zero start",
            "extra cost", "LoRA rank for export", "agrees with", "reference")  # fmt: skip
    lines = [head, tuple(":--" for _ in head)]
    lines += [(f"`{row.method}`", *_cells(row)) for row in rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    said = (row.rank, row.norm, row.onto, row.zero_start, row.cost, row.export_rank)
    return (*said, row.agrees, row.reference)
