"""LoRA-Pro as its repository ships it: Adam's moments of the equivalent gradient of W."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import final

from torch import Tensor, nn

from lowrank_opt.training.algebra.pair_view import PairView
from lowrank_opt.training.algebra.tall import Both, State, Terms
from lowrank_opt.training.algebra.tangent import Split, Tangent
from lowrank_opt.training.optimizers.adam import adam_direction
from lowrank_opt.training.optimizers.factor_optimizer import Decay, FactorOptimizer, Group
from lowrank_opt.training.roles import FactorPair


@final
class LoRAProFull(FactorOptimizer):
    r"""The full mode: two m x n moments of :math:`q = P_L G + G P_R - P_L G P_R` for each pair.

    q is formed, Adam's direction D of it counts as a gradient of W, and the factors take the step
    whose change of W is nearest to D (`tangent_direction`). As the state belongs to W, a change of
    gauge moves the path in its second-order term only. **The one optimizer here whose state and
    whose step are as large as W**, twice over; `LoRAProAdamW` keeps moments of the factors, which
    is another method: after 40 steps W differed by 72 % in one comparison.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    betas : tuple of float
    eps : float
    split : {"symmetric", "zero", "sylvester"}
        See `tangent_direction`; published is the last one.
    weight_decay : float
    decay : {"product", "factors"}
        See `FactorOptimizer`; published is the second one.
    trust : float
        See `FactorOptimizer`; infinite, as published, means no damping. Steps are counted from
        1 and pseudo-inverses have no shift, where the authors' code starts at 2 and adds 1e-8.
    others, others_lr
        See `FactorOptimizer`.

    References
    ----------
    Wang et al., LoRA-Pro (arXiv 2407.18242), Algorithm 1 and the code published with it.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> LoRAProFull(model, lr=0.1).step()
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
        decay: Decay = "factors",
        trust: float = float("inf"),
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
        q = Tangent.of_gradient(view).to_dense()
        D = adam_direction(q, state, "dense", group["betas"], group["eps"])
        moved = replace(view, gradients=_pulled_back(view, D))
        return Tangent.of_gradient(moved).directions(moved, group["split"])


def _pulled_back(view: PairView, gradient: Tensor) -> Both:
    """Return what the gradients of the factors are when that of W is the given dense one."""
    L, R = (x.to(gradient.dtype) for x in view.factors)
    pair = view.pair
    return gradient @ pair.times_core(R, transposed=True), gradient.mT @ pair.times_core(L)
