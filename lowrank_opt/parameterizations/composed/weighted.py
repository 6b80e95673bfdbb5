"""Any inner parameterization with weighted rows and columns."""

from torch import Tensor

from lowrank_opt.errors import ShapeError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.between import Between
from lowrank_opt.sets import WeightedSet
from lowrank_opt.sets.sides import Side, diagonal


class Weighted(Between):
    r""":math:`W = \mathrm{diag}(a)\, C\, \mathrm{diag}(b)`, C any inner parameterization.

    Set: the weighted inner set; complete if the inner map is. With an inner nuclear-norm ball and
    ``a, b = count^(-1/4)`` this is the smoothed weighted trace norm of matrix completion.

    Parameters
    ----------
    inner : Parameterization
    row_weights : Tensor, shape (m,), optional
        Positive; multiply the rows of C.
    col_weights : Tensor, shape (n,), optional
        Positive; multiply the columns of C.

    Raises
    ------
    ShapeError, OptionError
        If the weights have another length, or are not positive and finite.

    References
    ----------
    Salakhutdinov and Srebro (NIPS 2010), equation 3; Foygel et al. (NIPS 2011) for smoothing.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import HomogeneousBall
    >>> Weighted(HomogeneousBall((3, 2), 1, radius=2.0), torch.tensor([1.0, 0.5, 0.1])).shape
    (3, 2)
    """

    def __init__(
        self,
        inner: Parameterization,
        row_weights: Tensor | None = None,
        col_weights: Tensor | None = None,
    ) -> None:
        super().__init__(inner, inner.shape)
        like = next(inner.parameters()).detach().new_empty(0)
        given = {"row_weights": row_weights, "col_weights": col_weights}
        for (name, weights), size in zip(given.items(), self.shape, strict=True):
            if weights is not None and tuple(weights.shape) != (size,):
                raise ShapeError(f"{name} must have shape ({size},); got {tuple(weights.shape)}")
            self.register_buffer(name, None if weights is None else weights.detach().to(like))
        self.row_weights: Tensor | None
        self.col_weights: Tensor | None
        _ = self.image

    @property
    def sides(self) -> tuple[Side, Side]:
        return diagonal(self.row_weights), diagonal(self.col_weights)

    @property
    def image(self) -> WeightedSet:
        return WeightedSet(self.inner.feasible_set, self.row_weights, self.col_weights)
