"""What is promised about W itself: its form, its set, its rank, its certificate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.certificate import Certificate
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import Chart, value_excess
from lowrank_opt.testing.cases.oracle import (
    Array,
    ScaledMatrix,
    absolute,
    is_finite,
    magnitude,
    product,
    singular_values,
    underflow,
)
from lowrank_opt.testing.cases.parameters import ADVERSARIAL, HOSTILE
from lowrank_opt.testing.laws.maps.overflow import excuse_overflow
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

_EPS64 = torch.finfo(torch.float64).eps
# Below, a float64 number has fewer digits, or its products have.
_TINY = torch.finfo(torch.float64).tiny / _EPS64


_SHOW_FACTORS = """
op = W.factors().detach()
print("left:", op.left.tolist())
print("scale:", op.scale.tolist())
print("right:", op.right.tolist())
"""
_SHOW_EXCESS = """
op = W.factors().detach()
print("singular values:", op.singular_values().tolist())
print("excess over", W.feasible_set, "is", W.feasible_set.excess(op))
"""


def _contract(subject: Subject) -> None:
    module, shape = subject.fresh(), subject.case.shape
    kind = type(module).__name__
    expect(isinstance(module, Parameterization), f"make returned {kind}, not a Parameterization")
    _expect_parameters(module)
    subject.case.parameters.fill_(module)
    op = module()
    expect(isinstance(op, LowRankOperator), f"a call returned {type(op).__name__}, not an operator")
    expect(tuple(module.shape) == shape, f"shape is {module.shape}, asked for {shape}")
    expect(op.shape == shape, f"the factors are of shape {op.shape}, asked for {shape}")
    expect(isinstance(module.feasible_set, FeasibleSet), "feasible_set is not a FeasibleSet")
    trainable = [p for p in module.parameters() if p.requires_grad]
    expect(bool(trainable), "there is no trainable parameter")


def _expect_parameters(module: Parameterization) -> None:
    """Expect all parameters to be there from the start: laws write to them before any call."""
    lazy = [k for k, p in module.named_parameters() if is_lazy(p)]
    if not lazy:
        before = {k for k, _ in module.named_parameters()}
        module()
        lazy = [k for k, _ in module.named_parameters() if k not in before]
    expect(
        not lazy,
        f"the parameters {', '.join(lazy)} are created at the first call, after optimizers and "
        "laws have asked for them: create them in __init__, or verify a function that makes the "
        "module, calls it once and returns it",
    )


def membership(subject: Subject, where: str = "") -> None:
    """Expect W in the declared set; `where` ends the sentence of what was found."""
    module = subject.module()
    op, feasible_set = module.factors(), module.feasible_set
    _expect_finite(subject, module, op, where)
    chart, exact = subject.chart(module), product(op)
    # In a cone the size of W does not matter, and its exact product may be no float64 number.
    W, exponent = (exact.mantissa, exact.exponent) if chart.cone else (exact.dense(), 0)
    excess, rule = chart.excess(W), chart.tolerance(W, subject.dtype, feasible_set.rank)
    sizes = absolute(op)
    explained = rule + underflow(op, exponent) + _cancellation(subject, chart, sizes, exponent)
    expect(
        excess <= explained,
        f"W leaves {_name(feasible_set)} by {excess:.3e}{where}; rounding explains {explained:.1e}",
    )
    expect(
        excess > rule / 2
        or chart.rtol > 0
        or not _well_scaled(chart, exact.dense(), sizes)
        or feasible_set.contains(op),
        f"{_name(feasible_set)} does not contain W, although W leaves it by {excess:.1e} only and "
        f"its tolerance is {rule:.1e}",
    )


def _expect_finite(
    subject: Subject, module: Parameterization, op: LowRankOperator, where: str = ""
) -> None:
    if not is_finite(op):
        excuse_overflow(subject, module)
        expect(False, f"the factors of a finite parameter are not finite{where}", _SHOW_FACTORS)


def _cancellation(subject: Subject, chart: Chart, sizes: ScaledMatrix, exponent: int) -> float:
    """Return what rounding of factors explains where large terms, of given sizes, cancel.

    Bounded sets allow for the oracle's own sums only: their factors are bounded too.
    """
    unit = float(np.finfo(np.longdouble).eps) if chart.bounded else subject.eps
    with np.errstate(over="ignore"):
        peak = np.ldexp(singular_values(sizes.mantissa)[0], sizes.exponent - exponent)
    return 4 * unit * float(peak) / chart.gain


def _well_scaled(chart: Chart, W: Array, sizes: ScaledMatrix) -> bool:
    """Return whether float64 holds W, its squares and the terms that add up to it."""
    terms = float(sizes.dense().max())
    return _representable(W) and terms <= 8 * chart.size(W) * chart.gain


def _rank(subject: Subject) -> None:
    module = subject.module()
    op, chart = module.factors(), subject.chart(module)
    _expect_finite(subject, module, op)
    W = product(op)
    rank = module.feasible_set.rank
    expect(rank <= min(subject.case.shape), f"the declared rank {rank} exceeds min(m, n)")
    values = singular_values(W.mantissa)
    allowed = Chart.rule(subject.dtype, rank) * values[0]
    allowed += _cancellation(subject, chart, absolute(op), W.exponent) + underflow(op, W.exponent)
    expect(
        bool((values[rank:] <= allowed).all()),
        f"the rank exceeds {rank}: the next singular value is {max(values[rank:], default=0):.3g} "
        f"times the unit of a largest one of {values[0]:.3g}",
    )


def _certificate(subject: Subject) -> None:
    module = subject.module()
    op = module.factors().detach()
    _expect_finite(subject, module, op)
    W, chart = product(op).dense(), subject.chart(module)
    if not _representable(W):
        raise NotApplicable("float64 does not hold W to full precision")
    certificate = module.certify()
    count = min(op.rank, *op.shape)
    expect(
        len(certificate.singular_values) >= count,
        f"certify() bounds {len(certificate.singular_values)} singular values of {count}",
    )
    low = min(_shortfall(certificate.singular_values, X) for X in (W, chart.pull(W)))
    expect(low <= 0, f"a bound on the singular values is too low by {low:.2e}")
    exact = 16 * _EPS64 * chart.size(W) * len(certificate.singular_values)
    # Where large terms cancel, what is left has the rounding of the oracle's own sum.
    exact += 16 * float(np.finfo(np.longdouble).eps) * float(np.linalg.norm(magnitude(op)))
    over = chart.spectral_excess(W)
    expect(over <= exact or not certificate.exact, f"exact is claimed, but W exceeds by {over:.2e}")
    excess, rule = chart.excess(W), chart.tolerance(W, subject.dtype, module.feasible_set.rank)
    expect(
        excess <= rule + exact + underflow(op) or not certificate.holds,
        f"certify() holds, although W leaves the set by {excess:.2e}; rounding explains {rule:.1e}",
    )
    _expect_own_certificate(subject, module, certificate, W)
    expect(
        excess > rule / 2 or certificate.holds,
        f"certify() does not hold by {certificate.excess:.2e}, although W leaves the set by "
        f"{excess:.2e} only and rounding explains {rule:.1e}",
    )


def _expect_own_certificate(
    subject: Subject, module: Parameterization, certificate: Certificate, W: Array
) -> None:
    """Expect the certificate to be about the declared set, with an excess from above."""
    op, chart = module.factors().detach(), subject.chart(module)
    if subject.case.parameters.tame:
        claimed, own = (s.excess(3.0 * op) for s in (certificate.feasible_set, module.feasible_set))
        near = abs(claimed - own) <= 1e-9 * (abs(own) + chart.size(W))
        expect(near, f"certify() is about {certificate.feasible_set}, not the declared set")
    if chart.core is not module.feasible_set or not chart.bounded:
        return
    signed = value_excess(chart.core, singular_values(W)[: chart.core.rank])
    slack = 64 * _EPS64 * (chart.size(W) + float(np.linalg.norm(magnitude(op)))) * len(W.T)
    expect(
        certificate.excess >= signed - slack,
        f"certify() says that W exceeds by {certificate.excess:.6g}; it does by {signed:.6g}",
    )
    expect(
        certificate.tolerance <= 0.05 * chart.size(W),
        f"certify() allows an excess of {certificate.tolerance:.2e} in a set of size "
        f"{chart.size(W):.2g}",
    )


def _representable(W: Array) -> bool:
    """Return whether float64 holds the singular values of W and their squares to full precision."""
    peak = float(np.abs(W).max())
    return peak == 0 or _TINY <= peak <= _TINY**-0.5


def _shortfall(bounds: Sequence[float], matrix: Array) -> float:
    """Return by how much bounds on singular values are too low, beyond the truth's own rounding."""
    values = singular_values(matrix)
    # Values past the number of columns are zero; what the oracle has there is rounding.
    lower = values[: len(bounds)] - np.array(bounds)[: len(values)]
    return float(lower.max() - 4 * _EPS64 * matrix.size**0.5 * values[0])


def _name(feasible_set: FeasibleSet) -> str:
    """Return the name of a set: its repr may print matrices."""
    text = repr(feasible_set)
    return text if "tensor(" not in text else type(feasible_set).__name__


_SHOW_RANK = """
op = W.factors().detach()
print("singular values:", op.singular_values().tolist())
print("declared rank:", W.feasible_set.rank)
"""
_SHOW_CERTIFICATE = """
op = W.factors().detach()
print("singular values:", op.singular_values().tolist())
print("excess over", W.feasible_set, "is", W.feasible_set.excess(op))
print(W.certify())
"""
_SHOW_CONTRACT = """
print("made:", type(W).__name__, "asked for a $m x $n matrix")
print("a call returns:", type(W()).__name__, getattr(W(), "shape", "without a shape"))
"""
check_contract: Law[Subject] = Law(
    "contract",
    "make(shape, rank) returns a parameterization of that shape, whose call returns an operator.",
    _contract,
    show=_SHOW_CONTRACT,
)
check_membership: Law[Subject] = Law(
    "membership",
    "W is in the declared set for every finite parameter, to the rounding of the dtype.",
    membership,
    parameters=ADVERSARIAL,
    free=True,
    show=_SHOW_EXCESS,
    needs=("contract",),
)
check_rank: Law[Subject] = Law(
    "rank",
    "The rank of W is at most that of the declared set, for every finite parameter.",
    _rank,
    parameters=ADVERSARIAL,
    free=True,
    show=_SHOW_RANK,
    needs=("contract",),
)
check_certificate: Law[Subject] = Law(
    "certificate",
    "certify() bounds the true singular values from above and never claims too much.",
    _certificate,
    parameters=HOSTILE,
    show=_SHOW_CERTIFICATE,
    needs=("contract", "membership", "rank"),
)
LAWS = (
    check_contract,
    check_membership,
    check_rank,
    check_certificate,
)
