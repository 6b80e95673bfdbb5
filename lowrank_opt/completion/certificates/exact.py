r"""Proofs of optimality in exact arithmetic, written down for others to check.

The theorem is that of `certificate`, in the docstring of `lowrank_opt.check_certificate` once more.
Here are the guesses: the multiples of the gradient, a factor K near the Cholesky factor of
:math:`c I - Y Y^T`, and from what the checker makes of them the two bounds.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

import lowrank_opt.check_certificate as checker
from lowrank_opt.errors import CertificateError
from lowrank_opt.proofs import above, hexes, proved_values, stamped
from lowrank_opt.sets import FeasibleSet, SchattenBall

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lowrank_opt.completion.certificates.dual_bound import DualBound

    Floats = NDArray[np.float64]
    Document = dict[str, object]

# Products of long integers in Python: what minutes allow.
_MOST_LINES, _MOST_PRODUCTS = 1500, 30_000_000


def prove_optimality(
    terms: DualBound, constraint: FeasibleSet | float
) -> tuple[Document, float, float]:
    """Return a document that the checker accepts, the objective above and the bound below.

    Parameters
    ----------
    terms : DualBound
    constraint : FeasibleSet or float
        A nuclear or Frobenius ball, also weighted, or the number of a nuclear penalty.

    Raises
    ------
    CertificateError
        If the set is of another kind, the problem too large, or the objective not finite.
    """
    kind, size, weights = _kind(constraint)
    _check_work(terms)
    document = _stored(terms) | {"kind": "optimum", "constraint": kind, "size": hexes(size)}
    document |= {name: hexes(x) for name, x in weights.items() if x is not None}
    y = _multipliers(terms, kind, size, weights)
    document |= {"dual": hexes(y), "top": _top(terms, y, kind, weights), "values": []}
    if kind == "nuclear penalty":
        document["values"] = hexes(list(proved_values(terms.operator)))
    return _claimed(document)


def _claimed(document: Document) -> tuple[Document, float, float]:
    """Return the document with what the checker finds as its claim."""
    loose = {"objective": hexes(sys.float_info.max), "lower_bound": hexes(0.0)}
    try:
        objective, bound = checker.check_optimum(document | {"claim": loose})
    except checker.RefusedError as reason:
        raise CertificateError(
            f"the optimum must be provable; got a proof that fails: {reason}"
        ) from (reason)
    upper, lower = above(Fraction(objective)), max(0.0, -above(-Fraction(bound)))
    claim = {"objective": hexes(upper), "lower_bound": hexes(lower)}
    return stamped(document | {"claim": claim}), upper, lower


def _kind(
    constraint: FeasibleSet | float,
) -> tuple[str, float, dict[str, Tensor | None]]:
    inner, rows, cols = constraint, None, None
    if isinstance(constraint, FeasibleSet):
        inner, rows, cols = constraint.unweighted
    weights = {"row_weights": rows, "col_weights": cols}
    match inner:
        case float() | int():
            return "nuclear penalty", float(inner), weights
        case SchattenBall(p=1, radius=radius):
            return "nuclear ball", radius, weights
        case SchattenBall(p=2, radius=radius):
            return "frobenius ball", radius, weights
        case _:
            raise CertificateError(
                "exact proofs of optimality are for nuclear and Frobenius balls, also weighted, "
                f"and nuclear penalties; got {constraint}: use certificate() without exact"
            )


def _check_work(terms: DualBound) -> None:
    observations = terms.observations
    products = len(observations) * terms.operator.rank
    finite = all(bool(x.isfinite().all()) for x in terms.operator)
    lines = min(observations.shape)
    if not finite or products > _MOST_PRODUCTS or lines > _MOST_LINES:
        raise CertificateError(
            f"an exact proof needs finite factors, at most {_MOST_LINES} rows or columns and "
            f"{_MOST_PRODUCTS} products; got {lines} and {products}: use certificate() without "
            "exact, whose errors are bounded in float64"
        )


def _stored(terms: DualBound) -> Document:
    observations, op, bias = terms.observations, terms.operator, terms.bias
    weights = observations.weights
    return {
        "rows": observations.rows.tolist(),
        "cols": observations.cols.tolist(),
        "ratings": hexes(observations.values),
        "entry_weights": [] if weights is None else hexes(weights),
        "mean": hexes(bias.mean),
        "row_bias": hexes(bias.rows),
        "col_bias": hexes(bias.cols),
        "bias_penalty": hexes(terms.bias_penalty or 0.0),
        "left": hexes(op.left),
        "scale": hexes(op.scale),
        "right": hexes(op.right),
    }


def _multipliers(
    terms: DualBound, kind: str, size: float, weights: dict[str, Tensor | None]
) -> Floats:
    """Return the multiple of the gradient with the largest bound, nearly; zeros if none helps."""
    y = terms.gradient()
    if not bool(y.isfinite().all()):
        return np.zeros(len(y))
    top = _norm(terms, y.numpy(), kind, weights)
    slope, limit = terms.linear(y) - size * top, math.inf
    if kind == "nuclear penalty":
        # A little less than allowed, for the roundings of the witness.
        slope, limit = terms.linear(y), size / top * (1 - 2.0**-30) if top > 0 else math.inf
    quadratic = terms.quadratic(y)
    if not (slope > 0 and 0 < quadratic < math.inf):
        return np.zeros(len(y))
    return y.numpy() * min(slope / quadratic, limit)


def _norm(terms: DualBound, y: Floats, kind: str, weights: dict[str, Tensor | None]) -> float:
    """Return the norm of Y that the set's support function is made of; nothing is proved."""
    matrix, _, _ = _lines(terms, y, weights)
    if kind == "frobenius ball":
        return float(np.linalg.norm(matrix))
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _lines(
    terms: DualBound, y: Floats, weights: dict[str, Tensor | None]
) -> tuple[Floats, int, dict[tuple[int, int], Fraction]]:
    """Return Y without empty lines, its shorter side first, which side that is, and its entries."""
    places = terms.observations.rows.tolist(), terms.observations.cols.tolist()
    factors = [None if w is None else w.double().tolist() for w in weights.values()]
    entries: dict[tuple[int, int], Fraction] = {}
    for i, j, x in zip(*places, y.tolist(), strict=True):
        scaled = Fraction(x)
        for index, factor in zip((i, j), factors, strict=True):
            scaled *= Fraction(factor[index]) if factor else 1
        entries[i, j] = scaled
    names = [sorted(set(place)) for place in places]
    matrix = np.zeros((len(names[0]), len(names[1])))
    at = [{name: k for k, name in enumerate(side)} for side in names]
    for (i, j), x in entries.items():
        matrix[at[0][i], at[1][j]] = float(x)
    axis = int(matrix.shape[1] < matrix.shape[0])
    return (matrix.T if axis else matrix), axis, entries


def _top(terms: DualBound, y: Floats, kind: str, weights: dict[str, Tensor | None]) -> Document:
    """Return the witness of a bound on the norm of Y."""
    matrix, axis, entries = _lines(terms, y, weights)
    if kind == "frobenius ball":
        total = sum((x * x for x in entries.values()), Fraction(0))
        return {"bound": hexes(above(checker.root(total, 2, up=True)))}
    gram = matrix @ matrix.T
    level, factor = _shifted_factor(gram)
    exponent = math.frexp(math.sqrt(level))[1] - 56 if level > 0 else 0
    rounded = np.rint(np.ldexp(factor, -exponent))
    lower = [[int(x) for x in row[: k + 1]] for k, row in enumerate(rounded)]
    top = {"axis": axis, "level": hexes(level), "exponent": exponent, "factor": lower}
    square = checker.above_top(top, entries)
    return top | {"bound": hexes(above(checker.root(Fraction(square), 2, up=True)))}


def _shifted_factor(gram: Floats) -> tuple[float, Floats]:
    """Return c a little above the largest eigenvalue, and the Cholesky factor of ``c I - gram``."""
    largest = float(np.linalg.eigvalsh(gram)[-1]) if len(gram) else 0.0
    if not largest > 0:
        return 0.0, np.zeros_like(gram)
    slack = len(gram) * 2.0**-48
    while True:
        level = largest * (1 + slack)
        try:
            factor = np.linalg.cholesky(level * np.eye(len(gram)) - gram)
            return level, factor.astype(np.float64)
        except np.linalg.LinAlgError:
            slack *= 4
