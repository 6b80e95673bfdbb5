"""Errors and warnings of the package: one root, built-in second parents.

Every message states the rule, what came, and what to do. Matrices are never printed.
"""

from functools import partial


class LowRankError(Exception):
    """Root of every error raised on purpose by this package."""


class ShapeError(LowRankError, ValueError):
    """Shapes, dtypes or devices that do not fit together."""


class RankError(LowRankError, ValueError):
    """A rank, or a number of columns, outside its range, like ``1..min(m, n)``."""


class OptionError(LowRankError, ValueError):
    """A setting that is unknown, outside its domain, or does not fit another one."""


class RadiusError(OptionError):
    """A bound on a norm, or the order of a norm, outside its domain."""


class ObservationError(LowRankError, ValueError):
    """Observed entries that are duplicate, out of range, not finite or absent."""


class TargetError(LowRankError, ValueError):
    """A matrix or module that cannot be assigned to or adapted: not finite, or of another kind."""


class NotInSetError(LowRankError, ValueError):
    """A target outside the declared feasible set.

    Attributes
    ----------
    excess : float
        By how much the target exceeds the set, in the unit of the set's norm.
    """

    def __init__(self, message: str, *, excess: float) -> None:
        super().__init__(message)
        self.excess = excess

    def __reduce__(self) -> tuple[object, ...]:
        # A keyword-only argument is lost by default, and worker processes pickle their errors.
        return partial(type(self), excess=self.excess), self.args


class NoRightInverseError(LowRankError, NotImplementedError):
    """The parameterization offers no map from matrices back to parameters."""


class DerivativeError(LowRankError, NotImplementedError):
    """A derivative that is not provided, such as a second one where only the first is known."""


class CertificateError(LowRankError, ValueError):
    """No optimality certificate can be given: the problem is not convex, or not known."""


class ConvergenceError(LowRankError, RuntimeError):
    """Raised by ``result.raise_if_failed()``, and by an optimizer whose factors have diverged.

    Solvers return a status instead.
    """


class DenseMaterializationError(LowRankError, RuntimeError):
    """An m x n tensor was allocated where only factors are allowed."""


class DataError(LowRankError, OSError):
    """A data or results file that cannot be read, downloaded, verified or written."""


class MissingExtraError(LowRankError, ImportError):
    """A package that one of the extras brings is not installed."""


class ConvergenceWarning(UserWarning):
    """The iteration stopped before its tolerance was reached."""


class PrecisionWarning(UserWarning):
    """A guarantee holds only to a looser tolerance in this arithmetic."""
