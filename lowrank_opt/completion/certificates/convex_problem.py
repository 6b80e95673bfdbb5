"""The convex problem that a completion solves, or is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowrank_opt.completion.certificates.support import has_support_function
from lowrank_opt.completion.model.losses import Squared
from lowrank_opt.completion.model.problem import CompletionProblem, Model
from lowrank_opt.errors import CertificateError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet


@dataclass(frozen=True, eq=False)
class ConvexProblem:
    r"""A problem whose solutions `certify_completion` can judge.

    :math:`\min \tfrac12 \sum_k w_k (W_{ij} + \mu + a_i + b_j - v_k)^2
    + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)` over W in the convex hull of a set, or over all W
    with :math:`\lambda \|W\|_*` added; the mean is a given number.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    constraint : FeasibleSet or float
        A set that W is in; or the number :math:`\lambda > 0` of a penalty :math:`\lambda \|W\|_*`.
    bias_penalty : float, optional
        :math:`\lambda_b > 0` if row and column biases are variables of the problem. None if the
        biases are given numbers: the bound is then on the best W beside them.

    Raises
    ------
    CertificateError
        If a penalty is not positive and finite, or the set has no known support function.

    Notes
    -----
    A bound over a set of matrices of bounded rank holds over its convex hull. For the nuclear ball
    this is the whole ball, of any rank. For other norms, a set with ``rank=min(m, n)`` gives the
    bound over the whole ball.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> observations = Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))
    >>> ConvexProblem(observations, SchattenBall(p=1, radius=2.0, rank=2)).bias_penalty is None
    True
    """

    observations: Observations
    constraint: FeasibleSet | float
    bias_penalty: float | None = None

    def __post_init__(self) -> None:
        _check_positive("bias_penalty", self.bias_penalty)
        if not isinstance(self.constraint, FeasibleSet):
            _check_positive("the penalty", self.constraint)
        elif not has_support_function(self.constraint):
            raise CertificateError(
                "a certificate needs a bounded set whose support function is known; got "
                f"{self.constraint}: certify against a norm ball that contains the matrix, such "
                "as SchattenBall(p=1, radius=float(operator.schatten_norm(1)), rank=...)"
            )


def convex_problem_of(problem: CompletionProblem, fitted: Observations) -> ConvexProblem | None:
    r"""Return the convex problem behind a completion problem, or None.

    Without a penalty it is that over the convex hull of the feasible set. A ridge penalty on two
    free factors, as those of `Factored` or of a problem with a rank, is one on the nuclear norm:
    :math:`\|A B^T\|_* \le (\|A\|_F^2 + \|B\|_F^2)/2` with equality for balanced factors.

    Parameters
    ----------
    problem : CompletionProblem
        With a bias penalty of zero the biases count as given numbers.
    fitted : Observations
        Of its entries, those that are fitted.
    """
    biases, penalty = problem.bias_rate or None, problem.penalty
    if not isinstance(problem.entry_loss, Squared):
        return None
    if penalty > 0:
        scale = _scale_of_free_factors(problem.model)
        return None if scale is None else ConvexProblem(fitted, penalty / scale, biases)
    if problem.feasible_set is None or not has_support_function(problem.feasible_set):
        return None
    return ConvexProblem(fitted, problem.feasible_set, biases)


def _scale_of_free_factors(model: Model) -> float | None:
    """Return c if ``W = c A B^T`` and A and B are all there is to train; else None."""
    if not isinstance(model, Parameterization):
        return 1.0 if isinstance(model, int) else None
    left, scale, right = model()
    free = [p for p in model.parameters() if p.requires_grad]
    are_factors = len(free) == 2 and {id(p) for p in free} == {id(left), id(right)}
    constant = not scale.requires_grad and bool((scale == scale[0]).all()) and float(scale[0]) > 0
    return float(scale[0]) if are_factors and constant else None


def _check_positive(name: str, amount: float | None) -> None:
    if amount is not None and not (math.isfinite(amount) and amount > 0):
        raise CertificateError(
            f"{name} must be positive and finite for a certificate; got {amount!r}: without a "
            "penalty on biases, hold them fixed with bias_penalty=None"
        )
