"""Published orthogonal methods as named constructors of `Orthogonal`.

All turn the input side, ``W0 R``, as OFTv2 and PEFT do; R is orthogonal to rounding where theirs is
a truncated series, and the update is what R adds to the weight, which is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal, TurnMap
from lowrank_opt.parameterizations.turned.scaled_rotation import RotatedFrame, ScaledRotation
from lowrank_opt.parameterizations.turned.turns import Butterfly


def examples() -> Iterator[Example]:
    """Return the published rotations, for any shape of two inputs at least, and any rank."""

    def even(shape: tuple[int, int], rank: int) -> int:
        return min(2 * rank, min(shape) - min(shape) % 2)

    def whole(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64) -> Orthogonal:
        return oft(example_tensor(*shape, dtype=dtype))

    def between(
        shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64
    ) -> Orthogonal:
        return psoft(example_tensor(*shape, dtype=dtype), even(shape, rank))

    def pairs(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64) -> Orthogonal:
        return hra(example_tensor(*shape, dtype=dtype), even(shape, rank))

    def near(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64) -> Orthogonal:
        return oft(example_tensor(*shape, dtype=dtype), radius=1.0)

    yield Example(
        "oft(weight, blocks)",
        whole,
        "b n products a row, and one with the weight",
        "arXiv 2306.07280",
        "W0 (R - I), R block-diagonal without half turns: n (b - 1) / 2 dimensions",
    )
    yield Example(
        "oft(weight, blocks, radius)",
        near,
        "b n products a row, and one with the weight",
        "arXiv 2306.07280",
    )
    yield Example(
        "psoft(weight, 2 r)",
        between,
        "one 2 r x 2 r inverse, one thin product",
        "arXiv 2505.11235",
        "rotations of 2 r leading directions: r (2 r - 1) dimensions",
    )
    yield Example(
        "hra(weight, 2 r)",
        pairs,
        "2 r products with the weight",
        "arXiv 2405.17484",
        "products of 2 r reflections: at most 2 n r dimensions",
    )


def oft(
    weight: Tensor, *, blocks: int = 1, radius: float | None = None, map: TurnMap = "cayley"
) -> Orthogonal:
    """Return orthogonal fine-tuning: block-diagonal rotations of the inputs.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    blocks : int
        Divides n.
    radius : float, optional
        Bound on ``|R - I|``; COFT bounds the skew matrix after the step instead.
    map : {"cayley", "exponential"}

    References
    ----------
    Qiu et al., OFT (arXiv 2306.07280); rotated activations: OFTv2 (arXiv 2506.19847).

    Examples
    --------
    >>> oft(torch.randn(5, 8), blocks=2).skew.shape
    torch.Size([1, 2, 6])
    """
    return Orthogonal(weight, blocks=blocks, radius=radius, map=map)


def boft(
    weight: Tensor,
    *,
    blocks: int,
    stages: int = 2,
    radius: float | None = None,
    butterfly: Butterfly = "strides",
) -> Orthogonal:
    r"""Return butterfly orthogonal fine-tuning: a product of `stages` block rotations.

    Its image is not all of the orthogonal matrices unless one block has all coordinates.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    blocks : int
        b = n / blocks, and ``b ** stages`` divides n.
    stages : int
    radius : float, optional
        Of each stage: distances add up.
    butterfly : {"strides", "halves"}
        Published are halves of blocks, which connect all coordinates in
        :math:`1 + \log_2 (n / b)` stages; strides do so in :math:`\log_b n`. See `Orthogonal`.

    References
    ----------
    Liu et al., BOFT (arXiv 2311.06243).

    Examples
    --------
    >>> boft(torch.randn(5, 8), blocks=4, stages=3).distance()
    0.0
    """
    return Orthogonal(weight, blocks=blocks, stages=stages, radius=radius, butterfly=butterfly)


def goft(weight: Tensor, *, radius: float | None = None) -> Orthogonal:
    """Return Givens orthogonal fine-tuning: rotations of pairs in as many rounds as n has twos.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        n even; log2(n) rounds for a power of two, which connect all coordinates.
    radius : float, optional
        Of each round.

    Raises
    ------
    OptionError
        If n is odd.

    References
    ----------
    Ma et al., GOFT (arXiv 2404.04316).

    Examples
    --------
    >>> goft(torch.randn(5, 8)).skew.shape
    torch.Size([3, 4, 1])
    """
    n = weight.shape[1]
    if n % 2:
        raise OptionError(f"rotations of pairs need an even number of inputs; got {n}: use oft")
    rounds = (n & -n).bit_length() - 1
    return Orthogonal(weight, blocks=n // 2, stages=rounds, radius=radius)


def hra(weight: Tensor, rank: int, *, generator: torch.Generator | None = None) -> Orthogonal:
    """Return Householder reflection adaptation: a product of `rank` reflections of the inputs.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
        Even: pairs start equal, so that R = I.
    generator : torch.Generator, optional

    References
    ----------
    Yuan et al., HRA (arXiv 2405.17484).

    Examples
    --------
    >>> hra(torch.randn(5, 8), 4)().to_dense().abs().max().item()
    0.0
    """
    return Orthogonal(weight, map="householder", rank=rank, generator=generator)


@overload
def psoft(weight: Tensor, rank: int, *, radius: float | None = None) -> Orthogonal: ...


@overload
def psoft(
    weight: Tensor,
    rank: int,
    *,
    radius: float | None = None,
    scales: Literal[True],
    frame: RotatedFrame = "right",
) -> ScaledRotation: ...


def psoft(
    weight: Tensor,
    rank: int,
    *,
    radius: float | None = None,
    scales: bool = False,
    frame: RotatedFrame = "right",
) -> Orthogonal | ScaledRotation:
    """Return PSOFT: a rotation between the `rank` leading right singular vectors of the weight.

    Without its two trained vectors by default, which are not orthogonal and have no bound.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
    radius : float, optional
        Bound on ``|R - I|``.
    scales : bool
        Whether the two vectors are trained too.
    frame : {"right", "balanced"}
        With scales, where the singular values stand: see `ScaledRotation`.

    References
    ----------
    PSOFT (arXiv 2505.11235).

    Examples
    --------
    >>> psoft(torch.randn(5, 8), 3).rank
    3
    >>> [name for name, _ in psoft(torch.randn(5, 8), 3, scales=True).named_parameters()]
    ['skew', 'before', 'after']
    """
    if scales:
        return ScaledRotation(weight, rank, frame=frame, radius=radius)
    if frame != "right":
        raise OptionError(f"a frame goes with scales; got frame={frame!r}: pass scales=True")
    return Orthogonal(weight, rank=rank, radius=radius)
