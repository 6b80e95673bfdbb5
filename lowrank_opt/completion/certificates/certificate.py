r"""How far a completion can be from the best one: a lower bound on a convex problem.

For *every* vector y on the observed entries, with Y the sparse matrix of its values and h the
support function of the set, the objective F of a `ConvexProblem` is bounded by

.. math:: F \ge -\langle y, v - \mu \rangle - \tfrac12 \textstyle\sum_k y_k^2 / w_k - h(-Y)
   - \tfrac{1}{2 \lambda_b} (\|Y 1\|^2 + \|Y^T 1\|^2),

since :math:`\tfrac12 w e^2 \ge y e - y^2 / (2 w)` and the terms in W, a and b are minimised one by
one. The y taken is the gradient, times the number that makes the bound largest. Because y is
whatever is stored, only the evaluation of the bound needs an error analysis, not the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

import torch

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.certificates.dual_bound import DualBound, nuclear_norm_above
from lowrank_opt.completion.certificates.eigenvalue_bounds import U, gamma
from lowrank_opt.completion.certificates.exact import prove_optimality
from lowrank_opt.completion.certificates.support import largest_singular_value, support_function
from lowrank_opt.completion.model.bias import AdditiveBias, no_bias
from lowrank_opt.errors import CertificateError, ShapeError
from lowrank_opt.observations.parts import all_finite, held_shape, is_cut, whole
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.proofs import save_document
from lowrank_opt.sets import FeasibleSet, SpectralSet


@dataclass(frozen=True)
class OptimalityCertificate:
    """Bounds between which the optimum lies.

    Parameters
    ----------
    objective : float
        The objective of the completion, rounded up.
    lower_bound : float
        At most the smallest value of the objective.
    failure_probability : float
        0 for a proof. For matrices with more than 8192 rows and columns a random start is
        involved, and this is the probability that it was a bad one.
    document : mapping, optional
        The proof in exact arithmetic, with ratings, factors, multipliers and witness.
    price_of_rank : float, optional
        Of the gap, what a larger rank could gain at most: the rest is gone where the iterate is
        stationary at its rank. Solvers that stopped on a gap state it; see `gap_at_rank`.

    Examples
    --------
    >>> certificate = OptimalityCertificate(objective=2.5, lower_bound=2.0)
    >>> certificate.gap, certificate.relative_gap
    (0.5, 0.25)
    """

    objective: float
    lower_bound: float
    failure_probability: float = 0.0
    document: Mapping[str, object] | None = field(default=None, repr=False)
    price_of_rank: float | None = None

    @property
    def gap(self) -> float:
        """By how much the objective exceeds the optimum, at most; never negative."""
        difference = self.objective - self.lower_bound
        # The difference of floats within a factor of two is exact.
        return max(difference, 0.0) if self._is_close else math.nextafter(difference, math.inf)

    @property
    def relative_gap(self) -> float:
        """The gap as a share of the lower bound; infinite where that is zero."""
        return self.gap / self.lower_bound if self.lower_bound > 0 else math.inf

    def save(self, path: str | PathLike[str]) -> None:
        """Write the proof as JSON: ``python -m lowrank_opt.check_certificate FILE`` replays it.

        Raises
        ------
        CertificateError
            If the certificate has no proof in exact arithmetic.
        """
        save_document(self.document, path, "certificate(exact=True)")

    @property
    def _is_close(self) -> bool:
        return self.objective <= 2 * self.lower_bound


def certify_completion(
    problem: ConvexProblem,
    operator: LowRankOperator,
    bias: AdditiveBias | None = None,
    *,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> OptimalityCertificate:
    r"""Bound how far a completion is from the optimum of a convex problem.

    Parameters
    ----------
    problem : ConvexProblem
    operator : LowRankOperator, shape (m, n)
        Any matrix, from any solver; the bound does not assume that it is in the set.
    bias : AdditiveBias, optional
        Zero by default.
    generator : torch.Generator, optional
        For the random start with more than 8192 rows and columns.
    exact : bool
        Prove both bounds in rational arithmetic, for others to check: for nuclear and Frobenius
        balls, also weighted, and nuclear penalties, up to min(m, n) = 1500.

    Returns
    -------
    OptimalityCertificate
        Its objective includes the penalties of the problem.

    Raises
    ------
    ShapeError
        If the operator or the biases are of another shape than the observations.
    CertificateError
        If `exact` and there is no such proof.

    Notes
    -----
    The bounds hold for the stored numbers, all rounding errors included, in float64 whatever the
    dtype of the factors. The cost is that of the Gram matrix of the observed entries on the
    smaller side and of its Cholesky factorization: the one dense array made here, of size
    min(m, n)^2, up to min(m, n) = 8192. Of entries over several processes each keeps its own, and
    those of its columns once more; only proofs in exact arithmetic collect them. Where rows are
    cut, all processes certify together, each with its own rows, by the Gram matrix of the columns:
    penalties, and sets of singular values. Where columns are cut too, lines of their factor are
    fetched for a block of rows at a time; each process has vectors as long as all columns.

    References
    ----------
    M. Jaggi, Revisiting Frank-Wolfe (ICML 2013), section 2, is the case of y the gradient itself.

    Examples
    --------
    >>> from lowrank_opt import Observations, SchattenBall
    >>> observations = Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))
    >>> problem = ConvexProblem(observations, SchattenBall(p=1, radius=2.0, rank=2))
    >>> best = LowRankOperator.from_dense(torch.diag(torch.tensor([2.0, 0.0])))
    >>> certificate = certify_completion(problem, best)
    >>> round(certificate.objective, 6), certificate.gap < 1e-12
    (1.0, True)
    """
    if is_cut(problem.observations):
        _check_cut(problem, exact=exact)
    entries = whole(problem.observations) if exact else problem.observations
    observations = entries.to(dtype=torch.float64, device="cpu")
    bias = no_bias(observations) if bias is None else bias
    shapes = (operator.shape, (len(bias.rows), len(bias.cols)))
    held = held_shape(observations)
    if shapes != (held, held):
        raise ShapeError(
            f"operator and biases must be of shape {held}; got {shapes[0]} and {shapes[1]}"
        )
    operator = operator.detach().to(dtype=torch.float64, device="cpu")
    operator = LowRankOperator(operator.left, operator.scale.double(), operator.right)
    bias = bias.to(dtype=torch.float64, device="cpu")
    terms = DualBound(observations, operator, bias, problem.bias_penalty)
    if exact:
        document, objective, lower = prove_optimality(terms, problem.constraint)
        return OptimalityCertificate(objective, lower, document=document)
    objective = terms.objective()
    if not isinstance(problem.constraint, FeasibleSet):
        objective += problem.constraint * nuclear_norm_above(operator, observations) * (1 + 4 * U)
    lower, failure = _lower_bound(terms, problem.constraint, generator)
    objective = math.inf if math.isnan(objective) else math.nextafter(objective, math.inf)
    return OptimalityCertificate(objective, lower, failure)


def _check_cut(problem: ConvexProblem, *, exact: bool) -> None:
    spectral = not isinstance(problem.constraint, FeasibleSet) or (
        isinstance(problem.constraint, SpectralSet)
    )
    if exact or not spectral:
        what = "a proof in exact arithmetic" if exact else f"the set {problem.constraint}"
        raise CertificateError(
            "a certificate over rows that are cut is one of singular values, in float64; got "
            f"{what}: certify with the rows whole"
        )


def _lower_bound(
    terms: DualBound, constraint: FeasibleSet | float, generator: torch.Generator | None
) -> tuple[float, float]:
    """Return the largest bound over all multiples t >= 0 of the gradient; 0 is always one."""
    y = terms.gradient()
    if not all_finite(terms.observations, y):
        return 0.0, 0.0
    pattern = terms.observations.with_values(y)
    linear, quadratic = terms.linear(y), terms.quadratic(y)
    if isinstance(constraint, FeasibleSet):
        support, failure = support_function(constraint, pattern, generator)
        slope, limit = linear - support, math.inf
        slope -= 4 * U * (abs(linear) + abs(support))
    else:
        # The penalty allows multiples whose largest singular value is at most lambda.
        top, failure = largest_singular_value(pattern, generator)
        slope, limit = linear, constraint / top * (1 - 4 * U) if top > 0 else math.inf
    if not (slope > 0 and 0 < quadratic < math.inf):
        return 0.0, failure
    t = min(slope / quadratic, limit)
    bound = t * slope - 0.5 * t * t * quadratic
    return max(bound - gamma(16) * t * (slope + t * quadratic), 0.0), failure
