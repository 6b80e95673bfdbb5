r"""Ordered levels through a normal score: probabilities of intervals, and their thresholds.

A value is level k if a normal variable around the score, of variance one, falls between the
thresholds :math:`t_{k-1}` and :math:`t_k`, with :math:`t_0 = -\infty` and :math:`t_L = \infty`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# No level is so narrow that its probability could not be told from zero.
_SMALLEST_GAP = 1e-8
# Where the two ways to the ratio of two distribution functions are equally precise.
_NARROW = 1e-5
# Beyond, the normal distribution function is one in float64.
_FAR = 20.0


def log_normal_cdf(x: Tensor) -> Tensor:
    r"""Return :math:`\log \Phi(x)`, with a gradient that is right far out in the left tail too.

    That of `torch.special.log_ndtr` loses its digits below -1e3, and is infinite at -1e10.

    Parameters
    ----------
    x : Tensor, float64

    Examples
    --------
    >>> log_normal_cdf(torch.tensor([-1e4, 0.0], dtype=torch.float64))
    tensor([-5.0000e+07, -6.9315e-01], dtype=torch.float64)
    """
    left = x < 0
    tail, head = torch.where(left, x, 0.0), torch.where(left, 0.0, x)
    far = _log_erfcx(-tail) - math.log(2) - tail.square() / 2
    return torch.where(left, far, torch.log1p(-torch.special.erfc(head / math.sqrt(2)) / 2))


def log_interval_probability(lower: Tensor, width: Tensor) -> Tensor:
    r"""Return :math:`\log(\Phi(a + w) - \Phi(a))` without cancellation, differentiable.

    With :math:`b = a + w` and the interval reflected into the left tail,
    :math:`\log \Phi(b) + \log(1 - e^{-\delta})`, where :math:`\delta = \log\Phi(b) - \log\Phi(a)
    = w\,|m| + \log \mathrm{erfcx}(-b/\sqrt2) - \log \mathrm{erfcx}(-a/\sqrt2)`, m the midpoint;
    for narrow intervals w times the hazard at m. Finite with finite gradients for widths down to
    1e-8 and bounds up to 1e150; the relative error of the probability is below 1e-10 (1e-13 for
    widths above 1e-2).

    Parameters
    ----------
    lower : Tensor, float64
        a.
    width : Tensor, float64
        w > 0; of the shape of `lower`.

    Examples
    --------
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> log_interval_probability(zero - 40, zero + 1)
    tensor([-765.0832], dtype=torch.float64)
    """
    upper = lower + width
    mirrored = lower + upper > 0
    a, b = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    b = b.clamp_max(_FAR)
    w = torch.where(b < _FAR, width, b - a)
    depth = -(a + b) / 2
    wide = w * depth + _log_erfcx(-b) - _log_erfcx(-a)
    narrow = width * (math.sqrt(2 / math.pi) / torch.special.erfcx(depth / math.sqrt(2)))
    delta = torch.where(width < _NARROW, narrow, wide)
    return log_normal_cdf(b) + _log_one_minus_exp(delta)


def _log_erfcx(x: Tensor) -> Tensor:
    return torch.special.erfcx(x / math.sqrt(2)).log()


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(-x))`` for x > 0."""
    small = x < math.log(2)
    near = (-torch.expm1(-torch.where(small, x, 1.0))).log()
    far = torch.log1p(-torch.exp(-torch.where(small, 1.0, x)))
    return torch.where(small, near, far)


def negative_log_likelihood(scores: Tensor, levels: Tensor, free: Tensor) -> Tensor:
    r"""Return minus the log-probability of each level, differentiable.

    Parameters
    ----------
    scores : Tensor, shape (k,), float64
    levels : Tensor, shape (k,), int64
        In 0..L - 1.
    free : Tensor, shape (L - 1,), float64
        Free parameters of the thresholds; see `thresholds_of`.
    """
    first, gaps = free[:1], _gaps(free)
    thresholds = first + F.pad(gaps.cumsum(0), (1, 0))
    last = len(free)
    a = thresholds[(levels - 1).clamp_min(0)] - scores
    bottom = log_normal_cdf(first - scores)
    top = log_normal_cdf(scores - thresholds[-1])
    inner = (levels > 0) & (levels < last)
    if len(gaps) == 0:
        return -torch.where(levels == 0, bottom, top)
    # Ends are computed as some level inside, and not used: no gradient reaches them.
    width = gaps[(levels - 1).clamp(0, len(gaps) - 1)]
    middle = log_interval_probability(torch.where(inner, a, 0.0), torch.where(inner, width, 1.0))
    return -torch.where(levels == 0, bottom, torch.where(levels == last, top, middle))


def thresholds_of(free: Tensor) -> Tensor:
    r"""Return the thresholds, increasing: the first as it is, then softplus gaps of at least 1e-8.

    Examples
    --------
    >>> thresholds_of(torch.tensor([0.5, -1000.0, 3.0]))
    tensor([0.5000, 0.5000, 3.5486])
    """
    return free[:1] + F.pad(_gaps(free).cumsum(0), (1, 0))


def free_of(thresholds: Tensor) -> Tensor:
    """Return free parameters of increasing thresholds; gaps below 1e-3 are widened to it.

    Examples
    --------
    >>> t = torch.tensor([-1.0, 0.0, 2.5], dtype=torch.float64)
    >>> torch.allclose(thresholds_of(free_of(t)), t)
    True
    """
    gaps = thresholds.diff().clamp_min(1e-3) - _SMALLEST_GAP
    return torch.cat((thresholds[:1], gaps + torch.log(-torch.expm1(-gaps))))


def thresholds_for(shares: Tensor) -> Tensor:
    """Return the thresholds at which a score of zero has the given shares of levels.

    Parameters
    ----------
    shares : Tensor, shape (L,), float64
        Positive, with sum one.
    """
    below = shares.cumsum(0)[:-1].clamp(1e-12, 1 - 1e-12)
    return torch.special.ndtri(below)


def _gaps(free: Tensor) -> Tensor:
    return F.softplus(free[1:]) + _SMALLEST_GAP
