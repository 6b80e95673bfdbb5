"""Tangent vectors of the rank-r matrices at W, by thin products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowrank_opt.training.adam import State
from lowrank_opt.training.factor_optimizer import PairView
from lowrank_opt.training.tall import Tall, Terms, evaluate, scaled, store, stored

Split = Literal["symmetric", "zero", "sylvester"]


@dataclass(frozen=True, eq=False)
class Tangent:
    r"""The vector :math:`q = A V^T + U B^T - U C V^T`, U and V the frames of W's factors.

    Parameters
    ----------
    outer : Tall, shape (m, r)
        :math:`A = q V`.
    inner : Tall, shape (n, r)
        :math:`B = q^T U`.
    core : Tensor, shape (r, r)
        :math:`C = U^T q V`, in float64.
    left, right : Tall, shapes (m, r), (n, r)
        U and V.
    """

    outer: Tall
    inner: Tall
    core: Tensor
    left: Tall
    right: Tall

    @classmethod
    def of_gradient(cls, view: PairView) -> Tangent:
        """Return the orthogonal projection of the full gradient, from those of the factors."""
        U, V = view.left_basis.frame, view.right_basis.frame
        outer = view.right_basis.unmagnified(view.left_gradient)
        inner = view.left_basis.unmagnified(view.right_gradient)
        return cls(outer, inner, U.inner(outer), U, V)

    def square(self) -> Tensor:
        """Return the squared Frobenius norm, a float64 scalar."""
        parts = [x.inner(x).diagonal().sum() for x in (self.outer, self.inner)]
        return (parts[0] + parts[1] - self.core.square().sum()).clamp_min(0)

    def averaged(self, old: Tangent, weight: float) -> Tangent:
        """Return ``weight P old + (1 - weight) self``, P the projection on this tangent space."""
        t, s = old.right.inner(self.right), old.left.inner(self.left)
        a, b = self.left.inner(old.outer), old.inner.inner(self.right)
        b = b - old.core @ t
        outer = _mixed([old.outer.times(t), old.left.times(b)], self.outer, weight)
        a_beyond = a.mT - old.core.mT @ s
        inner = _mixed([old.inner.times(s), old.right.times(a_beyond)], self.inner, weight)
        core = torch.lerp(self.core, a @ t + s.mT @ b, weight)
        return Tangent(outer, inner, core, self.left, self.right)

    def put(self, state: State) -> None:
        """Store a copy; outer and inner must be multiplied out."""
        state |= {"outer": self.outer.dense(), "inner": self.inner.dense(), "core": self.core}
        store(state, "left_frame", self.left)
        store(state, "right_frame", self.right)

    @classmethod
    def get(cls, state: State) -> Tangent:
        """Return what `put` stored."""
        frames = (stored(state, "left_frame"), stored(state, "right_frame"))
        return cls(Tall(state["outer"]), Tall(state["inner"]), state["core"], *frames)

    def directions(self, view: PairView, split: Split) -> tuple[Terms, Terms]:
        """Return factor directions, at the same point, that change W by q to first order."""
        U, V, core = self.left, self.right, self.core
        left_inverse, right_inverse = view.left_basis.inverse.mT, view.right_basis.inverse.mT
        a_left, a_right = self.outer.times(right_inverse), self.inner.times(left_inverse)
        if split == "sylvester":
            X = _balancing(view, core)
            return (
                [a_left, U.times(-(core @ right_inverse) - view.left_basis.root @ X)],
                [a_right, V.times(view.right_basis.root @ X.mT)],
            )
        if split == "zero":
            return [a_left, U.times(-core @ right_inverse)], [a_right]
        return (
            [a_left, U.times(-0.5 * core @ right_inverse)],
            [a_right, V.times(-0.5 * core.mT @ left_inverse)],
        )


def _mixed(old: Sequence[Tall], new: Tall, weight: float) -> Tall:
    return Tall(evaluate([*scaled(old, weight), *scaled([new], 1 - weight)]))


def _balancing(view: PairView, core: Tensor) -> Tensor:
    r"""Solve :math:`\bar L^T \bar L X + X \bar R^T \bar R = -a_R^T \bar R`, by two eigenbases.

    With :math:`a_R = B K_L^{-T}`, the right-hand side is :math:`-K_L^{-1} C K_R`.
    """
    left, Q_left = torch.linalg.eigh(view.left_basis.gram)
    right, Q_right = torch.linalg.eigh(view.right_basis.gram)
    C = Q_left.mT @ -(view.left_basis.inverse @ core @ view.right_basis.root) @ Q_right
    weights = left.unsqueeze(1) + right
    X = torch.where(weights > 0, C / torch.where(weights > 0, weights, 1.0), 0.0)
    return Q_left @ X @ Q_right.mT
