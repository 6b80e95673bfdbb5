"""Tangent vectors of the rank-r matrices at W, by thin products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lowrank_opt.training.algebra.pair_view import PairView
from lowrank_opt.training.algebra.small import Small, namespace, paired, small, tensor
from lowrank_opt.training.algebra.tall import Both, State, TallPair, Terms, evaluate, scaled

Split = Literal["symmetric", "zero", "sylvester"]


@dataclass(frozen=True, eq=False)
class Tangent:
    r"""The vector :math:`q = A V^T + U B^T - U C V^T`, U and V the frames of W's factors.

    Parameters
    ----------
    parts : TallPair, shapes (m, r), (n, r)
        :math:`A = q V` and :math:`B = q^T U`.
    moves : TallPair, shapes (m, r), (n, r)
        :math:`A K_R^{-T}` and :math:`B K_L^{-T}`: what moves the factors.
    core : Small, shape (r, r)
        :math:`C = U^T q V`.
    frames : TallPair, shapes (m, r), (n, r)
        U and V.
    """

    parts: TallPair
    moves: TallPair
    core: Small
    frames: TallPair

    @classmethod
    def of_gradient(cls, view: PairView) -> Tangent:
        """Return the orthogonal projection of the full gradient, from those of the factors."""
        frames = view.partners.frames.swapped()
        parts = view.partners.unmagnified(view.gradients)
        moves = parts.times(view.partners.inverses.mT)
        return cls(parts, moves, frames.inner_of(parts, 0), frames)

    def square(self) -> float:
        """Return the squared Frobenius norm."""
        squares = sum(x.trace() for x in self.parts.inner(self.parts))
        return max(0.0, float(squares - (self.core**2).sum()))

    def to_dense(self) -> Tensor:
        """Return q itself, m x n."""
        A, B = self.parts.dense()
        U, V = self.frames.dense()
        C = tensor(self.core, A.dtype)
        return A @ V.mT + U @ (B - V @ C.mT).mT

    def averaged(self, old: Tangent, weight: float, view: PairView) -> Tangent:
        """Return ``weight P old + (1 - weight) self``, P the projection on this tangent space."""
        # U_old^T U and V_old^T V, then P old = A t + ... with t for A and s for B.
        s, t = old.frames.inner(self.frames)
        turns = paired(t, s)
        # U^T A_old and V^T B_old.
        a, b = self.frames.inner(old.parts)
        beyond = paired(b.mT, a.mT) - _both(old.core) @ turns
        core = weight * (a @ t + s.mT @ beyond[0]) + (1 - weight) * self.core
        to_moves = weight * view.partners.inverses.mT
        terms = [
            old.parts.times(turns @ to_moves),
            old.frames.times(beyond @ to_moves),
            *scaled([self.moves], 1 - weight),
        ]
        return self._of_moves(evaluate(terms), core, view)

    def multiplied_out(self, view: PairView) -> Tangent:
        """Return the same vector, ready to be stored."""
        return self._of_moves(self.moves.dense(), self.core, view)

    def _of_moves(self, moves: Both, core: Small, view: PairView) -> Tangent:
        # Moves are kept and parts derived: applying the moves then costs no product.
        parts = TallPair(moves, view.partners.roots.mT)
        return Tangent(parts, TallPair(moves), core, self.frames)

    def put(self, state: State) -> None:
        """Store a copy; it must be multiplied out."""
        state["core"] = tensor(self.core)
        self.parts.put(state, "mean")
        self.frames.copied().put(state, "frame")

    @classmethod
    def get(cls, state: State, like: Small) -> Tangent:
        """Return what `put` stored, with small arrays of the kind of `like`."""
        parts, frames = (TallPair.get(state, name, like) for name in ("mean", "frame"))
        return cls(parts, TallPair(parts.spans), small(state["core"], like), frames)

    def directions(self, view: PairView, split: Split) -> Terms:
        """Return factor directions, at the same point, that change W by q to first order."""
        # K_R^{-T} and K_L^{-T}.
        inverses = view.partners.inverses.mT
        core = _both(self.core) @ inverses
        if split == "symmetric":
            core = -0.5 * core
        elif split == "zero":
            core = paired(-core[0], 0 * core[1])
        else:
            K_right, K_left = view.partners.roots
            X = _balancing(view, self.core)
            core = paired(-core[0] - K_left @ X, K_right @ X.mT)
        return [self.moves, self.frames.times(core)]


def _both(core: Small) -> Small:
    return paired(core, core.mT)


def _balancing(view: PairView, core: Small) -> Small:
    r"""Solve :math:`\bar L^T \bar L X + X \bar R^T \bar R = -a_R^T \bar R`, by two eigenbases.

    With :math:`a_R = B K_L^{-T}`, the right-hand side is :math:`-K_L^{-1} C K_R`.
    """
    xp = namespace(core)
    (right, left), (Q_right, Q_left) = xp.linalg.eigh(view.partners.grams)
    _, K_left_inverse = view.partners.inverses
    K_right, _ = view.partners.roots
    C = Q_left.mT @ -(K_left_inverse @ core @ K_right) @ Q_right
    weights = left[:, None] + right
    X = xp.where(weights > 0, C / xp.where(weights > 0, weights, 1.0), 0.0)
    return Q_left @ X @ Q_right.mT
