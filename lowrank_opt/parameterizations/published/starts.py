r"""Published scalings and starts as compositions; the base weight is never changed.

PiSSA and OLoRA start from a part :math:`B_0 A_0` of the base weight and subtract it from the
weight. Here the update is :math:`\text{scaling}\,(B A - B_0 A_0)`, an `Offset`: W = 0 exactly at
the start, of rank at most 2 r, and the weight is the same with the adapter disabled.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_opt.checks import check_positive, check_rank
from lowrank_opt.errors import TargetError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.composed.offset import Offset
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.free.factored import Factored

Shape = tuple[int, int]


def examples() -> Iterator[Example]:
    """Yield an example of each published scaling and start.

    Examples
    --------
    >>> [example.name for example in examples()]
    ['rslora', 'pissa', 'olora']
    """

    def make_pissa(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Offset:
        return pissa(example_tensor(*shape, dtype=dtype), rank)

    def make_olora(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Offset:
        return olora(example_tensor(*shape, dtype=dtype), rank)

    yield Example("rslora", rslora, reference="arXiv 2312.03732")
    yield Example("pissa", make_pissa, "twice the columns", "arXiv 2404.02948")
    yield Example("olora", make_olora, "twice the columns", "arXiv 2406.01775")


def rslora(
    shape: tuple[int, int],
    rank: int,
    *,
    alpha: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Factored:
    r"""Return rank-stabilised LoRA: `Factored` with scaling :math:`\alpha / \sqrt r`.

    Outputs and gradients keep their size as the rank grows. The scaling is stored: it does not
    change if components are dropped later.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    alpha : float
        Positive.
    dtype, device, generator
        As for `Factored`.

    Raises
    ------
    OptionError, RankError
        If `alpha` or `rank` is outside its domain.

    References
    ----------
    Kalajdzievski, rsLoRA (arXiv 2312.03732), theorem 3.2.

    Examples
    --------
    >>> rslora((8, 8), rank=4, alpha=8.0).scaling
    4.0
    """
    scaling = check_positive(alpha, "alpha") / math.sqrt(check_rank(rank, shape))
    return Factored(shape, rank, scaling=scaling, dtype=dtype, device=device, generator=generator)


def pissa(weight: Tensor, rank: int, *, scaling: float = 1.0) -> Offset:
    r"""Return PiSSA: LoRA that starts at the leading singular triples of `weight`.

    :math:`B_0 = U_r (\Sigma_r / s)^{1/2}`, :math:`A_0 = (\Sigma_r / s)^{1/2} V_r^T`, s the scaling.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        Read only.
    rank : int
    scaling : float
        alpha / r. Positive.

    Raises
    ------
    RankError, OptionError, TargetError
        If `rank` or `scaling` is outside its domain, or the weight not finite.

    References
    ----------
    Meng, Wang and Zhang, PiSSA (arXiv 2404.02948), equations 2 to 4.

    Examples
    --------
    >>> layer = pissa(torch.diag(torch.tensor([4.0, 1.0])), rank=1)
    >>> layer().to_dense().abs().max().item(), layer.inner().to_dense().abs().max().item()
    (0.0, 4.0)
    """
    _check_finite(weight)
    U, sigma, V = leading_svd(weight.detach(), check_rank(rank, _shape(weight)))
    one = LowRankOperator(U, sigma, V)
    return _started(weight, rank, scaling, one.left * sigma.sqrt(), one.right * sigma.sqrt())


def olora(weight: Tensor, rank: int, *, scaling: float = 1.0) -> Offset:
    r"""Return OLoRA: LoRA that starts at a thin QR factorization of `weight`.

    :math:`B_0 = Q_{:, :r}`, :math:`A_0 = R_{:r, :} / s`, s the scaling. The first r columns of the
    weight decide Q: the start depends on the order of the inputs.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        Read only.
    rank : int
    scaling : float
        alpha / r. Positive.

    Raises
    ------
    RankError, OptionError, TargetError
        If `rank` or `scaling` is outside its domain, or the weight not finite.

    References
    ----------
    Buyukakyuz, OLoRA (arXiv 2406.01775), algorithm 1.

    Examples
    --------
    >>> layer = olora(torch.randn(6, 4), rank=2)
    >>> layer().schatten_norm(2).item(), layer.rank
    (0.0, 4)
    """
    _check_finite(weight)
    check_rank(rank, _shape(weight))
    Q, R = torch.linalg.qr(weight.detach().double())
    root = math.sqrt(check_positive(scaling, "scaling"))
    return _started(weight, rank, scaling, root * Q[:, :rank], R[:rank].mT / root)


def _started(weight: Tensor, rank: int, scaling: float, left: Tensor, right: Tensor) -> Offset:
    """Return the offset of ``scaling * B A`` that starts at ``left right^T``."""
    inner = Factored(
        _shape(weight), rank, scaling=scaling, dtype=weight.dtype, device=weight.device
    )
    root = math.sqrt(inner.scaling)
    with torch.no_grad():
        inner.left.copy_(left / root)
        inner.right.copy_(right / root)
    return Offset(inner)


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


def _check_finite(weight: Tensor) -> None:
    if weight.ndim != 2 or not bool(torch.isfinite(weight).all()):
        raise TargetError(
            f"the base weight must be a finite matrix; got shape {tuple(weight.shape)}: remove NaN "
            "and infinity"
        )
