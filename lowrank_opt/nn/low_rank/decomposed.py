"""A layer whose weight keeps the directions of a sum and the trained norms of its rows: DoRA."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.basis.kinds import kind_of
from lowrank_opt.parameterizations import Parameterization, WeightDecomposed


class DecomposedModule(nn.Module):
    r"""A layer with :math:`W' = \mathrm{diag}(g / \|V_i\|)\, V`, :math:`V = W_0 + \Delta`.

    The base weight is frozen and never written to; neither V nor W' is formed in the forward pass.
    At the start the output is the base layer's, bit for bit, if the update starts at zero. The
    change of the weight is of full rank: no bound on rank or norm of the update survives, and
    `adapt`, `merge` and `save_adapter` do not apply. What holds is in `WeightDecomposed`.

    Parameters
    ----------
    base : nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d
    inner : Parameterization
        Of shape ``base.weight.flatten(1).shape``; `Factored` gives DoRA.

    Raises
    ------
    TargetError
        If the layer is of another type.
    ShapeError
        If the shapes differ.

    References
    ----------
    Liu et al., DoRA (ICML 2024, arXiv 2402.09353), equation 5.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> base, x = nn.Linear(3, 4), torch.randn(2, 3)
    >>> layer = DecomposedModule(base, Factored((4, 3), rank=1))
    >>> torch.equal(layer(x), base(x))
    True
    """

    LAYERS: ClassVar = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def __init__(self, base: nn.Module, inner: Parameterization) -> None:
        super().__init__()
        if not isinstance(base, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise TargetError(
                f"rows are rescaled in linear layers and convolutions; got {type(base).__name__}: "
                "adapt it with adapt(...)"
            )
        self.base = base.requires_grad_(False)
        weight = base.weight.detach().flatten(1)
        self.decomposed = WeightDecomposed(inner.to(weight.device), weight)

    @property
    def weight(self) -> Tensor:
        """The dense :math:`W'`, in the shape and dtype of the base weight."""
        dense = self.decomposed.merged_dense(self.base.weight.flatten(1))
        return dense.reshape(self.base.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with :math:`W'`."""
        kind = kind_of(self.base)
        assert kind.update is not None
        y, op = self.base(x), self.decomposed.inner()
        ones = (1,) * (self.base.weight.ndim - 2)
        scale = self.decomposed.row_scale(self.base.weight.flatten(1), op).to(y.dtype)
        scale = scale.reshape(-1, *ones)
        total = y + kind.update(self.base, op, x, y).to(y.dtype)
        # In both forms, scales of exactly 1 leave the output what it was, and one product is kept
        # for the backward pass.
        if self.base.bias is None:
            return total * scale
        return torch.addcmul(total, scale - 1, total - self.base.bias.reshape(-1, *ones))
