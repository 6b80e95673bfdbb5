"""The image of any set under features, as simple a set as there is."""

from __future__ import annotations

from torch import Tensor

from lowrank_opt.sets.base import FeasibleSet, RankAtMost, SpectralSet
from lowrank_opt.sets.linear_image import ImageSet, LinearImage
from lowrank_opt.sets.shifted import ShiftedSet


def image_of(inner: FeasibleSet, left: Tensor | None, right: Tensor | None) -> FeasibleSet:
    """Return the set of all ``A C B^T`` with C in `inner`, a set of this package.

    Sides and offsets of `inner` move into the features, which leaves a spectral set. Of another
    kind of set with dependent features only the rank is declared.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import SchattenBall, WeightedSet
    >>> weighted = WeightedSet(SchattenBall(1, 2.0, 1), torch.tensor([1.0, 3.0]))
    >>> image_of(weighted, torch.ones(4, 2), None).inner
    SchattenBall(p=1, radius=2.0, rank=1)
    """
    if left is None and right is None:
        return inner
    if isinstance(inner, LinearImage):
        A, B = inner.sides
        return image_of(inner.inner, A.after(left), B.after(right))
    if isinstance(inner, ShiftedSet):
        moved = ImageSet(inner.inner, left, right).embed(inner.offset)
        return ShiftedSet(image_of(inner.inner, left, right), moved)
    image = ImageSet(inner, left, right)
    # Singular values of C tell all, or C itself is known from W.
    exact = isinstance(inner, SpectralSet) or all(side.independent for side in image.sides)
    return image if exact else RankAtMost(image.rank)
