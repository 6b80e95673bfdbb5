"""Shortcuts: a low-rank path around a block, trained like any update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.parameterizations import Parameterization


class Shortcut(nn.Module):
    r"""A block with a low-rank map around it: :math:`h \mapsto \text{block}(h) + W h`.

    W starts at zero, so that the block is what it was. A path across several layers goes around
    the `nn.Sequential` of them. Of a block that returns a tuple the first entry counts; further
    arguments go to the block. Attributes are those of the block.

    It is a part of the model, as its layers are, and of no adapter; in adapter folders the layers
    of the block keep the names that they had without it. Put in after `adapt`, it is written to
    the folder of every adapter, trained or frozen, and read where the model has it. For a path of
    each adapter's own, put it in first, and name it in `modules_to_train`.

    Parameters
    ----------
    base : nn.Module
    weight : Parameterization
        Of shape (features out, features in).

    References
    ----------
    HeteroLoRA (arXiv 2406.14956), whose search space has such paths around attention and
    feed-forward blocks.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> block, h = nn.Linear(3, 3), torch.ones(2, 3)
    >>> torch.equal(Shortcut(block, Factored((3, 3), 1))(h), block(h))
    True
    """

    def __init__(self, base: nn.Module, weight: Parameterization) -> None:
        super().__init__()
        self.base: nn.Module
        self.weight: Parameterization
        self.base, self.weight = base, weight
        self.train(base.training)

    def forward(self, h: Tensor, *args: object, **kwargs: object) -> object:
        """Return the block's output plus W h."""
        out, op = self.base(h, *args, **kwargs), self.weight()
        first = out[0] if isinstance(out, tuple) else out
        if h.shape[-1] != op.shape[1] or first.shape[-1] != op.shape[0]:
            raise ShapeError(
                f"a shortcut maps the block's input to its output; got {op.shape} for "
                f"{h.shape[-1]} features in and {first.shape[-1]} out"
            )
        summed = first + op.linear(h.to(op.dtype)).to(first.dtype)
        return (summed, *out[1:]) if isinstance(out, tuple) else summed

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
        return getattr(base, name)


def add_shortcut(model: nn.Module, name: str, weight: Parameterization) -> Shortcut:
    """Put a low-rank path around the submodule of that name, in place; W is set to zero.

    Parameters
    ----------
    model : nn.Module
    name : str
        Dotted name of a submodule.
    weight : Parameterization
        Of shape (features out, features in) of the submodule.

    Raises
    ------
    OptionError
        If there is no such submodule.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    >>> _ = add_shortcut(model, "1", Factored((4, 4), 1))
    >>> model(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """
    parent, _, key = name.rpartition(".")
    try:
        holder, block = model.get_submodule(parent), model.get_submodule(name)
    except AttributeError as error:
        names = [n for n, _ in model.named_modules() if n]
        raise OptionError(
            f"a shortcut goes around a submodule; got {name!r}: the model has {names[:20]}"
        ) from error
    if not name:
        raise OptionError("a shortcut goes around a submodule; got the model itself: wrap it first")
    like = next(block.parameters(), torch.empty(0))
    dtype = torch.promote_types(like.dtype, torch.float32)
    shortcut = Shortcut(block, weight.zero_().to(device=like.device, dtype=dtype))
    setattr(holder, key, shortcut)
    return shortcut
