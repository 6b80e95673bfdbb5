"""A parameterization as the weight of any module, by torch's own parametrizations."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank_opt.errors import OptionError, ShapeError, TargetError
from lowrank_opt.nn.adapters.adapted import store_of
from lowrank_opt.nn.adapters.slots import join
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
        The weight, for its shape.
    """

    def __init__(self, parameterization: Parameterization, like: Tensor) -> None:
        super().__init__()
        self.parameterization = parameterization
        self.weight_shape: torch.Size = like.shape
        # Converted with the module, so that it tells which dtype the weight has by now.
        self.register_buffer("like", like.detach().new_empty(0), persistent=False)
        self.like: Tensor

    def forward(self) -> Tensor:
        """Return the dense weight."""
        op = self.parameterization()
        return op.to_dense().to(self.like.dtype).reshape(self.weight_shape)

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
    Weights that are tied stay tied, everywhere within `module`.

    Parameters
    ----------
    module : nn.Module
    name : str
        Of a parameter of two or more axes, taken as ``flatten(1)``; dotted for one of a submodule.
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
        If it is not finite, is adapted, or is tied to one outside of `module`.
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
    weight = _parameters(module).get(name)
    if weight is None or weight.ndim < 2:
        own = [key for key, p in module.named_parameters() if p.ndim > 1]
        raise OptionError(
            f"register_dense needs a parameter with two or more axes; got {name!r}: "
            f"{type(module).__name__} has {own}"
        )
    if tuple(_matrix(weight).shape) != parameterization.shape:
        raise ShapeError(
            f"the parameterization must have shape {tuple(_matrix(weight).shape)}, that of "
            f"{name!r}; got {parameterization.shape}"
        )
    places = _places(module, weight)
    _check_places(name, weight, places)
    parameterization.to(device=weight.device, dtype=weight.dtype)
    # Before the module is touched: this is the step that may fail.
    parameterization.assign(_matrix(weight.detach()), project=True)
    dense = DenseWeight(parameterization, weight)
    for holder, key in places:
        parametrize.register_parametrization(holder, key, dense, unsafe=True)
    return parameterization


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by all of their names."""
    return {
        join(prefix, key): p
        for prefix, part in module.named_modules(remove_duplicate=False)
        for key, p in part.named_parameters(recurse=False)
    }


def _places(module: nn.Module, weight: nn.Parameter) -> list[tuple[nn.Module, str]]:
    return [
        (part, key)
        for part in module.modules()
        for key, p in part.named_parameters(recurse=False)
        if p is weight
    ]


def _check_places(name: str, weight: nn.Parameter, places: list[tuple[nn.Module, str]]) -> None:
    if any(store_of(holder) is not None for holder, _ in places):
        raise TargetError(
            f"a weight is adapted or parameterized, not both; {name!r} has adapters: "
            "unload(model) first"
        )
    inside = {id(holder._parameters) for holder, _ in places}  # pyright: ignore[reportPrivateUsage]
    if any(id(d) not in inside and _is_of_a_module(d) for d in _dicts_with(weight)):
        raise TargetError(
            f"weights that are tied must stay tied; {name!r} is the weight of a module outside "
            "too: call register_dense(model, 'dotted.name', ...) with the whole model"
        )


def _dicts_with(weight: nn.Parameter) -> list[dict[object, object]]:
    """Return the dictionaries that hold a parameter, wherever they are."""
    return [d for d in gc.get_referrers(weight) if isinstance(d, dict)]


def _is_of_a_module(d: dict[object, object]) -> bool:
    """Whether a dictionary is that of a module's parameters."""
    if not all(x is None or isinstance(x, torch.nn.Parameter) for x in d.values()):
        return False
    return any(
        isinstance(r, nn.Module) or (isinstance(r, dict) and r.get("_parameters") is d)
        for r in gc.get_referrers(d)
    )


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1)
