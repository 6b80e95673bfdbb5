"""LoRA-Pro: the step of the factors that moves W along the projected full gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, final

import torch
from torch import Tensor, nn

from lowrank_opt.training.adam import State, adam_direction
from lowrank_opt.training.factor_optimizer import FactorOptimizer, Group, PairView
from lowrank_opt.training.roles import FactorPair
from lowrank_opt.training.thin_basis import transport

Split = Literal["symmetric", "zero", "sylvester"]


def tangent_direction(view: PairView, split: Split = "symmetric") -> tuple[Tensor, Tensor]:
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
    left, right = view.left_basis, view.right_basis
    outer = view.left_gradient @ right.inverse  # G U_R
    inner = view.right_gradient @ left.inverse  # G^T U_L
    core = left.frame.mT @ outer
    share = 0.5 if split == "symmetric" else 1.0
    a_left = (outer - left.frame @ (share * core)) @ right.inverse.mT
    a_right = (inner - right.frame @ ((1 - share) * core.mT)) @ left.inverse.mT
    if split == "sylvester":
        X = _balancing(view, a_right).to(a_left.dtype)
        L, R = _barred(view)
        return a_left - L.to(X.dtype) @ X, a_right + R.to(X.dtype) @ X.mT
    return a_left, a_right


def _balancing(view: PairView, a_right: Tensor) -> Tensor:
    r"""Solve :math:`\bar L^T \bar L X + X \bar R^T \bar R = -a_R^T \bar R`, by two eigenbases."""
    R = _barred(view)[1].to(a_right.dtype)
    left, Q_left = torch.linalg.eigh(view.left_basis.gram)
    right, Q_right = torch.linalg.eigh(view.right_basis.gram)
    C = Q_left.mT @ -(a_right.mT @ R).double() @ Q_right
    weights = left.unsqueeze(1) + right
    X = torch.where(weights > 0, C / torch.where(weights > 0, weights, 1.0), 0.0)
    return Q_left @ X @ Q_right.mT


def _barred(view: PairView) -> tuple[Tensor, Tensor]:
    pair = view.pair
    return pair.times_core(view.left), pair.times_core(view.right, transposed=True)


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
    weight_decay, trust, others, others_lr
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
        trust: float = 0.5,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
    ) -> None:
        super().__init__(
            pairs,
            lr=lr,
            weight_decay=weight_decay,
            trust=trust,
            others=others,
            others_lr=others_lr,
            momentum=momentum,
            normalized=normalized,
            beta=beta,
            split=split,
        )

    def pair_step(self, view: PairView, state: State, group: Group) -> tuple[Tensor, Tensor]:
        lr, momentum = group["lr"], group["momentum"]
        if momentum == 0.0 and not group["normalized"]:
            a_left, a_right = tangent_direction(view, group["split"])
            return -lr * a_left, -lr * a_right
        t: int = state.get("step", 0) + 1
        state["step"] = t
        q = _Tangent.of_gradient(view)
        size = _size(q, state, group["beta"], t) if group["normalized"] else 1.0
        q = q.averaged(state, view, momentum)
        lr /= size * (1 - momentum**t)
        a_left, a_right = tangent_direction(q.as_gradients(view), group["split"])
        return -lr * a_left, -lr * a_right


class _Tangent:
    """The tangent vector ``outer U_R^T + U_L inner^T`` with ``U_L^T outer = 0``."""

    def __init__(self, outer: Tensor, inner: Tensor, left: Tensor, right: Tensor) -> None:
        self.outer, self.inner, self.left, self.right = outer, inner, left, right

    @classmethod
    def of_gradient(cls, view: PairView) -> _Tangent:
        return cls._projected(
            view.left_gradient @ view.right_basis.inverse,
            view.right_gradient @ view.left_basis.inverse,
            view,
        )

    @classmethod
    def _projected(cls, GR: Tensor, GtL: Tensor, view: PairView) -> _Tangent:
        """Project the matrix G with ``G U_R`` and ``G^T U_L`` given."""
        U, V = view.left_basis.frame, view.right_basis.frame
        return cls(GR - U @ (U.mT @ GR), GtL, U, V)

    def moved_to(self, view: PairView) -> _Tangent:
        """Return the projection on the tangent space at another point."""
        U, V = view.left_basis.frame, view.right_basis.frame
        GR = self.outer @ transport(V, self.right) + self.left @ (self.inner.mT @ V)
        GtL = self.right @ (self.outer.mT @ U) + self.inner @ transport(U, self.left)
        return self._projected(GR, GtL, view)

    def averaged(self, state: State, view: PairView, momentum: float) -> _Tangent:
        """Return the running average with what `state` holds, and store it there."""
        if "outer" in state:
            old = _Tangent(*(state[k] for k in ("outer", "inner", "left", "right")))
            old = old.moved_to(view)
        else:
            old = _Tangent(self.outer * 0, self.inner * 0, self.left, self.right)
        self.outer = torch.lerp(old.outer, self.outer, 1 - momentum)
        self.inner = torch.lerp(old.inner, self.inner, 1 - momentum)
        state.update(vars(self))
        return self

    def square(self) -> Tensor:
        """Return the squared Frobenius norm: the two parts are orthogonal."""
        return self.outer.square().sum() + self.inner.square().sum()

    def as_gradients(self, view: PairView) -> PairView:
        r"""Return the view with the factor gradients of this vector, ``q \bar R`` and so on."""
        left, right = view.left_basis, view.right_basis
        dtype = self.outer.dtype
        K_left, K_right = left.root.to(dtype), right.root.to(dtype)
        GR = self.outer + self.left @ (self.inner.mT @ self.right)
        return PairView(
            view.pair, view.left, view.right, GR @ K_right, self.inner @ K_left, left, right
        )


def _size(q: _Tangent, state: State, beta: float, t: int) -> float:
    state["square"] = torch.lerp(
        q.square().double() / q.left.shape[1],
        state.get("square", torch.zeros_like(q.square(), dtype=torch.float64)),
        beta,
    )
    size = float(state["square"] / (1 - beta**t)) ** 0.5
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
    weight_decay, trust, others, others_lr
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
        trust: float = 0.5,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
    ) -> None:
        super().__init__(
            pairs,
            lr=lr,
            weight_decay=weight_decay,
            trust=trust,
            others=others,
            others_lr=others_lr,
            betas=betas,
            eps=eps,
            split=split,
        )

    def pair_step(self, view: PairView, state: State, group: Group) -> tuple[Tensor, Tensor]:
        a_left, a_right = tangent_direction(view, group["split"])
        options = (group["betas"], group["eps"])
        return (
            -group["lr"] * adam_direction(a_left, state, "left", *options),
            -group["lr"] * adam_direction(a_right, state, "right", *options),
        )
