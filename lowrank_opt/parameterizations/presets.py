"""Published nested methods as named compositions: NoRA and LoRA-XS."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank_opt.checks import check_choice, check_rank
from lowrank_opt.errors import ShapeError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.parameterizations.dense_core import DenseCore
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.factored import Factored
from lowrank_opt.parameterizations.nested_svd import NestedSVD
from lowrank_opt.parameterizations.weighted import Weighted

Shape = tuple[int, int]
Split = Literal["none", "left", "right", "sqrt"]


def examples() -> Iterator[Example]:
    """Yield an example of each preset.

    Examples
    --------
    >>> [example.name for example in examples()]
    ['nora', 'lora_xs']
    """

    def make_nora(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> NestedSVD:
        outer_rank = min(2 * rank, *shape)
        return nora(example_tensor(*shape, dtype=dtype), rank, outer_rank=outer_rank)

    def make_lora_xs(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> NestedSVD:
        return lora_xs(example_tensor(*shape, dtype=dtype), rank)

    yield Example("nora", make_nora, "one thin product", "arXiv 2408.10280")
    yield Example("lora_xs", make_lora_xs, "one thin product", "arXiv 2405.17604")


def nora(
    weight: Tensor,
    rank: int,
    *,
    outer_rank: int,
    split: Split = "left",
    activation_scale: Tensor | None = None,
    scaling: float = 1.0,
    generator: torch.Generator | None = None,
) -> NestedSVD:
    r"""Return NoRA: ``W = B_o (b a) A_o``, outer factors from an SVD of `weight`, frozen.

    Rank at most `rank`, row and column spaces inside the leading `outer_rank` singular spaces of
    `weight`. A norm of W is that of the inner product only for ``split="none"``.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
        Inner rank, in 1..outer_rank.
    outer_rank : int
    split : {"none", "left", "right", "sqrt"}
        Where the singular values go: nowhere, ``B_o = U Sigma`` (the paper, as quoted in its
        reviews), ``A_o = Sigma V^T``, or half on each side.
    activation_scale : Tensor, shape (n,), optional
        Use the activation-weighted SVD, see `activation_weighted_frames`.
    scaling : float
        alpha / r of the inner product.
    generator : torch.Generator, optional
        Of the random start of the inner right factor; b = 0, so that W = 0.

    Raises
    ------
    RankError, OptionError
        If a rank does not fit or `split` is unknown.

    References
    ----------
    Lin et al., NoRA (arXiv 2408.10280).

    Examples
    --------
    >>> nora(torch.randn(8, 6), rank=2, outer_rank=4).rank
    2
    """
    check_choice(split, get_args(Split), "split")
    outer_rank = check_rank(outer_rank, (weight.shape[0], weight.shape[1]))
    scale = torch.ones_like(weight[0]) if activation_scale is None else activation_scale
    U, sigma, V = activation_weighted_frames(weight, scale, outer_rank)
    inner = Factored(
        (outer_rank, outer_rank),
        rank,
        scaling=scaling,
        dtype=weight.dtype,
        device=weight.device,
        generator=generator,
    )
    rows = {"left": sigma, "sqrt": sigma.sqrt()}.get(split)
    cols = {"right": sigma, "sqrt": sigma.sqrt()}.get(split)
    weighted = inner if split == "none" else Weighted(inner, rows, cols)
    return NestedSVD((U, V), weighted)


def lora_xs(weight: Tensor, rank: int, *, absorb_sigma: bool = True) -> NestedSVD:
    r"""Return LoRA-XS: ``W = U_r R Sigma_r V_r^T`` with a trained r x r matrix R.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
    absorb_sigma : bool
        The paper's form. Without it every unitarily invariant norm of W is that of R.

    Raises
    ------
    RankError
        If `rank` does not fit.

    References
    ----------
    Balazy et al., LoRA-XS (arXiv 2405.17604), equation 2.

    Examples
    --------
    >>> lora_xs(torch.randn(8, 6), rank=3)().shape
    (8, 6)
    """
    rank = check_rank(rank, (weight.shape[0], weight.shape[1]))
    U, sigma, V = leading_svd(weight.detach(), rank)
    core = DenseCore((rank, rank), dtype=weight.dtype, device=weight.device)
    inner = Weighted(core, None, _positive(sigma)) if absorb_sigma else core
    return NestedSVD((U, V), inner)


def activation_weighted_frames(
    weight: Tensor, activation_scale: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return frames of an SVD that is accurate where activations are large.

    With ``S = diag(activation_scale)`` and the SVD ``weight S = U Sigma V^T``, the best
    approximation of the layer's *output* is ``U_r Sigma_r V_r^T S^{-1}``. Its row space is that
    of ``S^{-1} V_r``, returned as an orthonormal frame.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    activation_scale : Tensor, shape (n,)
        Mean absolute activation per input, to a power of 0.5 or 1; entries below 1e-6 of the mean
        are raised to it, so that dead inputs do no harm.
    rank : int

    Returns
    -------
    U : Tensor, shape (m, rank)
    sigma : Tensor, shape (rank,)
        Positive.
    V : Tensor, shape (n, rank)
        All in float64, `U` and `V` orthonormal.

    Raises
    ------
    ShapeError
        If the scale has another length than `weight` has columns, is negative or all zero.

    References
    ----------
    Lin et al., NoRA (arXiv 2408.10280), activation-weighted SVD.

    Examples
    --------
    >>> U, sigma, V = activation_weighted_frames(torch.eye(3), torch.ones(3), 2)
    >>> sigma
    tensor([1., 1.], dtype=torch.float64)
    """
    valid = torch.isfinite(activation_scale) & (activation_scale >= 0)
    if activation_scale.shape != weight.shape[1:] or not (valid.all() and activation_scale.any()):
        raise ShapeError(
            f"activation_scale must be {weight.shape[1]} finite nonnegative values, not all zero; "
            f"got shape {tuple(activation_scale.shape)}, {int(valid.sum())} valid values with sum "
            f"{float(activation_scale.sum())!r}"
        )
    d = activation_scale.detach().double()
    d = d.clamp_min(1e-6 * float(d.mean()))
    U, sigma, V = leading_svd(weight.detach().double() * d, rank)
    Q, R = torch.linalg.qr(V / d.unsqueeze(1))
    # The factor with a positive diagonal: column i of Q belongs to column i of U, sign included.
    return U, _positive(sigma), Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def _positive(sigma: Tensor) -> Tensor:
    """Raise singular values lost in rounding, whose directions a division must survive."""
    return sigma.clamp_min(float(sigma.amax()) * torch.finfo(torch.float32).eps).clamp_min(
        torch.finfo(torch.float32).tiny
    )
