"""Steepest descent of W in the spectral norm, one factor at a time: Muon for pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from lowrank_opt.linalg import negligible
from lowrank_opt.training.algebra.pair_view import PairView
from lowrank_opt.training.algebra.small import namespace
from lowrank_opt.training.algebra.tall import Both, TallPair, Terms, add_to
from lowrank_opt.training.algebra.thin_basis import ONE_PASS_CONDITION, thin_bases
from lowrank_opt.training.optimizers.adam import State
from lowrank_opt.training.optimizers.factor_optimizer import Decay, FactorOptimizer, Group
from lowrank_opt.training.roles import FactorPair

# Gram matrices of smaller entries are near underflow.
_LEAST = negligible(torch.float32)


@final
class SpectralDescent(FactorOptimizer):
    r""":math:`\dot L = -\tfrac{\eta}{2}\, \mathrm{msign}(\nabla_L K^{-1})\, K^{-T}`, likewise R.

    With :math:`\bar R = U K`. Each factor's part of the step has spectral norm ``lr / 2`` in W, so
    that W moves by at most `lr` to first order. Momentum is kept in the coordinates of U and
    transported, so the path does not depend on the gauge, re-factorisation between steps included;
    the paper averages the factors' gradients, which do. Without momentum the two are the same step.
    Separate Muon steps on the factors are not this: they depend on the gauge.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
        Bound on the first-order change of W in the spectral norm.
    momentum : float
        In [0, 1).
    weight_decay, decay, trust, others, others_lr
        See `FactorOptimizer`.

    References
    ----------
    LoRA-Muon (arXiv 2606.12921); msign here is exact, by thin QR and a small SVD, instead of
    Newton-Schulz steps (Jordan et al., Muon, 2024) whose result has singular values in 0.3 .. 1.1.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> SpectralDescent(model, lr=0.1).step()
    >>> round(float(model().schatten_norm(float("inf"))), 6)
    0.05
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 1e-2,
        momentum: float = 0.9,
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
            momentum=momentum,
        )

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        beta, partners = group["momentum"], view.partners
        h = partners.unmagnified(view.gradients)
        if "mean_0" in state:
            Pt = TallPair.get(state, "frame", partners.grams).inner(partners.frames)
            M = TallPair.get(state, "mean", partners.grams).times(beta * Pt).dense()
            add_to(M, [h], 1 - beta)
        else:
            M = h.dense()
        TallPair(M).put(state, "mean")
        partners.frames.copied().put(state, "frame")
        return [_msign(M, 0.5).times(partners.inverses.mT)]


def msign(x: Tensor) -> Tensor:
    """Return the orthogonal polar factor, zero where `x` is zero.

    Parameters
    ----------
    x : Tensor, shape (m, r)

    Returns
    -------
    Tensor, shape (m, r)
        All singular values 1 or, for directions zero to rounding, 0.

    Examples
    --------
    >>> msign(torch.diag(torch.tensor([3.0, -2.0, 0.0])))[:, :2]
    tensor([[ 1.,  0.], [ 0., -1.], [ 0.,  0.]])
    """
    return _msign((x, x)).dense()[0]


def _msign(factors: Both, size: float = 1.0) -> TallPair:
    """Return the polar factors times `size`."""
    if factors[0].dtype == torch.float32:
        grams = TallPair(factors).inner(TallPair(factors))
        w, Q = namespace(grams).linalg.eigh(grams)
        # Where a Gram matrix in single precision will do, its inverse square root is cheaper.
        if all(
            low >= max(high / ONE_PASS_CONDITION**2, _LEAST) for low, high in w[:, [0, -1]].tolist()
        ):
            return TallPair(factors, (Q * (size * w**-0.5)[:, None]) @ Q.mT)
    bases = thin_bases(factors)
    U, _, Vh = namespace(bases.roots).linalg.svd(bases.roots)
    return bases.frames.times(size * U @ Vh)
