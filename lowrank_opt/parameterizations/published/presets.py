"""Published nested methods as named compositions: NoRA, LoRA-XS, StelLA and PoLAR."""

from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank_opt.checks import check_choice, check_positive, check_rank
from lowrank_opt.errors import ShapeError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.parameterizations.balls.svd_frames import SVDFrames
from lowrank_opt.parameterizations.between import Between
from lowrank_opt.parameterizations.composed.inductive import Inductive
from lowrank_opt.parameterizations.composed.nested_svd import NestedSVD
from lowrank_opt.parameterizations.composed.weighted import Weighted
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.free.dense_core import DenseCore
from lowrank_opt.parameterizations.free.factored import Factored

Shape = tuple[int, int]
Split = Literal["none", "left", "right", "sqrt"]
Form = Literal["serial", "parallel"]
Start = Literal["zero", "random"]


def examples() -> Iterator[Example]:
    """Yield an example of each preset.

    Examples
    --------
    >>> [example.name for example in examples()]
    ['nora', 'lora_xs', 'stella', 'polar(radius)']
    """

    def make_nora(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Between:
        outer_rank = min(2 * rank, *shape)
        return nora(example_tensor(*shape, dtype=dtype), rank, outer_rank=outer_rank)

    def make_lora_xs(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> NestedSVD:
        return lora_xs(example_tensor(*shape, dtype=dtype), rank)

    yield Example("nora", make_nora, "one thin product", "arXiv 2408.10280")
    yield Example("lora_xs", make_lora_xs, "one thin product", "arXiv 2405.17604")
    yield Example("stella", stella, "two thin SVDs", "arXiv 2510.01938")
    yield Example("polar(radius)", partial(polar, radius=1.0), "two thin SVDs", "arXiv 2506.03133")


def nora(
    weight: Tensor,
    rank: int,
    *,
    outer_rank: int,
    split: Split = "left",
    activation_scale: Tensor | None = None,
    form: Form = "serial",
    start: Start = "zero",
    scaling: float = 1.0,
    generator: torch.Generator | None = None,
) -> Between:
    r"""Return nested NoRA: ``W = B_o (b a) A_o``, outer factors from an SVD of `weight`, frozen.

    Not Normalized LoRA, which has the same short name: see `NormalizedLoRA`.

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
        S, of the activation-weighted SVD :math:`W_0 S = U \Sigma V^T`: then
        :math:`A_o = V^T S^{-1}`, and ``B_o A_o`` is the best approximation of the layer's output.
        Entries below 1e-6 of the mean are raised to it.
    form : {"serial", "parallel"}
        Whether the inner factors stand between the outer ones, or beside ``A_o``:
        :math:`W = B_o (b a)` with a of shape (rank, n).
    start : {"zero", "random"}
        b = 0, so that W = 0, or both inner factors random, as in the authors' code (an adapter is
        then wrapped in `Offset`).
    scaling : float
        alpha / r of the inner product; the authors' r is `outer_rank`.
    generator : torch.Generator, optional
        Of the random start.

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
    check_choice(form, get_args(Form), "form")
    check_choice(start, get_args(Start), "start")
    outer_rank = check_rank(outer_rank, (weight.shape[0], weight.shape[1]))
    d = None if activation_scale is None else checked_scale(weight, activation_scale)
    U, sigma, V = leading_svd(weight.detach().double() * (1.0 if d is None else d), outer_rank)
    sigma = _positive(sigma)
    cols = outer_rank if form == "serial" else weight.shape[1]
    inner = Factored(
        (outer_rank, cols),
        rank,
        scaling=scaling,
        dtype=weight.dtype,
        device=weight.device,
        generator=generator,
    )
    if start == "random":
        bound = outer_rank**-0.5
        torch.nn.init.uniform_(inner.left, -bound, bound, generator=generator)
    left = {"left": sigma, "sqrt": sigma.sqrt()}.get(split)
    right = {"right": sigma, "sqrt": sigma.sqrt()}.get(split)
    if form == "parallel":
        return Inductive(inner, (U if left is None else U * left).to(weight.dtype))
    if d is None:
        return NestedSVD((U, V), inner if split == "none" else Weighted(inner, left, right))
    B, A = (x if s is None else x * s for x, s in ((U, left), (V / d.unsqueeze(1), right)))
    return Inductive(inner, B.to(weight.dtype), A.to(weight.dtype))


def stella(
    shape: tuple[int, int],
    rank: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> SVDFrames:
    r"""Return StelLA: ``W = U S V^T`` with frames by polar factors and a free r x r matrix S.

    The published method keeps U and V on the manifold by steps of its own; here any optimizer does,
    and one step of gradient descent from orthonormal factors is the Riemannian gradient step
    :math:`\mathrm{pol}(U - \eta (G_U - U\, \mathrm{sym}(U^T G_U)))`.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    dtype, device, generator
        As for `SVDFrames`.

    References
    ----------
    Li et al., StelLA (arXiv 2510.01938), equation 2.

    Examples
    --------
    >>> stella((6, 5), 2).values.shape
    torch.Size([2, 2])
    """
    return SVDFrames(shape, rank, core="full", dtype=dtype, device=device, generator=generator)


def polar(
    shape: tuple[int, int],
    rank: int,
    *,
    radius: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> SVDFrames:
    r"""Return PoLAR: ``W = X Theta Y^T`` with orthonormal X and Y, feasible instead of landing.

    With a radius :math:`\Theta = 2 \delta Z (I + Z^T Z)^{-1}`, whose singular values are
    :math:`2 \delta z / (1 + z^2) \le \delta`, onto the ball.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    radius : float, optional
        Bound on the spectral norm; not in the paper.
    dtype, device, generator
        As for `SVDFrames`.

    References
    ----------
    Lion et al., PoLAR (arXiv 2506.03133).

    Examples
    --------
    >>> polar((6, 5), 2, radius=0.5).feasible_set.bound
    'spectral <= 0.5'
    """
    return SVDFrames(
        shape, rank, core="full", radius=radius, dtype=dtype, device=device, generator=generator
    )


def lora_xs(
    weight: Tensor,
    rank: int,
    *,
    absorb_sigma: bool = True,
    alpha: float | None = None,
    start_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> NestedSVD:
    r"""Return LoRA-XS: ``W = U_r R Sigma_r V_r^T`` with a trained r x r matrix R.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
    absorb_sigma : bool
        The paper's form. Without it every unitarily invariant norm of W is that of R, times the
        scaling.
    alpha : float, optional
        Scales W by ``alpha / rank``, as the authors' code does; by default not at all.
    start_std : float
        R starts at zero, or at :math:`N(0, \text{start\_std}^2)`: 1e-5 as published, which an
        adapter subtracts by an `Offset`.
    generator : torch.Generator, optional
        Of a random start.

    Raises
    ------
    RankError, OptionError
        If `rank`, `alpha` or `start_std` is outside its domain.

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
    if start_std:
        check_positive(start_std, "start_std")
        torch.nn.init.normal_(core.matrix, std=start_std, generator=generator)
    scaling = 1.0 if alpha is None else check_positive(alpha, "alpha") / rank
    weights = _positive(sigma) if absorb_sigma else torch.ones_like(sigma)
    plain = not absorb_sigma and scaling == 1.0
    return NestedSVD((U, V), core if plain else Weighted(core, None, scaling * weights))


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
    d = checked_scale(weight, activation_scale)
    U, sigma, V = leading_svd(weight.detach().double() * d, rank)
    Q, R = torch.linalg.qr(V / d.unsqueeze(1))
    # The factor with a positive diagonal: column i of Q belongs to column i of U, sign included.
    return U, _positive(sigma), Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def checked_scale(weight: Tensor, activation_scale: Tensor) -> Tensor:
    """Return the activation scale in float64, entries near zero raised to 1e-6 of the mean."""
    valid = torch.isfinite(activation_scale) & (activation_scale >= 0)
    if activation_scale.shape != weight.shape[1:] or not (valid.all() and activation_scale.any()):
        raise ShapeError(
            f"activation_scale must be {weight.shape[1]} finite nonnegative values, not all zero; "
            f"got shape {tuple(activation_scale.shape)}, {int(valid.sum())} valid values with sum "
            f"{float(activation_scale.sum())!r}"
        )
    d = activation_scale.detach().double()
    return d.clamp_min(1e-6 * float(d.mean()))


def _positive(sigma: Tensor) -> Tensor:
    """Raise singular values lost in rounding, whose directions a division must survive."""
    return sigma.clamp_min(float(sigma.amax()) * torch.finfo(torch.float32).eps).clamp_min(
        torch.finfo(torch.float32).tiny
    )
