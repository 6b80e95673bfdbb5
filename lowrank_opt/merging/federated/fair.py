r"""LoRA-FAIR: correct the averaged left factor so that the product comes nearer to the average.

With :math:`D = \sum_k p_k B_k A_k` and the averages :math:`\bar B, \bar A`, a correction dB of
:math:`\bar B` can reach :math:`D P`, P the projector on the row space of :math:`\bar A`, and no
more: :math:`\|D (I - P)\|` stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.linalg import lp_norm, orthonormal_columns
from lowrank_opt.merging.clients.factors import ClientFactors
from lowrank_opt.operator import LowRankOperator

FairObjective: TypeAlias = Literal["frobenius", "cosine", "cosine_squared"]


def corrected_mean(
    clients: ClientFactors, *, regularization: float, objective: FairObjective
) -> LowRankOperator:
    r"""Return ``(mean left + dB) diag(scale) (mean right)^T``.

    Parameters
    ----------
    clients : ClientFactors
    regularization : float
        Nonnegative; infinite gives the plain mean.
    objective : {"frobenius", "cosine", "cosine_squared"}
        What is minimised over dB: :math:`\|E - dB \bar A\|_F^2 + \lambda \|dB\|_F^2` in
        closed form; :math:`1 - \cos + \lambda \|dB\|_F`, as printed in the paper; or the same
        with :math:`\|dB\|_F^2`, as in the re-implementations.
    """
    mean, residual = clients.mean(), clients.residual()
    if residual is None or regularization == float("inf"):
        return mean
    if objective == "frobenius":
        correction = _frobenius(mean, residual, regularization)
    else:
        correction = _cosine(mean, residual, regularization, squared=objective == "cosine_squared")
    left = mean.left + correction
    return LowRankOperator(left, mean.scale, mean.right)


def _frobenius(mean: LowRankOperator, residual: LowRankOperator, regularization: float) -> Tensor:
    r"""Return :math:`dB = E \bar A^T (\bar A \bar A^T + \lambda I)^+`, E what the mean misses.

    It minimises :math:`\|E - dB \bar A\|_F^2 + \lambda \|dB\|_F^2`; in the SVD of A, each direction
    is weighted by :math:`\sigma / (\sigma^2 + \lambda)`.
    """
    V, sigma, Zh = torch.linalg.svd(mean.right * mean.scale, full_matrices=False)
    floor = max(mean.right.shape) * torch.finfo(sigma.dtype).eps * sigma[:1]
    kept = (sigma > floor) & (sigma > 0)
    # Divided twice by sigma: its square overflows and underflows.
    safe = torch.where(kept, sigma, 1.0)
    filter_ = torch.where(kept, 1 / (safe + regularization / safe), 0.0)
    return ((residual @ V) * filter_) @ Zh


def _cosine(
    mean: LowRankOperator, residual: LowRankOperator, regularization: float, *, squared: bool
) -> Tensor:
    r"""Return a local minimiser of :math:`1 - \cos(D, (\bar B + dB) \bar A) + \lambda \|dB\|_F`.

    The cosine and its gradient see :math:`B' = \bar B + dB` and :math:`D \bar A^T` only, so the
    problem is one in at most 2 r rows. Zero is a minimiser as soon as the slope there is at most
    lambda, unless the penalty is squared.
    """
    A = mean.right * mean.scale
    total, unit = residual + mean, float(lp_norm(A.flatten(), 2))
    norm = float(total.schatten_norm(2))
    if norm == 0 or float(mean.schatten_norm(2)) == 0:
        return torch.zeros_like(mean.left)
    # Units in which D and A have norm one.
    step = norm / unit
    target, B = (total @ (A / unit)) / norm, mean.left / step
    frame = _frame(torch.cat((target, B), dim=1))
    gram = (A / unit).mT @ (A / unit)
    penalty = regularization * step**2 if squared else regularization * step
    dB = _minimize(frame.mT @ target, frame.mT @ B, gram, penalty, squared=squared)
    return step * (frame @ dB)


def _frame(x: Tensor) -> Tensor:
    """Return orthonormal columns whose span holds the columns of x."""
    m, k = x.shape
    return orthonormal_columns(x, k) if k < m else torch.eye(m, dtype=x.dtype, device=x.device)


@torch.enable_grad()
def _minimize(M: Tensor, B: Tensor, gram: Tensor, penalty: float, *, squared: bool) -> Tensor:
    def dissimilarity(x: Tensor) -> Tensor:
        return 1 - (M * (B + x)).sum() / ((B + x) @ gram * (B + x)).sum().sqrt()

    def objective(x: Tensor) -> Tensor:
        size = x.square().sum() if squared else torch.linalg.vector_norm(x)
        return dissimilarity(x) + penalty * size

    x = torch.zeros_like(B).requires_grad_()
    (slope,) = torch.autograd.grad(dissimilarity(x), x)
    length = torch.linalg.vector_norm(slope)
    if not float(length) > (0.0 if squared else penalty):
        return torch.zeros_like(B)
    # Off zero, where the penalty has a gradient; a descent method does not return to it.
    x = _first_step(objective, -slope / length, torch.linalg.vector_norm(B)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = objective(x)
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(closure)
    return x.detach()


@torch.no_grad()
def _first_step(objective: Callable[[Tensor], Tensor], direction: Tensor, size: Tensor) -> Tensor:
    """Return the first of the halved steps along a descent direction that descends."""
    start = objective(torch.zeros_like(direction))
    steps = (direction * (size * 0.5**k) for k in range(50))
    return next((x for x in steps if objective(x) < start), torch.zeros_like(direction))
