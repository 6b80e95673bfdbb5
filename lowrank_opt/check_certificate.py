# type: ignore
"""Check a certificate with the standard library: ``python check_certificate.py FILE``.

Floats are hexadecimal text, and exact; quotients and roots are rounded against the claim.
*Norms* of W = L S R^T. With A = L^T L and H = S R^T R S, the matrix s^2 I - W W^T is s^2 A - A H A
on the columns of L: its negative eigenvalues, counted by elimination (Sylvester), are the singular
values above s. The squared Frobenius norm is the trace of A H. Weights divide the rows of L and R.
*Optima.* For every y, w e^2 / 2 >= y e - y^2 / (2 w). With Y the sparse matrix of y, the objective
of a member is at least - <y, v - given> - sum y^2 / (2 w) - h(-Y), less, for a penalty b on biases,
``(|Y 1|^2 + |Y^T 1|^2) / (2 b)``. h(-Y) is the radius times the top singular value for a nuclear
ball, or times the Frobenius norm; 0 for a nuclear penalty above the top. That top is at most s if
c I - Y Y^T = K K^T + E and ``s^2 >= c + |E|``, the largest row sum of moduli, for any K.
"""

import hashlib
import json
import math
import sys
from fractions import Fraction
from operator import mul

FORMAT = "lowrank_opt certificate 1"


class RefusedError(Exception):
    """The certificate proves nothing: why."""


def _require(condition, reason):
    if not condition:
        raise RefusedError(reason)


def _exact(x):
    return [_exact(y) for y in x] if isinstance(x, list) else Fraction(float.fromhex(x))


def digest(document):
    """Return a hash of all that a document holds but the hash."""
    body = json.dumps({k: v for k, v in document.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def _quotient_above(x, y, bits=300):
    unit = Fraction(2) ** (x.numerator.bit_length() - y.numerator.bit_length() - bits)
    return math.ceil(x / y / unit) * unit


def root(x, order, up):
    """Return the root of a fraction, rounded up or down: 200 bits past the point, and of it."""
    bits = 200 + max(0, x.denominator.bit_length() - x.numerator.bit_length()) // order
    low, n = 0, (math.ceil if up else math.floor)(x * 2 ** (bits * order))
    for bit in reversed(range(n.bit_length() // order + 1)):
        low += ((low + (1 << bit)) ** order <= n) << bit
    return Fraction(low + (up and low**order < n), 2**bits)


def gram(rows, divisors):
    """Return X^T D^-2 X, rounded up in the order of symmetric matrices."""
    top = math.lcm(*(x.denominator for row in rows for x in row))
    columns = [[int(x * top) for x in column] for column in zip(*rows)]
    weights = [_quotient_above(Fraction(1), d * d) for d in divisors] or [Fraction(1)] * len(rows)
    low = math.lcm(*(w.denominator for w in weights))
    left = [[a * int(w * low) for a, w in zip(c, weights)] for c in columns]
    return [[Fraction(sum(map(mul, a, b)), top * top * low) for b in columns] for a in left]


def negatives(M):
    """Return the number of negative eigenvalues of a symmetric matrix: Bareiss's elimination."""
    top = math.lcm(*(x.denominator for row in M for x in row))
    M, previous, count = [[int(x * top) for x in row] for row in M], 1, 0
    while any(map(any, M)):
        k = next((i for i, row in enumerate(M) if row[i]), None)
        if k is None:
            # Zero diagonal: line j added to line k makes the entry (k, k) twice that at (k, j).
            k, j = next((i, j) for i, row in enumerate(M) for j, x in enumerate(row) if x)
            M[k] = [a + b for a, b in zip(M[k], M[j])]
            M = [[x + row[j] if i == k else x for i, x in enumerate(row)] for row in M]
        pivot, line, rest, last = M[k][k], M[k], [i for i in range(len(M)) if i != k], previous
        count, previous = count + ((pivot < 0) != (last < 0)), pivot
        M = [[(pivot * M[i][j] - line[i] * line[j]) // last for j in rest] for i in rest]
    return count


def exceeding(A, AHA, s):
    """Return how many singular values exceed s."""
    return negatives([[s * s * a - b for a, b in zip(p, q)] for p, q in zip(A, AHA)])


def terms(document, sides=("row_weights", "col_weights")):
    """Return A, A H A, the trace of A H, the number of singular values; no columns of zeros."""
    L, s, R = (_exact(document[name]) for name in ("left", "scale", "right"))
    _require(all(len(row) == len(s) for row in L + R), "factors differ in columns")
    kept = [k for k in range(len(s)) if s[k] and all(any(x[k] for x in X) for X in (L, R))]
    L, R = ([[row[k] for k in kept] for row in X] for X in (L, R))
    divisors = [_exact(document.get(name, [])) for name in sides] or [[], []]
    fit = all(len(d) in (0, len(X)) and all(w > 0 for w in d) for X, d in zip((L, R), divisors))
    _require(fit, "weights must be positive, one a line")
    A, B = map(gram, (L, R), divisors)
    H = [[B[i][j] * s[p] * s[q] for j, q in enumerate(kept)] for i, p in enumerate(kept)]
    AH = [[sum(map(mul, row, column)) for column in zip(*H)] for row in A]
    AHA = [[sum(map(mul, row, column)) for column in zip(*A)] for row in AH]
    return A, AHA, sum(row[k] for k, row in enumerate(AH)), min(len(L), len(R), len(kept))


def _check_values(A, AHA, values, needed):
    _require(len(values) >= needed and min(values, default=0) >= 0, "a value has no bound")
    for i, s in enumerate(values):
        _require(s in values[:i] or exceeding(A, AHA, s) <= i, f"singular value {i + 1} is larger")


def _check_norm(document):
    A, AHA, trace, count = terms(document)
    claim, values = document["claim"], _exact(document["values"])
    rank, norm, bound = claim["rank"], claim["norm"], _exact(claim["bound"])
    _require(len(A) <= rank or exceeding(A, AHA, 0) <= rank, "the rank is larger")
    if norm == "each":
        return _check_values(A, AHA, bound, min(count, rank))
    if norm == "2":
        return _require(bound >= 0 and trace <= bound**2, "the Frobenius norm is larger")
    k = {"inf": 1, "ky_fan": claim.get("k")}.get(norm, count)
    _check_values(A, AHA, values, min(k, count))
    if norm in ("inf", "ky_fan"):
        return _require(k >= 1 and sum(values[:k]) <= bound, "the norm is larger")
    p = Fraction(norm)
    _require(p >= 1 and p.denominator <= 16 and p.numerator <= 512, "an order without a proof")
    total = sum(root(x**p.numerator, p.denominator, True) for x in values)
    return _require(total <= root(bound**p.numerator, p.denominator, False), "the norm is larger")


def above_top(top, Y):
    """Return ``c + |E|`` for c I - Y Y^T = K K^T + E, or with Y^T Y."""
    lines, K, worst = {}, top["factor"], {}
    for place, x in Y.items():
        lines.setdefault(place[top["axis"]], {})[place[1 - top["axis"]]] = x
    unit, names = Fraction(4) ** top["exponent"], sorted(lines)
    for a, p in enumerate(names):
        for b, q in enumerate(names[: a + 1]):
            E = _exact(top["level"]) * (a == b) - unit * sum(map(mul, K[a][: b + 1], K[b][: b + 1]))
            E -= sum(x * lines[q][k] for k, x in lines[p].items() if k in lines[q])
            worst |= {name: worst.get(name, 0) + abs(E) for name in (p, q)}
    return _exact(top["level"]) + max(worst.values(), default=0)


def check_optimum(document):
    """Return the objective and a lower bound on that of every member, as claimed."""
    i, j, v, y, w = (document[n] for n in ("rows", "cols", "ratings", "dual", "entry_weights"))
    v, y, w = _exact(v), _exact(y), _exact(w) or [Fraction(1)] * len(v)
    a, b, mean, b2 = (_exact(document[n]) for n in ("row_bias", "col_bias", "mean", "bias_penalty"))
    _require(len(i) == len(j) == len(v) == len(y) == len(w), "entries differ in number")
    fit = min(*w, b2, *i, *j) >= 0 and all(u or not x for x, u in zip(y, w))
    _require(fit, "a negative weight or index, or a multiplier at an entry without weight")
    L, s, R = (_exact(document[name]) for name in ("left", "scale", "right"))
    shift = [mean + a[p] + b[q] - x for p, q, x in zip(i, j, v)]
    errors = [sum(map(mul, map(mul, L[p], s), R[q])) + x for p, q, x in zip(i, j, shift)]
    objective = (sum(u * e * e for u, e in zip(w, errors)) + b2 * sum(x * x for x in a + b)) / 2
    bound = sum(map(mul, y, [mean - x for x in v] if b2 else shift))
    bound -= sum(_quotient_above(x * x, u) for x, u in zip(y, w) if x) / 2
    rows, cols = (_exact(document.get(name, [])) for name in ("row_weights", "col_weights"))
    Y, sums = {}, {}
    for p, q, x in zip(i, j, y):
        Y[p, q] = Y.get((p, q), 0) + x * (rows[p] if rows else 1) * (cols[q] if cols else 1)
        sums["row", p], sums["col", q] = (sums.get(k, 0) + x for k in (("row", p), ("col", q)))
    bound -= sum(x * x for x in sums.values()) / (2 * b2) if b2 else 0
    kind, top, size = document["constraint"], document["top"], _exact(document["size"])
    s = _exact(top["bound"])
    square = sum(x * x for x in Y.values()) if kind == "frobenius ball" else above_top(top, Y)
    _require(s >= 0 and s * s >= square and size > 0, "the norm of the multipliers is larger")
    if kind == "nuclear penalty":
        _require(s <= size and not rows + cols, "the multipliers exceed the penalty")
        (A, AHA, _, count), values = terms(document, ()), _exact(document["values"])
        _check_values(A, AHA, values, count)
        objective += size * sum(values)
    else:
        _require(kind in ("nuclear ball", "frobenius ball"), "an unknown constraint")
        bound -= size * s
    _require(objective <= _exact(document["claim"]["objective"]), "the objective is larger")
    _require(_exact(document["claim"]["lower_bound"]) <= max(bound, 0), "the bound is not proved")
    return objective, bound


def check(document):
    """Raise RefusedError unless a document proves its claim."""
    try:
        stamp = document["format"], document["digest"]
        _require(stamp == (FORMAT, digest(document)), "changed, or of another format")
        {"norm": _check_norm, "optimum": check_optimum}[document["kind"]](document)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RefusedError(f"malformed: {error!r}") from error


if __name__ == "__main__":
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            content = json.load(file)
        check(content)
    except (IndexError, OSError, ValueError, RefusedError) as refusal:
        sys.exit(f"refused: {refusal}")
    print(f"proved: {json.dumps(content['claim'])}")
