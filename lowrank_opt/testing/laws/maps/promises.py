"""What a parameterization does with W: assign a target, export to a dtype, hide what is unseen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.model.seen import seen_factors
from lowrank_opt.errors import LowRankError, NoRightInverseError, NotInSetError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.members import Member
from lowrank_opt.testing.cases.oracle import Array, dense, magnitude, underflow
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Targets this many times too large are no members: far outside, and just.
_BEYOND = (1.5, 1 + 2.0**-10)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Sizes at which every dtype has all its digits.
_ORDINARY = (2.0**-10, 2.0**10)


def _assign(subject: Subject) -> None:
    module, target = subject.module(), _image(subject)
    W, kept, own = dense(target), target.clone(), list(module.parameters())
    try:
        returned = module.assign(target)
    except NoRightInverseError as reason:
        raise NotApplicable(f"no right inverse: {reason}") from None
    expect(returned is module, "assign() does not return the module")
    same = all(torch.equal(x, y) for x, y in zip(target, kept, strict=True))
    expect(same, "assign() writes to its target")
    same = all(a is b for a, b in zip(module.parameters(), own, strict=True))
    expect(same, "assign() puts other parameters in the place of those that an optimizer has")
    _expect_image(subject, module, W, "assign(W)")
    residual = module.residual(target)
    allowed = _allowed(subject, module, W)
    expect(residual <= allowed, f"residual(W) is {residual:.2e} after assign(W)")
    away, norm = module.residual(3.0 * target), 2 * float(np.linalg.norm(W))
    expect(abs(away - norm) <= allowed, f"residual(3 W) is {away:.6g}, with 2 |W| = {norm:.6g}")
    _expect_refusals(subject, module, target)
    _expect_projection(subject, module, target)
    module.assign(torch.from_numpy(W).to(target.left))
    _expect_image(subject, module, W, "assign() of the dense W")


def _image(subject: Subject) -> LowRankOperator:
    """Return something that the map reaches: of all members, where it reaches them."""
    other = subject.fresh()
    if other.complete:
        return subject.target(other)
    FreeParameters(seed=subject.seed + 1).fill_(other)
    return other.factors().detach()


def _expect_refusals(subject: Subject, module: Parameterization, target: LowRankOperator) -> None:
    """Expect a target that cannot be to be refused, and nothing to be written then."""
    chart = subject.chart(module)
    wrong: dict[str, LowRankOperator | Tensor] = {
        "NaN": LowRankOperator(target.left * torch.nan, target.scale, target.right),
        "another shape": LowRankOperator(
            torch.cat((target.left, target.left)), target.scale, target.right
        ),
    }
    for factor in _BEYOND:
        beyond, size = factor * target, chart.size(dense(target))
        # Of what rounding may explain in this dtype nothing is asked.
        least = max(0.2 * (factor - 1), 64 * subject.eps * chart.condition)
        if chart.bounded and chart.excess(dense(beyond)) > least * size:
            wrong[f"{factor:g} times a member on the boundary"] = beyond
    for name, bad in wrong.items():
        before = {k: x.clone() for k, x in module.state_dict().items() if isinstance(x, Tensor)}
        try:
            module.assign(bad)
        except (LowRankError, ValueError):
            state = module.state_dict()
            changed = [k for k, x in before.items() if not torch.equal(x, state[k])]
            expect(not changed, f"assign() refuses {name} and writes to {', '.join(changed)}")
        else:
            expect(False, f"assign() accepts {name}")


def _expect_projection(subject: Subject, module: Parameterization, target: LowRankOperator) -> None:
    """Expect ``assign(project=True)`` to reach the nearest member, where all are reached."""
    if not module.complete:
        return
    outside = LowRankOperator(3.0 * target.left, target.scale, target.right)
    nearest = dense(module.feasible_set.project(outside))
    module.assign(outside, project=True)
    _expect_image(subject, module, nearest, "assign(W, project=True)")
    residual, truth = module.residual(outside), float(np.linalg.norm(dense(outside) - nearest))
    allowed = 4 * _allowed(subject, module, dense(outside))
    expect(
        abs(residual - truth) <= allowed,
        f"residual() is {residual:.6g} where the distance is {truth:.6g}",
    )


def _expect_image(subject: Subject, module: Parameterization, W: Array, what: str) -> None:
    op = module.factors().detach()
    error = float(np.linalg.norm(dense(op) - W))
    allowed = _allowed(subject, module, W) + underflow(op)
    expect(error <= allowed, f"after {what} the map is off by {error:.2e}")


def _allowed(subject: Subject, module: Parameterization, W: Array) -> float:
    chart = subject.chart(module)
    count = (sum(subject.case.shape) * subject.case.rank) ** 0.5
    size = chart.size(W) * chart.gain + float(np.linalg.norm(W))
    return 128 * subject.eps * count * (size + float(np.linalg.norm(magnitude(module().detach()))))


def _export(subject: Subject) -> None:
    module = _on_boundary(subject)
    W, chart = dense(module.factors()), subject.chart(module)
    size = float(np.linalg.norm(W, 2))
    if not _ORDINARY[0] <= size <= _ORDINARY[1]:
        raise NotApplicable("W is of a size that not every dtype holds to its digits")
    for dtype in _DTYPES:
        try:
            op = module.export(dtype)
        except NotInSetError as reason:
            raise NotApplicable(f"no exact export: {reason}") from None
        expect(op.left.dtype == dtype, f"export({dtype}) gives factors of {op.left.dtype}")
        found = dense(op)
        excess = chart.spectral_excess(found)
        allowed = 64 * torch.finfo(torch.float64).eps * chart.condition * (size + chart.size(W))
        expect(
            excess <= allowed,
            f"export({dtype}) leaves the set by {excess:.2e} in exact arithmetic",
        )
        error, unit = float(np.linalg.norm(found - W)), torch.finfo(dtype).eps
        # Its own rounding may have W a bit outside, and what is exported is inside.
        rounding = 8 * max(unit, subject.eps)
        expect(
            error <= rounding * max(op.rank, 1) ** 0.5 * float(np.linalg.norm(W)),
            f"export({dtype}) is off by {error:.2e} at |W| = {np.linalg.norm(W):.3g}",
        )


def _on_boundary(subject: Subject) -> Parameterization:
    """Return the module at a member on the boundary, where it can be put there."""
    module = subject.module()
    try:
        return module.assign(
            Member(seed=subject.seed).build(
                module.feasible_set, subject.case.shape, dtype=subject.dtype, device=subject.device
            )
        )
    except (LowRankError, NotImplementedError):
        return module


@torch.no_grad()
def _seen(subject: Subject) -> None:
    module, (m, n) = subject.module(), subject.case.shape
    W = dense(module.factors())
    rows, cols = (torch.from_numpy(subject.rng.random(k) < 0.6).to(subject.device) for k in (m, n))
    own = getattr(module, "seen_factors", None)
    found = dense(own(rows, cols) if own else seen_factors(module, rows, cols))
    both = np.outer(rows.cpu().numpy(), cols.cpu().numpy())
    # Features of a row that was seen speak for other rows too.
    shared = any(hasattr(part, "between") for part in module.modules())
    elsewhere = found if shared else np.zeros_like(W)
    error = float(np.abs(found - np.where(both, W, elsewhere)).max())
    size = float(np.abs(magnitude(module.factors())).max())
    expect(
        error <= 64 * subject.eps * size,
        f"seen_factors() is off by {error:.2e} from W where both were seen, and zero elsewhere",
    )
    norms = [float(np.linalg.norm(X)) for X in (found, W)]
    expect(
        shared or norms[0] <= norms[1] * (1 + 64 * subject.eps),
        f"seen_factors() has the norm {norms[0]:.6g}, W has {norms[1]:.6g}",
    )


_START = (FreeParameters("start"),)
_BOUNDARY = (
    Member(),
    Member("equal"),
    Member("deficient", 1.0, "permuted"),
)
LAWS = (
    Law(
        "assign",
        "assign(W) sets the map to W, or to the nearest member, or refuses and changes nothing.",
        _assign,
        parameters=_START,
        members=_BOUNDARY,
        max_examples=2,
        needs=("contract", "membership", "section", "completeness"),
    ),
    Law(
        "export",
        "export(dtype) gives factors of that dtype, near W, whose exact product is in the set.",
        _export,
        parameters=(FreeParameters("normal"), FreeParameters("normal", (30.0,))),
        needs=("contract", "membership", "section"),
    ),
    Law(
        "seen",
        "seen_factors() is W where row and column were seen, and zero elsewhere.",
        _seen,
        parameters=(FreeParameters("normal"),),
        max_examples=3,
        needs=("contract",),
    ),
)
