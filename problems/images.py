"""Photographs with missing pixels, as matrices to complete.

The photographs are the sample images of scikit-learn, so nothing is fetched. The three channels lie
side by side in one matrix of shape (m, 3 n): they share row spaces, and one mask hides a pixel in
all of them.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from lowrank_opt.errors import DataError, ObservationError, OptionError, ShapeError
from lowrank_opt.observations import Observations

PHOTOGRAPHS = ("china", "flower")


def photograph(name: str = "china", *, shrink: int = 2) -> Tensor:
    """Load a photograph, made smaller by the mean over squares of pixels.

    Parameters
    ----------
    name : str
        ``"china"`` or ``"flower"``, both of 427 x 640 pixels.
    shrink : int
        Side of the squares, in 1..427; rows and columns that fill no square are cut off.

    Returns
    -------
    Tensor, shape (427 // shrink, 640 // shrink, 3)
        float64 in [0, 1].

    Raises
    ------
    DataError
        If there is no such photograph.
    OptionError
        If `shrink` is not in its range.

    Examples
    --------
    >>> photograph("china", shrink=4).shape
    torch.Size([106, 160, 3])
    """
    if name not in PHOTOGRAPHS:
        raise DataError(f"photograph must be one of {', '.join(PHOTOGRAPHS)}; got {name!r}")
    if not 1 <= shrink <= 427 or int(shrink) != shrink:
        raise OptionError(f"shrink must be an integer in 1..427; got {shrink!r}; 1 keeps the size")
    from sklearn.datasets import load_sample_image

    pixels = np.asarray(load_sample_image(f"{name}.jpg"), dtype=np.float64) / 255.0
    m, n = pixels.shape[0] // shrink, pixels.shape[1] // shrink
    squares = pixels[: m * shrink, : n * shrink].reshape(m, shrink, n, shrink, 3)
    return torch.from_numpy(squares.mean(axis=(1, 3)))


def random_mask(
    size: tuple[int, int], observed: float, *, generator: Generator | None = None
) -> Tensor:
    """Choose pixels uniformly among all sets of their number: missing completely at random.

    Parameters
    ----------
    size : tuple of int
        (m, n), in pixels.
    observed : float
        Share of the pixels that is seen, rounded to a whole number; in (0, 1].
    generator : torch.Generator, optional
        On the CPU; torch's global one if left out.

    Returns
    -------
    Tensor of bool, shape (m, n)
        True where a pixel is seen.

    Raises
    ------
    OptionError
        If the share is not in (0, 1].
    ObservationError
        If it comes to no pixel.
    """
    if not 0.0 < observed <= 1.0:
        raise OptionError(f"observed must be a share in (0, 1]; got {observed!r}")
    m, n = size
    count = round(observed * m * n)
    if count == 0:
        raise ObservationError(f"a pixel at least must be seen; got {observed!r} of {m} x {n}")
    mask = torch.zeros(m * n, dtype=torch.bool)
    mask[torch.randperm(m * n, generator=generator)[:count]] = True
    return mask.reshape(m, n)


def block_mask(
    size: tuple[int, int], *, blocks: int = 10, side: int = 16, generator: Generator | None = None
) -> Tensor:
    """Hide squares at uniform places, which may overlap.

    Parameters
    ----------
    size : tuple of int
        (m, n), in pixels.
    blocks : int
        Number of squares; not negative.
    side : int
        Of a square, in 1..min(m, n).
    generator : torch.Generator, optional
        As in `random_mask`.

    Returns
    -------
    Tensor of bool, shape (m, n)
        True where a pixel is seen.

    Raises
    ------
    OptionError
        If a square does not fit, or the number is negative.
    """
    m, n = size
    if blocks < 0 or not 1 <= side <= min(m, n):
        raise OptionError(
            f"blocks must not be negative and side in 1..{min(m, n)}; got {blocks} of side {side}"
        )
    mask = torch.ones(m, n, dtype=torch.bool)
    tops = torch.randint(m - side + 1, (blocks,), generator=generator).tolist()
    lefts = torch.randint(n - side + 1, (blocks,), generator=generator).tolist()
    for top, left in zip(tops, lefts, strict=True):
        mask[top : top + side, left : left + side] = False
    return mask


def to_matrix(image: Tensor) -> Tensor:
    """Lay the channels side by side: (m, n, c) to (m, c n)."""
    if image.ndim != 3:
        raise ShapeError(f"an image has shape (m, n, channels); got {tuple(image.shape)}")
    m, n, channels = image.shape
    return image.permute(0, 2, 1).reshape(m, channels * n)


def to_image(matrix: Tensor, channels: int = 3) -> Tensor:
    """Undo `to_matrix` and clip to [0, 1], as a screen would."""
    if matrix.ndim != 2 or matrix.shape[1] % channels:
        raise ShapeError(
            f"matrix must have shape (m, {channels} n), channels side by side; "
            f"got {tuple(matrix.shape)}"
        )
    m, width = matrix.shape
    return matrix.reshape(m, channels, width // channels).permute(0, 2, 1).clamp(0.0, 1.0)


def observe(image: Tensor, mask: Tensor) -> Observations:
    """See the pixels of `image` where `mask` is true, in all channels.

    Parameters
    ----------
    image : Tensor, shape (m, n, c)
    mask : Tensor of bool, shape (m, n)

    Returns
    -------
    Observations, shape (m, c n)
        Entries of ``to_matrix(image)``.

    Raises
    ------
    ShapeError
        If the shapes do not match.

    Examples
    --------
    >>> observe(torch.rand(4, 5, 3), torch.eye(4, 5, dtype=torch.bool)).shape
    (4, 15)
    """
    if image.ndim != 3 or mask.shape != image.shape[:2]:
        raise ShapeError(
            f"mask must have the image's shape without channels; got {tuple(mask.shape)} for an "
            f"image of shape {tuple(image.shape)}"
        )
    matrix = to_matrix(image)
    rows, cols = mask.repeat(1, image.shape[2]).nonzero(as_tuple=True)
    m, width = matrix.shape
    return Observations(rows, cols, matrix[rows, cols], shape=(m, width))
