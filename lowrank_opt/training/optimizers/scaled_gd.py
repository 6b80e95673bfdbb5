"""ScaledGD: each factor preconditioned by the other one's Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from lowrank_opt.linalg import leading_svd
from lowrank_opt.training.algebra.pair_view import PairView
from lowrank_opt.training.algebra.small import cholesky, identity
from lowrank_opt.training.algebra.tall import TallPair, Terms
from lowrank_opt.training.optimizers.adam import State
from lowrank_opt.training.optimizers.factor_optimizer import (
    Decay,
    FactorOptimizer,
    Group,
    adam_directions,
)
from lowrank_opt.training.roles import FactorPair


@final
class ScaledGD(FactorOptimizer):
    r""":math:`L \mathrel{-}= \eta\, \nabla_L (\bar R^T \bar R + \lambda I)^{-1}`, likewise R.

    Both steps use the old iterates. With `damping` 0 the path of W does not depend on the gauge:
    neither on the start (L T, R T^-T), nor on a re-factorisation between steps. On a
    well-conditioned loss ``|W - Y|^2 / 2`` the natural `lr` is 1/2, whatever the condition
    number of Y.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    damping : float
        :math:`\lambda`; 1e-6 in Riemannian-preconditioned LoRA. Positive values break the
        invariance; at 0 a vanishing factor takes its pseudo-inverse.
    weight_decay, decay, trust, others, others_lr
        See `FactorOptimizer`.

    References
    ----------
    Tong, Ma and Chi (arXiv 2005.08898), eq. (3); Zhang and Pilanci, Riemannian Preconditioned LoRA
    (arXiv 2402.02347), whose metric this is.

    Examples
    --------
    >>> L, R = torch.eye(3, 1).requires_grad_(), torch.eye(2, 1).requires_grad_()
    >>> optimizer = ScaledGD([FactorPair(L, R)], lr=0.5)
    >>> (0.5 * ((L @ R.T)[0, 0] - 1.2) ** 2).backward()
    >>> optimizer.step()
    >>> round((L @ R.T)[0, 0].item(), 4)
    1.21
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 0.5,
        damping: float = 0.0,
        weight_decay: float = 0.0,
        decay: Decay = "product",
        trust: float = 1.0,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
    ) -> None:
        super().__init__(
            pairs,
            lr=lr,
            weight_decay=weight_decay,
            decay=decay,
            trust=trust,
            others=others,
            others_lr=others_lr,
            damping=damping,
        )

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        return [preconditioned(view, group["damping"])]


@final
class ScaledAdamW(FactorOptimizer):
    """AdamW on the preconditioned gradients of `ScaledGD`.

    Adam's division entry by entry ends the invariance under changes of gauge.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    betas : tuple of float
    eps : float
    damping, weight_decay, decay, trust, others, others_lr
        See `ScaledGD`.

    References
    ----------
    Zhang and Pilanci (arXiv 2402.02347), Algorithm 2.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> ScaledAdamW(model, lr=0.1).step()
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        damping: float = 1e-6,
        weight_decay: float = 0.0,
        decay: Decay = "product",
        trust: float = 0.03,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
    ) -> None:
        super().__init__(
            pairs,
            lr=lr,
            weight_decay=weight_decay,
            decay=decay,
            trust=trust,
            others=others,
            others_lr=others_lr,
            damping=damping,
            betas=betas,
            eps=eps,
        )

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        return adam_directions(preconditioned(view, group["damping"]).dense(), state, group)


def preconditioned(view: PairView, damping: float = 0.0) -> TallPair:
    r"""Return :math:`\nabla_L (\bar R^T \bar R + \lambda I)^{-1}`, likewise for R.

    At :math:`\lambda = 0` with pseudo-inverses.
    """
    partners = view.partners
    if damping == 0.0:
        return partners.unmagnified(view.gradients).times(partners.inverses.mT)
    metrics = partners.grams + damping * identity(view.pair.rank, partners.grams)
    _, inverses = cholesky(metrics)
    return TallPair(view.gradients, inverses @ inverses.mT)


def spectral_start(observed: Tensor, rank: int, *, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return balanced factors of the best rank-`rank` approximation of ``observed / fraction``.

    Parameters
    ----------
    observed : Tensor, shape (m, n)
        Dense or sparse, zero where not observed.
    rank : int
    fraction : float
        Share of observed entries.

    Returns
    -------
    left : Tensor, shape (m, rank)
    right : Tensor, shape (n, rank)
    """
    U, sigma, V = leading_svd(observed, rank)
    root = (sigma / fraction).sqrt()
    dtype = observed.dtype if observed.is_floating_point() else torch.float64
    return (U * root).to(dtype), (V * root).to(dtype)
