"""A parameterization as the weight of any module, by torch's own parametrizations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.parameterizations import Parameterization


class DenseWeight(nn.Module):
    """The dense matrix of a parameterization, for ``torch.nn.utils.parametrize``.

    torch keeps originals of its own for a parametrization; here there are none, since the
    parameters are those of the parameterization. Assigning to the weight sets them to the nearest
    member of the set.

    Parameters
    ----------
    parameterization : Parameterization
    like : Tensor
        The weight, for its shape and dtype.
    """

    def __init__(self, parameterization: Parameterization, like: Tensor) -> None:
        super().__init__()
        self.parameterization = parameterization
        self.weight_shape, self.weight_dtype = like.shape, like.dtype

    def forward(self) -> Tensor:
        """Return the dense weight."""
        op = self.parameterization()
        return op.to_dense().to(self.weight_dtype).reshape(self.weight_shape)

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Set the parameterization to the member nearest to `weight`; there are no originals."""
        self.parameterization.assign(_matrix(weight), project=True)
        return ()


def register_dense(
    module: nn.Module, name: str, parameterization: Parameterization
) -> Parameterization:
    """Make a parameterization the weight of a module, starting from the present weight.

    ``module.name`` becomes the dense matrix of the parameterization, formed at each access (once
    within ``torch.nn.utils.parametrize.cached()``). The start is the member of the feasible set
    nearest to the present weight; assigning to the weight later takes the nearest member too.

    Parameters
    ----------
    module : nn.Module
    name : str
        Of a parameter of two or more axes, taken as ``flatten(1)``.
    parameterization : Parameterization
        Of that shape, with a right inverse. Converted to the device and dtype of the weight.

    Returns
    -------
    Parameterization
        The one given, now part of the module.

    Raises
    ------
    OptionError
        If there is no such parameter, or it has one axis only.
    TargetError
        If it is not finite.
    ShapeError
        If the shapes differ.
    NoRightInverseError
        If the parameterization cannot start from a weight. The module is unchanged.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import NBLoRA
    >>> layer = nn.Linear(4, 6)
    >>> _ = register_dense(layer, "weight", NBLoRA((6, 4), rank=2, radius=0.5))
    >>> bool(torch.linalg.matrix_norm(layer.weight, 2) <= 0.5 + 1e-6)
    True
    """
    weight = dict(module.named_parameters(recurse=False)).get(name)
    if weight is None or weight.ndim < 2:
        own = [key for key, p in module.named_parameters(recurse=False) if p.ndim > 1]
        raise OptionError(
            f"register_dense needs a parameter with two or more axes; got {name!r}: "
            f"{type(module).__name__} has {own}"
        )
    if tuple(_matrix(weight).shape) != parameterization.shape:
        raise ShapeError(
            f"the parameterization must have shape {tuple(_matrix(weight).shape)}, that of "
            f"{name!r}; got {parameterization.shape}"
        )
    parameterization.to(device=weight.device, dtype=weight.dtype)
    # Before the module is touched: this is the step that may fail.
    parameterization.assign(_matrix(weight.detach()), project=True)
    dense = DenseWeight(parameterization, weight)
    parametrize.register_parametrization(module, name, dense, unsafe=True)
    return parameterization


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1)
