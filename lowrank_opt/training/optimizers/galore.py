"""GaLore and Fira: Adam in a low-rank subspace of the gradient, for dense weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank_opt.errors import RankError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.training.optimizers.adam import State, adam_direction, restore_precision

Group = dict[str, Any]


@final
class GaLore(Optimizer):
    r"""Adam on :math:`P^T G`, P the leading left singular vectors of a recent gradient G (m <= n).

    Weights may reach full rank; the state has ``r (m + 2 n)`` numbers instead of ``2 m n``. With
    `residual` the rest of the gradient, :math:`E = G - P P^T G`, takes part as in Fira: scaled
    column by column like Adam scales the projected part, its norm growing by 1 % a step at most.
    Parameters with one axis, or with both sides at most `rank`, take plain AdamW steps; those with
    more than two axes count as ``flatten(1)``.

    Parameters
    ----------
    params : iterable of Tensor or of parameter groups
    lr : float
    rank : int
        r, at least 1.
    refresh : int
        Number of steps between two projectors.
    scale : float
        Factor of the projected step.
    residual : bool
        Fira. E is orthogonal to P, as in the paper, which the released code is not.
    growth : float
        Largest quotient of the norms of two consecutive residuals.
    betas, eps, weight_decay
        Of AdamW; the decay is decoupled. The moments are transported to the new subspace at a
        refresh: the first one by :math:`P_{new}^T P_{old}`, the second by its squares.

    References
    ----------
    Zhao et al., GaLore (arXiv 2403.03507), Algorithm 2; Chen et al., Fira (arXiv 2410.01623), eqs.
    (6) to (8).

    Examples
    --------
    >>> weight = torch.zeros(6, 4, requires_grad=True)
    >>> (weight - torch.eye(6, 4)).square().sum().backward()
    >>> GaLore([weight], lr=0.1, rank=2).step()
    >>> int(torch.linalg.matrix_rank(weight.detach()))
    2
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        *,
        lr: float = 1e-2,
        rank: int = 128,
        refresh: int = 200,
        scale: float = 0.25,
        residual: bool = False,
        growth: float = 1.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if rank < 1 or refresh < 1:
            raise RankError(
                f"rank and refresh must be >= 1; got rank={rank!r}, refresh={refresh!r}"
            )
        shared: Group = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        own: Group = {"rank": rank, "refresh": refresh, "scale": scale}
        super().__init__(params, shared | own | {"residual": residual, "growth": growth})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    d = _direction(p.grad, self.state[p], group)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_((group["lr"] * d).to(p.dtype))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike the base class, keep the precision in which it was stored."""
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict)


def _direction(gradient: Tensor, state: State, group: Group) -> Tensor:
    betas, eps = group["betas"], group["eps"]
    G = gradient.flatten(1) if gradient.ndim > 1 else gradient
    if gradient.ndim < 2 or min(G.shape) <= group["rank"]:
        return adam_direction(gradient, state, "adam", betas, eps)
    G = G.to(torch.promote_types(G.dtype, torch.float32))
    wide = G.shape[0] <= G.shape[1]
    d = _projected(G if wide else G.mT, state, group)
    return (d if wide else d.mT).reshape(gradient.shape)


def _projected(G: Tensor, state: State, group: Group) -> Tensor:
    P = _projector(G, state, group)
    R = P.mT @ G
    N = adam_direction(R, state, "adam", group["betas"], group["eps"])
    step = group["scale"] * (P @ N)
    return step + _residual(G - P @ R, N, R, state, group) if group["residual"] else step


def _projector(G: Tensor, state: State, group: Group) -> Tensor:
    """Return the projector, made new every `refresh` steps, with the moments transported."""
    t: int = state.get("adam_step", 0)
    if t % group["refresh"] == 0:
        P = leading_svd(G, group["rank"])[0].to(G.dtype)
        if t > 0:
            moved = P.mT @ state["projector"]
            state["adam_mean"] = moved @ state["adam_mean"]
            state["adam_square"] = moved.square() @ state["adam_square"]
        state["projector"] = P
    return state["projector"]


def _residual(E: Tensor, N: Tensor, R: Tensor, state: State, group: Group) -> Tensor:
    """Scale the residual by columns and limit the growth of its norm: Fira, eqs. (7), (8)."""
    columns = torch.linalg.vector_norm(N, dim=0) / (torch.linalg.vector_norm(R, dim=0) + 1e-8)
    E = E * columns
    norm = float(torch.linalg.vector_norm(E))
    limit: float = group["growth"] * state.get("residual_norm", norm)
    if norm > limit > 0:
        E, norm = E * (limit / norm), limit
    state["residual_norm"] = norm
    return E
