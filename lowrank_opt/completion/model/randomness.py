"""Random starts that are the same wherever the entries are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from torch import Tensor

# Sixteens of lines that are drawn at a time.
_LINES = 1 << 12


def normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    *,
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return standard normal numbers where a tensor is, drawn where the generator is.

    Without a generator, from that of the CPU: a seed gives the same numbers on every device.

    Parameters
    ----------
    shape : tuple of int
    generator : torch.Generator or None
    like : Tensor
        Its device is taken, and its dtype.
    dtype : torch.dtype, optional
        Instead.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> normal((2, 3), generator, like=torch.zeros(())).shape
    torch.Size([2, 3])
    """
    where = torch.device("cpu") if generator is None else generator.device
    kind = like.dtype if dtype is None else dtype
    return torch.randn(shape, generator=generator, dtype=kind, device=where).to(like.device)


def normal_lines(
    sizes: tuple[int, ...],
    held: tuple[slice, ...],
    generator: torch.Generator | None,
    *,
    width: int,
    like: Tensor,
) -> list[Tensor]:
    """Return some lines of matrices of standard normal numbers, drawn one after another.

    Those that `normal` returns for all lines at once, a block at a time on the CPU: no more than
    what is returned, and a block, is in memory.

    Parameters
    ----------
    sizes : tuple of int
        Lines of each matrix.
    held : tuple of slice
        Which lines of each are wanted.
    generator : torch.Generator or None
    width : int
    like : Tensor

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> whole = torch.randn(9, 4, generator=generator)
    >>> held, again = (slice(1, 3), slice(0, 4)), generator.manual_seed(0)
    >>> parts = normal_lines((5, 4), held, again, width=4, like=whole)
    >>> torch.equal(torch.cat(parts), torch.cat((whole[1:3], whole[5:])))
    True
    """
    where = torch.device("cpu") if generator is None else generator.device
    starts = [0, *accumulate(sizes)]
    found: list[list[Tensor]] = [[like.new_empty(0, width)] for _ in sizes]
    for first, last in _line_blocks(starts[-1], width, at_once=where.type != "cpu"):
        block = normal((last - first, width), generator, like=like)
        for parts, start, span in zip(found, starts, held, strict=False):
            a, b = max(start + span.start, first), min(start + span.stop, last)
            if b > a:
                # Even an empty view would keep its block.
                parts.append(block[a - first : b - first])
    # One matrix is put together at a time, its blocks gone before the next one.
    return [torch.cat(found.pop(0)) for _ in sizes]


def stream(generator: torch.Generator | None) -> Tensor | None:
    """Return where a generator is, to `go_on` from there; None for that of the CPU.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> place, first = stream(generator), float(torch.rand((), generator=generator))
    >>> go_on(generator, place)
    >>> first == float(torch.rand((), generator=generator))
    True
    """
    return None if generator is None else generator.get_state()


def go_on(generator: torch.Generator | None, place: Tensor | None) -> None:
    """Let a generator go on from where it was."""
    if generator is not None and place is not None:
        generator.set_state(place.cpu())


def _line_blocks(lines: int, width: int, *, at_once: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges of lines that are drawn together.

    Of sixteen numbers or more, torch draws sixteen at a time, and the last sixteen once more.
    """
    step = lines if at_once else _LINES * 16
    ends = [*range(step, lines, step), lines]
    if len(ends) > 1 and (lines - ends[-2]) * width < 16:
        del ends[-2]
    yield from pairwise([0, *ends])
