"""An independent solver of the convex problems of completion: dense, slow, float64."""

import math
from collections.abc import Callable

import numpy as np
import torch

from lowrank_opt.completion import AdditiveBias
from lowrank_opt.observations import Observations

Values = np.ndarray


def simplex(x: Values, radius: float) -> Values:
    """Project decreasing nonnegative numbers onto the l1 ball."""
    if x.sum() <= radius:
        return x
    thresholds = (np.cumsum(x) - radius) / np.arange(1, len(x) + 1)
    return np.maximum(x - thresholds[x > thresholds][-1], 0.0)


def spectrally(project: Callable[[Values], Values]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda W: torch.from_numpy(_spectrally(project, W.numpy()))


def _spectrally(project: Callable[[Values], Values], W: Values) -> Values:
    U, sigma, Vh = np.linalg.svd(W, full_matrices=False)
    return (U * project(sigma)) @ Vh


def fista(
    obs: Observations,
    proximal: Callable[[Values, float], Values],
    *,
    ridge: float,
    steps: int = 3000,
) -> tuple[torch.Tensor, AdditiveBias]:
    """Solve densely by accelerated proximal gradients with restarts: the independent solver."""
    m, n = obs.shape
    i, j, y = (v.numpy() for v in (obs.rows, obs.cols, obs.values))
    w = np.ones_like(y) if obs.weights is None else obs.weights.numpy()
    mean = float((w @ y) / w.sum()) if ridge > 0 else 0.0
    x = np.zeros((m + 1, n + 1))
    z, t = x.copy(), 1.0
    step = 1 / (float(w.max()) * (1 + (m + n) * (ridge > 0)) + ridge)
    for _ in range(steps):
        W, a, b = z[:m, :n], z[:m, n], z[m, :n]
        E = np.zeros((m, n))
        E[i, j] = w * ((W + a[:, None] + b)[i, j] + mean - y)
        new = np.zeros_like(z)
        new[:m, :n] = _spectrally(lambda s: proximal(s, step), W - step * E)
        if ridge > 0:
            new[:m, n] = a - step * (E.sum(1) + ridge * a)
            new[m, :n] = b - step * (E.sum(0) + ridge * b)
        if float(np.abs(new - z).max()) < 1e-12:
            break
        turned = float(((z - new) * (new - x)).sum()) > 0
        t_next = 1.0 if turned else (1 + math.sqrt(1 + 4 * t * t)) / 2
        z, x, t = new + (t - 1) / t_next * (new - x) * (not turned), new, t_next
    W, rows, cols = (torch.from_numpy(v.copy()) for v in (x[:m, :n], x[:m, n], x[m, :n]))
    return W, AdditiveBias(mean, rows, cols)


def convex_objective(obs: Observations, W: torch.Tensor, bias: AdditiveBias, ridge: float):
    w = 1.0 if obs.weights is None else obs.weights
    e = W[obs.rows, obs.cols] + bias.predict(obs.rows, obs.cols) - obs.values
    penalty = bias.rows.square().sum() + bias.cols.square().sum()
    return 0.5 * float((w * e.square()).sum() + ridge * penalty)
