"""Why an iteration stopped."""

from enum import Enum


class CompletionStatus(Enum):
    """Why `complete` stopped; the value is a sentence.

    Examples
    --------
    >>> CompletionStatus.CONVERGED.succeeded, CompletionStatus.MAX_ITERATIONS.succeeded
    (True, False)
    """

    CONVERGED = (
        "Converged: the objective no longer decreases by more than the tolerance, and where the "
        "problem is convex the gap asked for is proved."
    )
    EXACT_FIT = "Converged: the observed entries are fitted exactly, to the precision asked for."
    STALLED = "Converged: no step decreases the objective any further in this arithmetic."
    STOPPED_BY_VALIDATION = "Stopped early: the validation error no longer improved."
    RANK_BINDS = (
        "Converged at this rank: no direction of the same rank lowers the objective any further, "
        "and going on did not close the gap; a larger rank gains at most its price. Another matrix "
        "of this rank may be better still."
    )
    GAP_OPEN = (
        "Not proved optimal: no step found lowers the objective at this rank, and the gap asked "
        "for was not reached."
    )
    MAX_ITERATIONS = "Not converged: the largest number of iterations was reached."
    INTERRUPTED = "Not converged: interrupted from the keyboard; the best iterate was kept."
    NUMERICAL_TROUBLE = "Failed: the objective was not finite; the best iterate was kept."

    @property
    def succeeded(self) -> bool:
        """Whether the iteration ended by one of its own criteria."""
        failures = (self.GAP_OPEN, self.MAX_ITERATIONS, self.INTERRUPTED, self.NUMERICAL_TROUBLE)
        return self not in failures
