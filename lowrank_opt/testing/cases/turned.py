"""Members of sets of turned weights, and by how much others are outside, written in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowrank_opt.testing.cases.oracle import Array

# Angles of the rotations that lead to neighbours.
_STEPS = (1e-1, 1e-2, 1e-3)


@dataclass(frozen=True)
class TurnedWeights:
    r"""Matrices ``A (R - I)``, R block-diagonal with rotations within a radius of the identity.

    Parameters
    ----------
    weight : Array, shape (m, n)
        A.
    radius : float
    blocks : int
    planes : int
        Largest number of planes that a block turns.
    exact : bool
        Whether the set promises the best members, and not local optima only.
    """

    weight: Array
    radius: float
    blocks: int
    planes: int
    exact: bool

    def member(self, shares: Array, frame: Array) -> Array:
        """Return the member whose planes, of neighbouring columns of a frame, have moved by shares.

        Parameters
        ----------
        shares : Array, shape (planes,)
            Of the radius, each at most one.
        frame : Array, shape (b, b)
            Orthogonal.
        """
        D = np.zeros_like(frame)
        for k, share in enumerate(shares):
            s = share * self.radius / 2
            c, s = -2 * s * s, 2 * s * np.sqrt(max(0.0, 1 - s * s))
            D[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, -s], [s, c]]
        D = frame @ D @ frame.T
        return np.hstack([A @ D for A in self._split(self.weight)])

    @property
    def block(self) -> int:
        """Number of columns that are turned together."""
        return self.weight.shape[1] // self.blocks

    def _split(self, matrix: Array) -> list[Array]:
        return np.split(matrix, self.blocks, axis=1)

    def outside(self, matrix: Array) -> float:
        """Return by what length a matrix misses the set: zero for members only."""
        pairs = zip(self._split(self.weight), self._split(matrix), strict=True)
        return max(self._missed(A, T) for A, T in pairs)

    def _missed(self, A: Array, T: Array) -> float:
        size = max(abs(A).max(), abs(T).max())
        if not size:
            return 0.0
        A, T = A / size, T / size
        cross = T @ A.T
        bent = np.linalg.norm(cross + cross.T + T @ T.T, 2)
        bent /= np.linalg.norm(A, 2) + np.linalg.norm(A + T, 2)
        _, vectors = np.linalg.eigh(T @ T.T - self.radius**2 * (A @ A.T))
        y = vectors[:, -1]
        far = np.linalg.norm(T.T @ y) - self.radius * np.linalg.norm(A.T @ y)
        return float(size * max(bent, far, 0.0, self._mirrored(A, T)))

    def _mirrored(self, A: Array, T: Array) -> float:
        """Return the least singular value of A if A + T is a reflection of it."""
        least = np.linalg.svd(A)[1][-1] if len(A) >= A.shape[1] else 0.0
        if self.radius < 2 or least < 1e-13:
            return 0.0
        R = np.linalg.lstsq(A, A + T, rcond=None)[0]
        return float(least) if np.linalg.det(R) < 0 else 0.0

    def touches(self, matrix: Array, step: float) -> bool:
        """Return whether a member grown by a step is further away than the radius allows."""
        for A, T in zip(self._split(self.weight), self._split(matrix), strict=True):
            form = (1 + step) ** 2 * (T @ T.T) - self.radius**2 * (A @ A.T)
            if np.linalg.eigvalsh(form)[-1] > 1e-3 * step * np.linalg.norm(A, 2) ** 2:
                return True
        return False

    def rivals(self, point: Array, seed: int) -> Iterator[Array]:
        """Yield members near a member; random ones too, where the set promises the best."""
        rng = np.random.default_rng(seed)
        b = self.block
        if self.exact:
            for _ in range(8):
                frame = np.linalg.qr(rng.standard_normal((b, b)))[0]
                yield self.member(rng.uniform(0, 1, self.planes), frame)
        blocks = list(zip(self._split(self.weight), self._split(point), strict=True))
        if any(np.linalg.matrix_rank(A) < b for A, _ in blocks):
            # Only independent columns tell R.
            return
        for step in _STEPS:
            K = rng.standard_normal((b, b))
            turn = np.linalg.solve(np.eye(b) + step * (K - K.T), np.eye(b) - step * (K - K.T))
            for other in (turn, turn.T):
                moved = (np.linalg.lstsq(A, T, rcond=None)[0] for A, T in blocks)
                # Angles, and how many planes turn, stay what they are.
                parts = zip(blocks, moved, strict=True)
                yield np.hstack([A @ (other @ D @ other.T) for (A, _), D in parts])
