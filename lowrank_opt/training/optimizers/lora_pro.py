"""LoRA-Pro: the step of the factors that moves W along the projected full gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

from torch import Tensor, nn

from lowrank_opt.training.algebra.pair_view import PairView
from lowrank_opt.training.algebra.tall import Both, Terms, evaluate, scaled
from lowrank_opt.training.algebra.tangent import Split, Tangent
from lowrank_opt.training.optimizers.adam import State, corrected_decay
from lowrank_opt.training.optimizers.factor_optimizer import (
    Decay,
    FactorOptimizer,
    Group,
    adam_directions,
)
from lowrank_opt.training.roles import FactorPair


def tangent_direction(view: PairView, split: Split = "symmetric") -> Both:
    r"""Return factor directions whose change of W is nearest to the full gradient G.

    The change :math:`a_L \bar R^T + \bar L a_R^T` equals :math:`q = P_L G + G P_R - P_L G P_R`, the
    orthogonal projection of G on the tangent space of the rank-r matrices at W, from the factors'
    gradients alone. A vanishing factor contributes nothing.

    Parameters
    ----------
    view : PairView
    split : {"symmetric", "zero", "sylvester"}
        Who carries :math:`P_L G P_R`: half each; the right factor; or so that
        :math:`|a_L|^2 + |a_R|^2` is least (balanced factors stay so). q is the same. The first two
        commute with every change of gauge, the last one with orthogonal ones only.

    Returns
    -------
    left : Tensor, shape (m, r)
    right : Tensor, shape (n, r)

    References
    ----------
    Wang et al., LoRA-Pro (arXiv 2407.18242), Theorems 2.1 and 2.3; written with thin QR.
    """
    return evaluate(Tangent.of_gradient(view).directions(view, split))


@final
class LoRAPro(FactorOptimizer):
    r"""Gradient descent on W, projected on the tangent space: nothing larger than the factors.

    Without momentum one step is :math:`W \mathrel{-}= \eta q` to first order; the natural `lr` is 1
    on a well-conditioned quadratic. Momentum is kept as a tangent vector of W and projected on the
    new tangent space before each step, so the path does not depend on the gauge, re-factorisation
    between steps included (`split` "symmetric" or "zero").

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    momentum : float
        In [0, 1); the average ``momentum * old + (1 - momentum) * new``, bias-corrected.
    normalized : bool
        Divide by the root of a running average of :math:`|q|_F^2 / r`: steps of W of a size that
        `lr` sets, as Adam's are.
    beta : float
        Decay of that average.
    split : {"symmetric", "zero", "sylvester"}
        See `tangent_direction`.
    weight_decay, decay, trust, others, others_lr
        See `FactorOptimizer`.

    References
    ----------
    Wang et al., LoRA-Pro (arXiv 2407.18242). Momentum by projection: Boumal, *An Introduction to
    Optimization on Smooth Manifolds* (2023), section 10.5.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> LoRAPro(model, lr=0.1).step()
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 1e-2,
        momentum: float = 0.0,
        normalized: bool = False,
        beta: float = 0.999,
        split: Split = "symmetric",
        weight_decay: float = 0.0,
        decay: Decay = "product",
        trust: float = 0.5,
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
            normalized=normalized,
            beta=beta,
            split=split,
        )

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        momentum, q = group["momentum"], Tangent.of_gradient(view)
        t: int = state.get("step", 0) + 1
        state["step"] = t
        size = _size(q, state, group["beta"], t) if group["normalized"] else 1.0
        if momentum > 0.0:
            weight = corrected_decay(momentum, t)
            if t > 1:
                q = q.averaged(Tangent.get(state, q.core), weight, view)
            else:
                q = q.multiplied_out(view)
            q.put(state)
        directions = q.directions(view, group["split"])
        return directions if size == 1.0 else scaled(directions, 1 / size)


def _size(q: Tangent, state: State, beta: float, t: int) -> float:
    square = beta * state.get("square", 0.0) + (1 - beta) * q.square() / len(q.core)
    state["square"] = square
    size = math.sqrt(square / (1 - beta**t))
    return size if size > 0 else 1.0


@final
class LoRAProAdamW(FactorOptimizer):
    """AdamW on LoRA-Pro's directions: the efficient mode, with moments of the size of the factors.

    Adam's division entry by entry ends the invariance under changes of gauge; what remains is that
    badly scaled factors train.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    betas : tuple of float
    eps : float
    split : {"symmetric", "zero", "sylvester"}
        See `tangent_direction`.
    weight_decay, decay, trust, others, others_lr
        See `FactorOptimizer`.

    References
    ----------
    Wang et al., LoRA-Pro (arXiv 2407.18242), Algorithm 2.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> LoRAProAdamW(model, lr=0.1).step()
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        split: Split = "sylvester",
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
            betas=betas,
            eps=eps,
            split=split,
        )

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        return adam_directions(tangent_direction(view, group["split"]), state, group)
