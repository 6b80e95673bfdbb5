"""The normal distribution in numba loops, float64: intervals, their probabilities and draws.

An interval is reflected into the left tail first, where small probabilities are numbers of their
own and no differences to one. Beyond 36 deviations, where they would underflow, the tail is the
first terms of its asymptotic series.
"""

import math

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit

Floats = NDArray[np.floating]

_HALF = math.sqrt(0.5)
_LOG_DENSITY = -0.5 * math.log(2 * math.pi)
# Where the distribution function and its logarithm change over to the series.
_FAR = 36.0
_TINY = 1e-300
# Coefficients of numerator and denominator, lowest first: in the middle, and in two ranges of the
# square root of minus the logarithm.
_MIDDLE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
     1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
     3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2,
     5.3941960214247511077e3, 2.1213794301586595867e4, 3.9307895800092710610e4,
     2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_NEAR_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
     3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
     2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0,
     6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
     5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FAR_TAIL = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
     2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
     2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
     1.48753612908506148525e-2, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
     1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


@njit(nogil=True, cache=True)
def _ratio(x: float, numerator: tuple[float, ...], denominator: tuple[float, ...]) -> float:
    p, q = numerator[7], denominator[7]
    for k in range(6, -1, -1):
        p, q = p * x + numerator[k], q * x + denominator[k]
    return p / q


@njit(nogil=True, cache=True)
def normal_quantile(p: float) -> float:
    """Return the number below which a normal variable is with a probability in (0, 1).

    References
    ----------
    Wichura (1988), Algorithm AS 241: the percentage points of the normal distribution, PPND16.
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        return q * _ratio(0.180625 - q * q, _MIDDLE[0], _MIDDLE[1])
    r = math.sqrt(-math.log(p if q < 0 else 1 - p))
    if r <= 5:
        x = _ratio(r - 1.6, _NEAR_TAIL[0], _NEAR_TAIL[1])
    else:
        x = _ratio(r - 5, _FAR_TAIL[0], _FAR_TAIL[1])
    return -x if q < 0 else x


@njit(nogil=True, cache=True)
def _below(x: float) -> float:
    return 0.5 * math.erfc(-x * _HALF)


@njit(nogil=True, cache=True)
def _log_below(x: float) -> float:
    """Return the logarithm of the distribution function far to the left."""
    y = 1 / (x * x)
    return _LOG_DENSITY - 0.5 * x * x - math.log(-x) + math.log1p(-y * (1 - y * (3 - 15 * y)))


@njit(nogil=True, cache=True)
def log_interval(a: float, b: float) -> float:
    """Return the log probability that a normal variable is in an interval, a < b, or infinite."""
    if a + b > 0:
        a, b = -b, -a
    if b > -_FAR:
        return math.log(max(_below(b) - _below(a), _TINY))
    # The density falls like exp(b (x - b)) from b on.
    return _log_below(b) + math.log(-math.expm1(min(_log_below(a) - _log_below(b), -_TINY)))


@njit(nogil=True, cache=True)
def slope_at(x: float, log_probability: float) -> float:
    """Return the density at the end of an interval, relative to the interval's probability."""
    return math.exp(_LOG_DENSITY - 0.5 * x * x - log_probability)


@njit(nogil=True, cache=True)
def draw_within(a: float, b: float, u: float) -> float:
    """Return the quantile, at u in [0, 1), of a normal variable known to be in an interval."""
    mirrored = a + b > 0
    if mirrored:
        a, b = -b, -a
    if b > -_FAR:
        low, high = _below(a), _below(b)
        x = normal_quantile(max(high - u * (high - low), _TINY))
    else:
        # Exponential to the left of b.
        width = -math.expm1(max(b * (b - a), -700.0)) if a > -math.inf else 1.0
        x = b - math.log1p(-u * width) / b
    x = min(max(x, a), b)
    return -x if mirrored else x
