"""How large the tiles of the kernels are, and how many programs must fit on a multiprocessor.

The tests compile every kernel for three generations of GPUs and hold the compiler's report, its
registers and its shared memory, to what is stated here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Numbers of a line of vectors are read sixteen bytes at a time: lines are padded to a multiple.
ALIGNED = 8
# Numbers of a vector that a program holds at once.
WIDEST = 128
# Means of a posterior in float64, and of a draw: factors, the constant one and the bias.
WIDEST_POSTERIOR, WIDEST_DRAW = 64, 32
# Groups of at most so many entries share a program with others.
SHORT = 32
# Longer groups are cut into pieces of so many entries.
PIECE = 8192


# Columns that one program ranks, the most that are kept of them, and how many more than asked for.
RANKED_PIECE, MOST_RANKED, SPARE = 16384, 64, 4


class Tile(NamedTuple):
    """The shape of what a program holds at a time.

    Parameters
    ----------
    rows : int
        Groups of a program.
    entries : int
        Entries of each, at a time.
    width : int
        Numbers of a vector, a power of two.
    warps : int
    resident : int
        Warps that fit on a multiprocessor at least, of all programs together.
    """

    rows: int
    entries: int
    width: int
    warps: int
    resident: int


def power_of_two(size: int, least: int = 1) -> int:
    """Return the smallest power of two that is neither below `size` nor below `least`.

    Examples
    --------
    >>> power_of_two(65), power_of_two(3, least=16)
    (128, 16)
    """
    return max(least, 1 << max(size - 1, 0).bit_length())


def vector_tiles(width: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Return the tiles of the passes over vectors, of short groups and of longer ones.

    Examples
    --------
    >>> [(tile.rows, tile.entries) for tile in vector_tiles(64, torch.float32)]
    [(4, 8), (1, 32)]
    """
    numbers = 1024 if dtype == torch.float64 else 2048
    block = min(power_of_two(width, 16), WIDEST)
    short = Tile(max(1, numbers // (8 * block)), 8, block, 4, 8)
    return short, Tile(1, numbers // block, block, 4, 16)


def gram_tile(width: int) -> Tile:
    """Return the tile of the normal equations of one row.

    Examples
    --------
    >>> gram_tile(65).width
    128
    """
    block = power_of_two(width, 16)
    warps, resident = {16: (1, 16), 32: (2, 12), 64: (8, 8), 128: (8, 8)}[block]
    return Tile(1, 16 if block == WIDEST else 32, block, warps, resident)


def widest_gram(dtype: torch.dtype) -> int:
    """Return the largest number of unknowns whose system fits into the registers of a program.

    Examples
    --------
    >>> widest_gram(torch.bfloat16), widest_gram(torch.float64)
    (128, 64)
    """
    return WIDEST // 2 if dtype == torch.float64 else WIDEST


def solve_dtype(width: int, dtype: torch.dtype) -> torch.dtype:
    """Return in which precision normal equations are solved: float64 where they fit, else float32.

    Examples
    --------
    >>> solve_dtype(64, torch.float32), solve_dtype(65, torch.float32)
    (torch.float64, torch.float32)
    """
    return torch.float32 if width > WIDEST // 2 and dtype != torch.float64 else torch.float64


def posterior_tile(width: int) -> Tile:
    """Return the tile of the posterior of one row, of so many means.

    Examples
    --------
    >>> posterior_tile(18).width
    32
    """
    block = power_of_two(width, 16)
    warps, resident = {16: (2, 12), 32: (8, 16), 64: (8, 8)}[block]
    return Tile(1, 1, block, warps, resident)


class RankingTile(NamedTuple):
    """The shape of what a program ranks: `rows` rows, `cols` columns at a time, `top` kept."""

    rows: int
    cols: int
    width: int
    top: int
    warps: int
    resident: int


def ranking_tile(width: int, count: int) -> RankingTile:
    """Return the tile of a ranking of so many columns by vectors of a width.

    Examples
    --------
    >>> ranking_tile(20, 14)[:4]
    (16, 64, 32, 16)
    """
    block, top = power_of_two(width, 16), power_of_two(count, 16)
    return RankingTile(16, 64, block, top, 8 if max(block, top) > 32 else 4, 8)
