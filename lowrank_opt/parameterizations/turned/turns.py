"""Rotations of blocks of coordinates: which coordinates, and how products come apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError, ShapeError

Butterfly = Literal["strides", "halves"]


def butterfly_order(
    n: int, b: int, stage: int, device: torch.device, butterfly: Butterfly = "strides"
) -> Tensor | None:
    """Return which coordinates stand in the blocks of a stage; None for those of the first one.

    Blocks of the first stage are of neighbours. Later on they are, by "strides", those
    ``b ** stage`` apart; or, by "halves", two runs of b / 2 neighbours ``b / 2 * 2 ** stage``
    apart, as BOFT has them.

    Examples
    --------
    >>> butterfly_order(8, 2, 1, torch.device("cpu")).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    >>> butterfly_order(8, 4, 1, torch.device("cpu"), "halves").tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    if stage == 0:
        return None
    indices = torch.arange(n, device=device)
    if butterfly == "strides":
        return indices.view(-1, b, b**stage).transpose(1, 2).flatten()
    return indices.view(-1, 2, 2**stage, b // 2).transpose(1, 2).flatten()


def check_blocks(n: int, blocks: int, stages: int, butterfly: Butterfly) -> int:
    """Return the size b of blocks; refuse one that the stages cannot be made of.

    Raises
    ------
    ShapeError
        If there are fewer than two inputs: nothing turns.
    OptionError
        Unless blocks of two coordinates at least divide n, and the butterfly fits: ``b ** stages``,
        or an even b times ``2 ** (stages - 1)``, divides n.
    """
    if n < 2:
        raise ShapeError(f"a rotation needs at least 2 inputs; got {n}: give a wider weight")
    b = n // blocks
    whole = b**stages if butterfly == "strides" else b * 2 ** (stages - 1)
    odd = butterfly == "halves" and stages > 1 and b % 2
    if n % blocks or b < 2 or n % whole or odd:
        rule = "b ** stages" if butterfly == "strides" else "b 2 ** (stages - 1), b even,"
        raise OptionError(
            f"blocks must divide the {n} inputs into blocks of b >= 2, and {rule} divide "
            f"them; got blocks={blocks}, stages={stages}"
        )
    return b


def butterfly_factors(R: Tensor, b: int, stages: int, butterfly: Butterfly) -> list[Tensor]:
    r"""Return the stages of a butterfly whose product is nearest to R, stage by stage.

    Rows of one block of the first stage and columns of one digit of the later ones are a product
    of h columns of that block and h rows of what is left, h = 1 for strides and b / 2 for halves,
    both orthonormal: a leading singular space tells them, up to a rotation of h dimensions, taken
    so that diagonal blocks of the factor are positive semidefinite. A product of strides whose
    factors are within :math:`\sqrt 2` of the identity therefore comes apart into these factors;
    of halves, or further away, into others of the same product.

    Parameters
    ----------
    R : Tensor, shape (n, n)
        Orthogonal, float64.
    b, stages, butterfly
        As in `check_blocks`.

    Returns
    -------
    list of Tensor, shapes (n / b, b, b)
        Orthogonal; as a map from R exact for products of a butterfly only.

    References
    ----------
    Zheng, Riccietti and Gribonval (2023), hierarchical identifiability of butterflies.

    Examples
    --------
    >>> R = torch.eye(4, dtype=torch.float64)
    >>> [x.shape for x in butterfly_factors(R, 2, 2, "strides")]
    [torch.Size([2, 2, 2]), torch.Size([2, 2, 2])]
    """
    digits, h = (b, 1) if butterfly == "strides" else (2, b // 2)
    # What is left, for each value of the digits that are done; the first one runs fastest.
    left, factors = R.unsqueeze(0), list[Tensor]()
    for _ in range(stages - 1):
        blocks, left = _split_stage(left, digits, h)
        factors.append(blocks)
    count = left.shape[-1] // b
    diagonal = torch.stack(
        [left[:, k * b : (k + 1) * b, k * b : (k + 1) * b] for k in range(count)]
    )
    return [_polar(x) for x in (*factors, diagonal.flatten(0, 1))]


def _split_stage(R: Tensor, digits: int, h: int) -> tuple[Tensor, Tensor]:
    """Return the blocks of the first stage and the matrices of the later ones, by digit."""
    done, size = R.shape[0], R.shape[-1]
    P, b = size // (digits * h), digits * h
    # done, p, (digit, t) by q, (p', t').
    X = R.reshape(done, P, b, P, digits, h).permute(0, 1, 4, 2, 3, 5).flatten(4)
    U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
    U, rest = U[..., :h], sigma[..., :h, None] * Vh[..., :h, :]
    q = torch.arange(digits, device=R.device)
    own = U.unflatten(3, (digits, h))[:, :, q, q]
    G = _polar(own).mT
    # Columns of blocks: done, p, (digit, t), (q, t').
    blocks = (U @ G).permute(0, 1, 3, 2, 4).flatten(3)
    # Blocks are counted by p, then by the digits that are done.
    blocks = blocks.transpose(0, 1).flatten(0, 1)
    rest = (G.mT @ rest).permute(2, 0, 1, 3, 4).flatten(3).reshape(digits, done, P * h, P * h)
    return blocks, rest.flatten(0, 1)


def _polar(x: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(x)
    return U @ Vh
