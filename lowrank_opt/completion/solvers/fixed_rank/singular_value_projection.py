"""Projected gradient steps: along the sparse gradient, then to the nearest matrix of the rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_opt.completion.loop.checkpoint import packed, unpacked
from lowrank_opt.completion.loop.remembered import Memory
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.rank_stages import (
    TRAITS,
    Start,
    State,
    check_options,
    complete_at_rank,
)
from lowrank_opt.completion.solvers.fixed_rank.riemannian import exact_step
from lowrank_opt.completion.solvers.traits import Traits

_HALVINGS = 20
# Passes of the subspace iteration, which starts next to its solution.
_PASSES = 2


@dataclass(frozen=True)
class SingularValueProjection:
    r"""Accelerated singular value projection at a fixed rank.

    Steps :math:`W \leftarrow H_r(Z - \mu\, S_Z)` from the extrapolated
    :math:`Z = W + \beta (W - W_\text{before})`, where the sparse S holds the weighted residuals of
    Z and :math:`H_r` truncates to the rank. The step :math:`\mu = \|P S\|^2 / \|P S\|_\Omega^2` is
    exact on the tangent space at W, as in normalised iterative hard thresholding. The momentum
    starts again whenever the loss would increase; the loss never does. The operator "low rank plus
    sparse" is multiplied by thin blocks and never formed.

    Parameters
    ----------
    start, tolerance, max_iterations
        As in `Riemannian`.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    References
    ----------
    Jain, Meka and Dhillon (2010), Guaranteed rank minimization via singular value projection,
    algorithm 1; step: Tanner and Wei (2013), Normalized iterative hard thresholding for matrix
    completion, with the tangent space of Wei, Cai, Chan and Leung (2016); restarts of the
    momentum: O'Donoghue and Candes (2015).

    Examples
    --------
    >>> SingularValueProjection(max_iterations=50)
    SingularValueProjection(start='stages', tolerance=1e-06, max_iterations=50)
    """

    traits: ClassVar[Traits] = TRAITS
    start: Start = "stages"
    tolerance: float = 1e-6
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_options(self.start, self.tolerance, self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, in the dtype of the observations."""
        return complete_at_rank(
            projected_steps,
            problem,
            run,
            start=self.start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def projected_steps(fit: ObservedFit, point: Point, memory: Memory) -> Iterator[State]:
    """Yield a point and those that projected steps lead to; end if no step decreases the loss."""
    now, past = (memory.get(name, unpacked(point)) for name in ("point", "before"))
    before, point, age = packed(point, past), packed(point, now), memory.get("age", 0)
    residuals, before_residuals = (fit.residuals(*x.factors()) for x in (point, before))
    while True:
        memory |= {"point": unpacked(point), "before": unpacked(before), "age": age}
        loss = fit.loss(residuals)
        yield State(point.operator(), loss, _gradient_norm(fit, point, residuals))
        beta = age / (age + 3)
        # Residuals are affine in the matrix: those of Z need no pass over the entries.
        at_Z = residuals + beta * (residuals - before_residuals)
        Z = _extrapolate(point, before, beta)
        new, moved = _projected_step(fit, point, Z, at_Z)
        if fit.loss(moved) > loss:
            age = 0
            found = _cautious_step(fit, point, residuals, loss)
            if found is None:
                return
            new, moved = found
        before, before_residuals = point, residuals
        point, residuals, age = new, moved, age + 1


def _cautious_step(
    fit: ObservedFit, point: Point, residuals: Tensor, loss: float
) -> tuple[Point, Tensor] | None:
    """Step without momentum, halving until the loss decreases."""
    for k in range(_HALVINGS):
        new, moved = _projected_step(fit, point, point.factors(), residuals, 0.5**k)
        if fit.loss(moved) < loss:
            return new, moved
    return None


def _projected_step(
    fit: ObservedFit,
    point: Point,
    Z: tuple[Tensor, Tensor],
    residuals: Tensor,
    share: float = 1.0,
) -> tuple[Point, Tensor]:
    """Return the truncation of ``Z - share * mu * S`` and its residuals."""
    S = fit.weigh(residuals)
    along_rows, along_cols = fit.products(S, point.U, point.V)
    tangent = point.project(along_rows, along_cols)
    mu = -share * exact_step(fit, residuals, fit.predict(*tangent.factors(point)))
    basis = torch.cat((point.V, mu * along_cols), dim=1)
    new = truncate(fit, Z, -mu * S, basis, len(point.s))
    return new, fit.residuals(*new.factors())


def truncate(
    fit: ObservedFit, low_rank: tuple[Tensor, Tensor], entries: Tensor, basis: Tensor, rank: int
) -> Point:
    """Return the leading triples of low rank plus sparse by subspace iteration.

    Parameters
    ----------
    low_rank : pair of Tensor, shapes (m, k) and (n, k)
    entries : Tensor, shape (nnz,)
        Of the sparse part.
    basis : Tensor, shape (n, b), b >= rank
        Columns that span about the leading right singular vectors.
    rank : int

    References
    ----------
    Halko, Martinsson and Tropp (2011), Finding structure with randomness, algorithm 4.4, from the
    given basis instead of a random one.
    """
    left, right = low_rank
    V = torch.linalg.qr(basis).Q
    for _ in range(_PASSES - 1):
        V, _, _ = _pass(fit, left, right, entries, V)
    V, core, U = _pass(fit, left, right, entries, V)
    # The matrix is about U core^T V^T.
    P, sigma, Qh = torch.linalg.svd(core.mT)
    return Point((U @ P)[:, :rank], sigma[:rank], (V @ Qh.mT)[:, :rank])


def _pass(
    fit: ObservedFit, left: Tensor, right: Tensor, entries: Tensor, V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the QR factors of ``M^T U``, and U, an orthonormal basis of ``M V``."""
    sparse, _ = fit.products(entries, left.new_zeros(len(left), V.shape[1]), V)
    U = torch.linalg.qr(left @ (right.mT @ V) + sparse).Q
    _, sparse = fit.products(entries, U, right.new_zeros(len(right), U.shape[1]))
    V, core = torch.linalg.qr(right @ (left.mT @ U) + sparse)
    return V, core, U


def _extrapolate(point: Point, before: Point, beta: float) -> tuple[Tensor, Tensor]:
    """Return factors of ``point + beta (point - before)``."""
    (L, R), (L_before, R_before) = point.factors(), before.factors()
    return torch.cat(((1 + beta) * L, -beta * L_before), dim=1), torch.cat((R, R_before), dim=1)


def _gradient_norm(fit: ObservedFit, point: Point, residuals: Tensor) -> float:
    return point.project(*fit.products(fit.weigh(residuals), point.U, point.V)).norm()
