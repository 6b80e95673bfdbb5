r"""Euclidean projections of nonnegative vectors onto the unit balls of symmetric gauges.

Arguments are vectors of singular values: nonnegative, in any order. Each function opens with the
set it projects onto and is exact up to rounding; none is differentiable by design.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowrank_opt.linalg.scaling import lp_norm, top_k_sum


def first_inside(
    path: Callable[[Tensor], Tensor], inside: Callable[[Tensor], Tensor], end: Tensor
) -> Tensor:
    r"""Return ``path(t)`` for the smallest t in [0, `end`] where it is inside, by bisection.

    For projections whose multiplier has no closed form: along `path` values shrink.

    Parameters
    ----------
    path : callable
        From a scalar tensor to a Tensor; inside from some t on, and at `end`.
    inside : callable
        From what `path` returns to a truth value.
    end : Tensor, shape ()
        Positive.

    Returns
    -------
    Tensor
        Inside, always; t is off by at most ``2**-100`` of `end`, or by its rounding.

    Examples
    --------
    >>> values = torch.tensor([3.0, 1.0])
    >>> first_inside(lambda t: (values - t).clamp(0, 1), lambda x: x.sum() <= 1.5, values.amax())
    tensor([1.0000, 0.5000])
    """
    low, high = torch.zeros_like(end), end
    best = path(low)
    if inside(best):
        return best
    best = path(high)
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        x = path(middle)
        low, high, best = (low, middle, x) if inside(x) else (middle, high, best)
    return best


def project_l1_ball(values: Tensor, radius: float) -> Tensor:
    r"""Project onto :math:`\{x \ge 0 : \sum_i x_i \le \text{radius}\}`.

    Parameters
    ----------
    values : Tensor, shape (r,)
        Nonnegative, in any order.
    radius : float
        Positive.

    Returns
    -------
    Tensor, shape (r,)
        Same dtype and device; `values` itself if already inside.

    References
    ----------
    Duchi et al. (ICML 2008), Figure 1.

    Examples
    --------
    >>> project_l1_ball(torch.tensor([3.0, 1.0]), radius=2.0)
    tensor([2., 0.])
    """
    if values.sum() <= radius:
        return values
    # Only gaps to the largest value matter, and gaps above the radius are all alike: values 1e20
    # times the radius are projected as exactly as small ones.
    gaps = (values.amax() - values).clamp_max(radius)
    ordered = gaps.sort().values
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    levels = (radius + ordered.cumsum(0)) / counts
    active = int((ordered < levels).sum())
    x = (levels[active - 1] - gaps).clamp_min(0.0)
    return _shrink(x, x.sum(), radius)


# What leaves no more than rounding at all sizes of the summands: p - 1 from 0.01 to 99, and others.
_NEWTON_STEPS, _MORE_STEPS = 8, 16


def project_lp_ball(values: Tensor, radius: float, p: float) -> Tensor:
    r"""Project onto :math:`\{x \ge 0 : \|x\|_p \le \text{radius}\}`, p in [1, inf].

    Parameters
    ----------
    values : Tensor, shape (r,)
        Nonnegative, in any order.
    radius, p : float
        Positive; p = 1, 2 and inf in closed form, other p by a search for the multiplier.

    Returns
    -------
    Tensor, shape (r,)
        Same dtype and device; `values` itself if already inside.

    Notes
    -----
    The optimality conditions :math:`x_i + \mu p x_i^{p-1} = v_i` have one root each in
    :math:`[0, v_i]`, decreasing in :math:`\mu`; the multiplier is searched on its
    logarithm, then the result is scaled onto the sphere to remove what the bisection left.

    Examples
    --------
    >>> project_lp_ball(torch.tensor([3.0, 4.0]), 1.0, 2)
    tensor([0.6000, 0.8000])
    """
    norm = lp_norm(values, p)
    if norm <= radius:
        return values
    if math.isinf(p):
        return values.clamp_max(radius)
    if p == 1:
        return project_l1_ball(values, radius)
    if p == 2:
        return values * (radius / norm)
    x = _lp_multiplier_search((values / radius).double(), p)
    return (x * (radius / lp_norm(x, p))).to(values.dtype)


def _lp_multiplier_search(v: Tensor, p: float) -> Tensor:
    """Search log(mu) on finer and finer grids until ``norm(x(mu), p) = 1``."""
    steps = torch.linspace(0, 1, 64, dtype=v.dtype, device=v.device)
    low, high = v.new_tensor(-80.0), 80.0 + 2 * v.amax().log().clamp_min(0.0)
    for _ in range(10):
        grid = low + (high - low) * steps
        norms = lp_norm(_lp_roots(v, grid.exp().unsqueeze(1) * p, p), p)
        first_inside = int((norms > 1).sum())
        low, high = grid[max(first_inside - 1, 0)], grid[min(first_inside, 63)]
    return _lp_roots(v, high.exp() * p, p)


def _lp_roots(v: Tensor, weight: Tensor, p: float) -> Tensor:
    r"""Solve ``x + weight x^(p-1) = v`` entry by entry, by Newton's method on the logarithm of x.

    With x = h t, h the smaller of the roots that each summand has alone, the equation reads
    :math:`\log(a t + b t^{p-1}) = 0`, one of a and b being one: increasing and convex in log t, and
    at most log 2 at t = 1, so that steps descend to the root and never pass it.
    """
    q, positive = p - 1, v > 0
    log_v = torch.where(positive, v, 1.0).log()
    ratio = log_v - weight.log()
    log_h = torch.minimum(log_v, ratio / q)
    a, b = log_h - log_v, q * log_h - ratio
    log_t = torch.zeros_like(log_h)
    for _ in range(_NEWTON_STEPS if 0.01 <= q <= 99 else _MORE_STEPS):
        first, second = a + log_t, b + q * log_t
        slope = 1 + (q - 1) * torch.sigmoid(second - first)
        log_t = log_t - torch.logaddexp(first, second) / slope
    return torch.where(positive, (log_h + log_t).exp(), 0.0)


def project_top_k_sum(values: Tensor, radius: float, k: int) -> Tensor:
    r"""Project onto the nonnegative x whose `k` largest entries sum to at most `radius`.

    Parameters
    ----------
    values : Tensor, shape (r,)
        Nonnegative, in any order.
    radius : float
        Positive.
    k : int
        At least 1; the whole vector counts if it is shorter.

    Returns
    -------
    Tensor, shape (r,)
        Same dtype and device; `values` itself if already inside.

    Notes
    -----
    For decreasing v the solution is ``(v_1 - mu, .., v_a - mu, t, .., t, v_{b+1}, ..)``: some
    values shifted, a block that straddles k tied, the rest kept; or, when the tail vanishes, the
    l1 projection of the first k. All splits (a, b) are evaluated at once and the one that meets
    the optimality conditions is taken.

    Examples
    --------
    >>> project_top_k_sum(torch.tensor([3.0, 3.0, 0.0]), 2.0, 1)
    tensor([2., 2., 0.])
    """
    k = min(k, len(values))
    if top_k_sum(values, k) <= radius:
        return values
    v, order = values.double().sort(descending=True)
    x = torch.empty_like(v)
    x[order] = _project_sorted_top_k(v, radius, k)
    return _shrink(x, top_k_sum(x, k), radius).to(values.dtype)


def _shrink(x: Tensor, norm: Tensor, radius: float) -> Tensor:
    """Take back what rounding left outside: 1e6 - (1e6 - 1) is wrong by 1e-10, not by 1e-16."""
    return x * (radius / norm) if norm > radius else x


def _project_sorted_top_k(v: Tensor, radius: float, k: int) -> Tensor:
    head = project_l1_ball(v[:k], radius)
    untied = torch.cat((head, torch.minimum(v[k:], head.amin())))
    tied = _best_tied_split(v, radius, k)
    tied = _shrink(tied, top_k_sum(tied, k), radius)
    return min(untied, tied, key=lambda x: float((x - v).square().sum()))


def _best_tied_split(v: Tensor, radius: float, k: int) -> Tensor:
    """Return the vector of the split (a shifted, then tied up to b) that is optimal."""
    r = len(v)
    prefix = torch.cat((v.new_zeros(1), v.cumsum(0)))
    a = torch.arange(k, device=v.device).unsqueeze(1)
    b = torch.arange(k, r + 1, device=v.device).unsqueeze(0)
    # Stationarity: the tie's v_i - t sum to (k - a) mu; sphere: the first v_i - mu and (k - a) t.
    tied, weight, width = prefix[b] - prefix[a], k - a, b - a
    mu = ((prefix[a] - radius) * width + weight * tied) / (a * width + weight**2)
    t = (tied - weight * mu) / width
    below, above = torch.cat((v, v.new_zeros(1))), torch.cat((v[:1] + mu.abs().max() + 1, v))
    violation = torch.stack(
        (t - (above[a] - mu), below[a] - mu - t, t - above[b], below[b] - t, -t)
    )
    a_best, b_best = divmod(int(violation.amax(0).argmin()), b.shape[1])
    level = t[a_best, b_best].clamp_min(0.0).expand(k + b_best - a_best)
    return torch.cat(((v[:a_best] - mu[a_best, b_best]).clamp_min(0.0), level, v[k + b_best :]))
