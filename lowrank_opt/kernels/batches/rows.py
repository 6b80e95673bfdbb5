"""The least-squares problems of all rows in plain torch: any device, batches of bounded size."""

import torch
from torch import Tensor

from lowrank_opt.kernels.batches.padded import Batch, batches
from lowrank_opt.kernels.protocol import MOST_ROUNDS, SETTLED, RowEntries


def solve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    precision: Tensor,
    strengths: Tensor,
    pull: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """Do what `RowProblems.solve` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    K = features.shape[1]
    for batch in batches(entries.axis, 2 * K):
        rows, w, t, X = _gathered(batch, entries, features, offsets)
        weighted = X * w.unsqueeze(-1)
        gram = (weighted.mT @ X).double() * scale
        A = gram + strengths[rows, None, None] * precision
        b = scale * (weighted.mT @ t.unsqueeze(-1)).squeeze(-1).double()
        if pull is not None:
            b = b + pull[rows]
        solution, solved = _cholesky_solve(A, b, None if noise is None else noise[rows])
        x[rows] = torch.where(solved.unsqueeze(1), solution.to(x.dtype), x[rows])
        losses[rows] = _losses(w, t, X, x[rows]).where(solved, torch.nan)
    return losses


def improve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    diagonal: Tensor,
    strengths: Tensor,
    steps: int,
) -> Tensor:
    """Do what `RowProblems.improve` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    for batch in batches(entries.axis, features.shape[1]):
        rows, w, t, X = _gathered(batch, entries, features, offsets)
        w, t, X = w.double(), t.double(), X.double()
        ridge = strengths[rows].unsqueeze(1) * diagonal

        def apply(p: Tensor, w: Tensor = w, X: Tensor = X, ridge: Tensor = ridge) -> Tensor:
            return ridge * p + _combine(X, w * _products(X, p))

        found = x[rows].double()
        residual = _combine(X, w * t) - apply(found)
        p, rr = residual, residual.square().sum(1, keepdim=True)
        for _ in range(steps):
            q = apply(p)
            # A row that is solved exactly has p = 0, and stays.
            alpha = torch.where(rr > 0, rr / (p * q).sum(1, keepdim=True), 0.0)
            found, residual = found + alpha * p, residual - alpha * q
            previous, rr = rr, residual.square().sum(1, keepdim=True)
            p = residual + torch.where(previous > 0, rr / previous, 0.0) * p
        x[rows] = found.to(x.dtype)
        losses[rows] = _losses(w, t, X, x[rows])
    return losses


def nonnegative_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    diagonal: Tensor,
    strengths: Tensor,
    free: int,
) -> Tensor:
    """Do what `RowProblems.solve_nonnegative` does; return the losses, shape (m,), float64."""
    losses = x.new_empty(len(x), dtype=torch.float64)
    K = features.shape[1]
    for batch in batches(entries.axis, 2 * K):
        rows, w, t, X = _gathered(batch, entries, features, offsets)
        w, t, X = w.double(), t.double(), X.double()
        A = (X * w.unsqueeze(-1)).mT @ X + (strengths[rows].unsqueeze(1) * diagonal).diag_embed()
        x[rows] = _descend(A, _combine(X, w * t), x[rows].double(), K - free).to(x.dtype)
        losses[rows] = _losses(w, t, X, x[rows])
    return losses


def _descend(A: Tensor, b: Tensor, x: Tensor, bounded: int) -> Tensor:
    """Minimise ``x^T A x / 2 - b^T x`` by coordinates, the first ones nonnegative."""
    for _ in range(MOST_ROUNDS):
        before = x.clone()
        for a in range(x.shape[1]):
            slope, curvature = b[:, a] - (A[:, a] * x).sum(1), A[:, a, a]
            new = torch.where(curvature > 0, x[:, a] + slope / curvature, x[:, a])
            x[:, a] = new.clamp_min(0) if a < bounded else new
        if bool((x - before).abs().max() <= SETTLED * x.abs().max()):
            break
    return x


def _gathered(
    batch: Batch, entries: RowEntries, features: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows, weights (B, L), targets (B, L) and features (B, L, K); weights end with rows."""
    axis, values, weights = entries
    others = axis.indices[batch.positions].long()
    t = values[batch.positions] - offsets[others].to(values.dtype)
    w = batch.present.to(values.dtype) if weights is None else batch.gather(weights)
    return batch.rows, w, t, features[others]


def _products(X: Tensor, p: Tensor) -> Tensor:
    return (X @ p.unsqueeze(-1)).squeeze(-1)


def _combine(X: Tensor, coefficients: Tensor) -> Tensor:
    return (coefficients.unsqueeze(1) @ X).squeeze(1)


def _losses(w: Tensor, t: Tensor, X: Tensor, x: Tensor) -> Tensor:
    error = t.double() - _products(X.double(), x.double())
    return (w.double() * error.square()).sum(1)


def _cholesky_solve(A: Tensor, b: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    L, info = torch.linalg.cholesky_ex(A)
    y = torch.linalg.solve_triangular(L, b.unsqueeze(-1), upper=False)
    if noise is not None:
        y = y + noise.double().unsqueeze(-1)
    return torch.linalg.solve_triangular(L.mT, y, upper=True).squeeze(-1), info == 0
