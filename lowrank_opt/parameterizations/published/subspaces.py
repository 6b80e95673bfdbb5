r"""Published ways to choose subspaces for `Complement`: from a weight, activations, or adapters.

The published methods draw updates towards these complements by a penalty, a start or projected
gradients. Here the update cannot leave them, and the inner map bounds its norm as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_opt.checks import check_rank
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import extend_basis, leading_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, random_frame
from lowrank_opt.parameterizations.composed.complement import Complement
from lowrank_opt.parameterizations.free.dense_core import DenseCore


def oplora(inner: Parameterization, weight: Tensor, keep: int) -> Complement:
    """Keep an update out of the `keep` leading singular directions of a weight, on both sides.

    Parameters
    ----------
    inner : Parameterization, m x n
    weight : Tensor, shape (m, n)
        The base weight; read only.
    keep : int

    References
    ----------
    OPLoRA (arXiv 2510.13003): double-sided orthogonal projection.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> oplora(NBLoRA((6, 5), 2, radius=1.0), torch.randn(6, 5), keep=2).left.shape
    torch.Size([6, 2])
    """
    U, _, V = leading_svd(weight.detach(), _count(keep, weight))
    return Complement(inner, U, V)


def osf(weight: Tensor, keep: int) -> Complement:
    """Train everything but the `keep` leading singular directions of a weight: full updates.

    The one constructor here whose parameters have as many entries as the weight.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    keep : int

    References
    ----------
    Orthogonal Subspace Fine-tuning: Nayak et al., Sculpting Subspaces (arXiv 2504.07097).

    Examples
    --------
    >>> osf(torch.randn(6, 5), keep=2).rank
    3
    """
    core = DenseCore((weight.shape[0], weight.shape[1]), dtype=weight.dtype, device=weight.device)
    return oplora(core, weight, keep)


def o_lora(inner: Parameterization, earlier: Sequence[LowRankOperator]) -> Complement:
    """Keep an update's row space orthogonal to those of earlier adapters.

    Parameters
    ----------
    inner : Parameterization, m x n
    earlier : sequence of LowRankOperator, m x n
        Of earlier tasks.

    References
    ----------
    Wang et al., O-LoRA (arXiv 2310.14152), whose penalty ``|A_i A_t^T|`` is zero here.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> first = Factored((6, 5), 2).assign(torch.randn(6, 5), project=True)
    >>> o_lora(Factored((6, 5), 2), [first()]).right.shape
    torch.Size([5, 2])
    """
    return Complement(inner, right=_spans([op.detach().right for op in earlier]))


def inf_lora(
    inner: Parameterization, inputs: Sequence[Tensor], *, rtol: float = 1e-3
) -> Complement:
    """Keep an update from acting on the inputs that the layer had in earlier tasks.

    Parameters
    ----------
    inner : Parameterization, m x n
    inputs : sequence of Tensor, shapes (..., n)
        Of the layer, one for each task.
    rtol : float
        Directions smaller than this share of a task's largest one are not protected.

    References
    ----------
    Liang and Li, InfLoRA (arXiv 2404.00228), section 4.2.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> x = torch.randn(100, 2) @ torch.randn(2, 5)
    >>> bool(inf_lora(Factored((6, 5), 2), [x])().linear(x).abs().max() < 1e-5)
    True
    """
    rows = [x.detach().flatten(0, -2).mT for x in inputs]
    return Complement(inner, right=_spans(rows, rtol=rtol))


def lora_null(inner: Parameterization, activations: Tensor, keep: int) -> Complement:
    """Keep an update to the approximate null space of a layer's activations.

    Parameters
    ----------
    inner : Parameterization, m x n
    activations : Tensor, shape (..., n)
        Inputs of the layer on data whose knowledge is to be kept.
    keep : int
        Number of leading directions that are protected.

    References
    ----------
    LoRA-Null (arXiv 2503.02659), which starts there and freezes one factor.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> lora_null(Factored((6, 5), 2), torch.randn(50, 5), keep=3).right.shape
    torch.Size([5, 3])
    """
    x = activations.detach().flatten(0, -2)
    return Complement(inner, right=leading_svd(x, _count(keep, x))[2])


def clora(
    inner: Parameterization, keep: int, *, generator: torch.Generator | None = None
) -> Complement:
    """Keep an update out of random subspaces of dimension `keep`, on both sides.

    Parameters
    ----------
    inner : Parameterization, m x n
    keep : int
    generator : torch.Generator, optional

    References
    ----------
    Lu et al., Controlled LoRA with subspace regularization (arXiv 2410.16801), whose penalties
    ``|A P|`` and ``|Q^T B|`` are zero here.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> clora(Factored((6, 5), 2), keep=3).left.shape
    torch.Size([6, 3])
    """
    like = next(inner.parameters()).new_empty(0, dtype=torch.float64)
    check_rank(keep, inner.shape, "keep")
    Q, P = (random_frame(size, keep, like=like, generator=generator) for size in inner.shape)
    return Complement(inner, Q, P)


def _count(keep: int, matrix: Tensor) -> int:
    return check_rank(keep, (matrix.shape[0], matrix.shape[1]), "keep")


def _spans(columns: Sequence[Tensor], *, rtol: float | None = None) -> Tensor:
    if not columns:
        raise OptionError("a subspace needs something to span it; got nothing: use the inner map")
    basis: Tensor | None = None
    for x in columns:
        basis = extend_basis(basis, x, rtol=rtol)
    assert basis is not None
    return basis
