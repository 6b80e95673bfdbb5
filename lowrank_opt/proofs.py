r"""Proofs of norm bounds in exact arithmetic, written down for others to check.

A proof is a document for `lowrank_opt.check_certificate`, whose docstring has the theorem. Here are
the guesses: values a little above the computed singular values, raised until they are proved.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lowrank_opt.check_certificate as checker
from lowrank_opt.errors import CertificateError
from lowrank_opt.linalg import product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    SchattenBall,
    SingularValueBox,
    SpectralSet,
)

# Eliminations of r x r matrices of long integers: what a minute allows, and what no one waits for.
_MOST_COLUMNS, _MOST_WORK, _LITTLE_WORK = 96, 1_200_000, 40_000
# Bounds on values are this near to them, relative to the largest one.
_NEAR = 2.0**-46


@dataclass(frozen=True)
class Proof:
    """What was proved of a factor triple.

    Attributes
    ----------
    document : dict
        For the checker, which has accepted it.
    values : tuple of float
        Upper bounds on the singular values: each proved by itself, near the value, if there are at
        most 14; of more, those that the claim needs, and what it implies for the others.
    excess : float
        Upper bound on the excess over the set; at most 0 if membership is proved.
    """

    document: dict[str, object]
    values: tuple[float, ...]
    excess: float


def prove_membership(op: LowRankOperator, feasible_set: FeasibleSet) -> Proof:
    """Return the proof of a norm bound: the truth, or a little above it.

    A Frobenius norm is proved to the next float64 above it. Bounds on singular values are above
    the truth by at most 2^-46 of the largest one, so that other norms of r values are by at most
    r 2^-46 of themselves; more only where terms of the product cancel, and those of more than 14
    columns. The excess of members of a ball in the spectral norm, or of a box, may be 0 although
    they lie inside.

    Parameters
    ----------
    op : LowRankOperator
    feasible_set : FeasibleSet
        A Schatten ball, a Ky Fan ball or a box; one between orthonormal frames; or weighted.

    Raises
    ------
    CertificateError
        If the set is of another kind, the factors are not finite or have too many columns, or the
        norm is more than float64 holds.
    """
    spectral, weights = _spectral_form(op, feasible_set)
    if not all(bool(torch.isfinite(x).all()) for x in op):
        raise CertificateError("a proof is about finite factors; got NaN or infinity: none exists")
    document = _stored(op) | {name: hexes(w) for name, w in weights.items() if w is not None}
    found = _Search(op, document, *_estimate(op, weights))
    claim, values, excess = _claim(found, spectral)
    document |= {"claim": claim, "values": hexes(values), "kind": "norm"}
    count = min(*op.shape, op.rank)
    every = found.values(count) if found.is_quick else _implied(values, claim)
    rest = 0.0 if found.is_quick or not every else every[-1]
    return Proof(seal(document), tuple([*every, *[rest] * count][:count]), excess)


def seal(document: dict[str, object]) -> dict[str, object]:
    """Return a document with format and digest, after the checker has accepted it."""
    document = stamped(document)
    checker.check(document)
    return document


def stamped(document: dict[str, object]) -> dict[str, object]:
    """Return a document with format and digest."""
    document = document | {"format": checker.FORMAT}
    return document | {"digest": checker.digest(document)}


def save_document(
    document: Mapping[str, object] | None, path: str | PathLike[str], origin: str
) -> None:
    """Write a proof as JSON, whole or not at all."""
    if document is None:
        raise CertificateError(
            f"a certificate to save needs a proof in exact arithmetic; got none: take it from "
            f"{origin}"
        )
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_text(json.dumps(document), encoding="utf-8")
    part.replace(target)


def hexes(x: object) -> object:
    """Return numbers as hexadecimal text, which is exact; tensors, arrays, sequences as lists."""
    if isinstance(x, Tensor):
        return hexes(x.detach().double().cpu().tolist())
    if isinstance(x, np.ndarray):
        return hexes(x.tolist())
    if isinstance(x, list | tuple):
        return [hexes(y) for y in x]  # pyright: ignore[reportUnknownVariableType]
    return float(x).hex()  # pyright: ignore[reportArgumentType]


def above(x: Fraction) -> float:
    """Return the smallest float that is no smaller than a fraction."""
    _check_range(x)
    nearest = float(x)
    return nearest if Fraction(nearest) >= x else math.nextafter(nearest, math.inf)


def _check_range(x: Fraction | float) -> None:
    if not x <= sys.float_info.max:
        raise CertificateError(
            f"an exact proof needs norms that float64 holds; got one above "
            f"{sys.float_info.max:.1e}: divide the factors by a power of two"
        )


def proved_values(op: LowRankOperator) -> tuple[float, ...]:
    """Return proved upper bounds on all singular values, which add up to the nuclear norm."""
    return tuple(_Search(op, _stored(op), *_estimate(op, {})).values(min(op.shape)))


def _stored(op: LowRankOperator) -> dict[str, object]:
    return {"left": hexes(op.left), "scale": hexes(op.scale), "right": hexes(op.right)}


def _columns(op: LowRankOperator) -> int:
    """Return how many columns are not zero on either side."""
    left, scale, right = op
    return int(((scale != 0) & (left != 0).any(0) & (right != 0).any(0)).sum())


def _spectral_form(
    op: LowRankOperator, feasible_set: FeasibleSet
) -> tuple[SpectralSet, dict[str, Tensor | None]]:
    inner, rows, cols = feasible_set.unweighted
    weights = {"row_weights": rows, "col_weights": cols}
    view = inner.as_spectral(op)
    if view is not None and view[0] is op and isinstance(view[1], _PROVED):
        return view[1], weights
    raise CertificateError(
        "exact proofs are for Schatten and Ky Fan balls and boxes of singular values, also between "
        f"orthonormal frames or under weights; got {feasible_set}: use certify() without exact"
    )


_PROVED = (SchattenBall, KyFanBall, SingularValueBox)


def _estimate(op: LowRankOperator, weights: dict[str, Tensor | None]) -> tuple[list[float], float]:
    """Return singular values in float64, and about how far they are from those of the product."""
    left, scale, right = op.detach().to(dtype=torch.float64)
    rows, cols = weights.get("row_weights"), weights.get("col_weights")
    left = left if rows is None else left / rows.double().unsqueeze(1)
    right = right if cols is None else right / cols.double().unsqueeze(1)
    terms = left.norm(dim=0) * scale.abs() * right.norm(dim=0)
    return product_svd(left, scale, right)[1].tolist(), 2.0**-48 * float(terms.sum())


class _Search:
    """Values above the singular values, each raised until the checker's elimination proves it."""

    def __init__(
        self,
        op: LowRankOperator,
        document: dict[str, object],
        estimate: list[float],
        doubt: float,
    ) -> None:
        columns = _columns(op)
        if columns > _MOST_COLUMNS:
            raise CertificateError(
                f"exact proofs are for at most {_MOST_COLUMNS} columns; got {columns}: use "
                "certify() without exact"
            )
        self.A, self.AHA, self.trace, self.count = checker.terms(document)
        _check_range(sum(estimate))
        self.estimate, self.doubt = estimate, doubt
        self._known: dict[int, float] = {}
        self._spare = _MOST_WORK // max(1, len(self.A) ** 3)

    @property
    def is_quick(self) -> bool:
        """Whether all values are soon proved."""
        return self.count * len(self.A) ** 3 <= _LITTLE_WORK

    @property
    def rank(self) -> int:
        return checker.exceeding(self.A, self.AHA, 0)

    def is_above(self, value: float, index: int) -> bool:
        """Whether at most `index` singular values exceed a value."""
        return checker.exceeding(self.A, self.AHA, Fraction(value)) <= index

    def values(self, needed: int) -> list[float]:
        """Return proved bounds on the largest `needed` singular values, in decreasing order."""
        needed = min(needed, self.count)
        if needed * len(self.A) ** 3 > _MOST_WORK:
            raise CertificateError(
                f"an exact proof of this norm needs {needed} eliminations of size {len(self.A)}, "
                "more than a minute's work: use certify() without exact, or the Frobenius norm"
            )
        found: list[float] = []
        for index in range(needed):
            value = self.value(index)
            found.append(min(value, found[-1]) if found else value)
        return found

    def value(self, index: int) -> float:
        """Return a proved bound on one singular value."""
        if index not in self._known:
            self._known[index] = self._narrowed(self._above(index), index)
        return self._known[index]

    def _above(self, index: int) -> float:
        slack = max(self.estimate[0], 2.0**-1022) * 2.0**-52
        for _ in range(60):
            value = self.estimate[index] + slack
            if self.is_above(value, index):
                return value
            slack *= 4
        raise CertificateError(
            "an exact proof needs computed singular values near the true ones; got factors whose "
            "terms cancel beyond float64: export them, or recompute them from thin_svd()"
        )

    def _narrowed(self, value: float, index: int) -> float:
        """Return a lower bound by bisection, where terms cancel and the computed value is wrong."""
        low = max(0.0, self.estimate[index] - self.doubt)
        while value - low > _NEAR * self._known.get(0, value) and self._spare:
            self._spare -= 1
            middle = low + (value - low) / 2
            value, low = (middle, low) if self.is_above(middle, index) else (value, middle)
        return value


def _claim(found: _Search, spectral: SpectralSet) -> tuple[dict[str, object], list[float], float]:
    """Return the claim, its values, and the excess over the set."""
    rank = spectral.rank
    over = len(found.A) > rank and found.rank > rank
    claim: dict[str, object] = {"rank": found.rank if over else rank}
    if isinstance(spectral, SingularValueBox):
        bounds, excess = _boxed(found, spectral)
        claim |= {"norm": "each", "bound": hexes(bounds)}
        values = bounds
    else:
        assert isinstance(spectral, SchattenBall | KyFanBall), "of the kinds that are proved"
        values, bound, name = _normed(found, spectral)
        claim |= name | {"bound": hexes(bound)}
        excess = _difference(bound, spectral.radius)
    if over:
        excess = max(excess, found.value(rank))
    return claim, values, excess


def _boxed(found: _Search, box: SingularValueBox) -> tuple[list[float], float]:
    """Return the bounds themselves where they are proved, the nearest values where not."""
    values = [
        bound if found.is_above(bound, index) else found.value(index)
        for index, bound in enumerate(box.bounds[: found.count])
    ]
    excess = max((_difference(v, b) for v, b in zip(values, box.bounds, strict=False)), default=0.0)
    ordered = [max(values[index:]) for index in range(len(values))]
    return ordered + list(box.bounds[found.count :]), excess


def _normed(
    found: _Search, ball: SchattenBall | KyFanBall
) -> tuple[list[float], float, dict[str, object]]:
    if isinstance(ball, KyFanBall):
        values = found.values(ball.k)
        total = sum((Fraction(x) for x in values), Fraction(0))
        return values, above(total), {"norm": "ky_fan", "k": ball.k}
    name: dict[str, object] = {"norm": str(order(ball.p))}
    if ball.p == 2:
        return [], above(checker.root(Fraction(found.trace), 2, up=True)), name
    values = found.values(1 if math.isinf(ball.p) else found.count)
    if math.isinf(ball.p):
        top = values[0] if values else 0.0
        top = ball.radius if top > ball.radius and found.is_above(ball.radius, 0) else top
        return [top], top, name
    return values, _power_norm(values, Fraction(ball.p)), name


def order(p: float) -> Fraction | str:
    """Return the order of a Schatten norm as a fraction, where a proof knows it."""
    if math.isinf(p):
        return "inf"
    exact = Fraction(p)
    if exact.denominator > 16 or exact.numerator > 512:
        raise CertificateError(
            "exact proofs know orders p that are fractions with a denominator up to 16; got "
            f"p={p}: use certify() without exact"
        )
    return exact


def _power_norm(values: list[float], p: Fraction) -> float:
    """Return a float whose p-th power the checker finds above the sum of those of the values."""
    powers = [Fraction(x) ** p.numerator for x in values]
    total = sum((checker.root(x, p.denominator, up=True) for x in powers), Fraction(0))
    bound = above(checker.root(total**p.denominator, p.numerator, up=True))
    while total > checker.root(Fraction(bound) ** p.numerator, p.denominator, up=False):
        bound = math.nextafter(bound, math.inf)
    return bound


def _difference(a: float, b: float) -> float:
    return above(Fraction(a) - Fraction(b))


def _implied(values: list[float], claim: dict[str, object]) -> list[float]:
    """Return what a claim says of the singular values, the last one of all that follow."""
    if claim["norm"] != "2":
        return values
    norm = float.fromhex(str(claim["bound"]))
    return [math.nextafter(norm / math.sqrt(i + 1), math.inf) for i in range(_MOST_COLUMNS)]
