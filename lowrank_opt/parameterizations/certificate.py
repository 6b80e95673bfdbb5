"""What stored factors satisfy: rigorous bounds on their singular values, and safe export."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

import torch
from torch import Tensor
from torch.func import vmap

from lowrank_opt.errors import NotInSetError, TargetError
from lowrank_opt.linalg import product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.proofs import prove_membership, save_document
from lowrank_opt.sets import FeasibleSet, SpectralSet, relative_tolerance


@dataclass(frozen=True)
class Certificate:
    """The verdict on one factor triple as stored, in exact arithmetic.

    Attributes
    ----------
    feasible_set : FeasibleSet
        The declared set.
    rank : int
        Columns of the triple: an upper bound on its rank in any arithmetic.
    singular_values : tuple of float
        Upper bounds on the singular values of the exact product of the stored factors.
    excess : float
        Upper bound on the excess over the set; at most 0 if membership is proved without any
        tolerance.
    tolerance : float
        What rounding explains: of the factors to their dtype, and the margin by which the bounds
        on the singular values exceed the computed values.
    document : mapping, optional
        The proof in exact arithmetic, with factors, claim and witness; None if only margins for
        rounding were added.
    """

    feasible_set: FeasibleSet
    rank: int
    singular_values: tuple[float, ...]
    excess: float
    tolerance: float
    document: Mapping[str, object] | None = field(default=None, repr=False)

    @property
    def holds(self) -> bool:
        """Whether the excess is within the tolerance."""
        return self.excess <= self.tolerance

    @property
    def exact(self) -> bool:
        """Whether membership holds in exact arithmetic, with no tolerance."""
        return self.excess <= 0.0

    def save(self, path: str | PathLike[str]) -> None:
        """Write the proof as JSON: ``python -m lowrank_opt.check_certificate FILE`` replays it.

        The checker is one file that needs Python's standard library only, and runs alone.

        Raises
        ------
        CertificateError
            If the certificate has no proof in exact arithmetic.
        """
        save_document(self.document, path, "certify(exact=True)")


def proved_values(op: LowRankOperator) -> Tensor:
    r"""Return upper bounds on the singular values of the exact product, in float64.

    The computed values of two QR factorizations and one SVD, raised by
    :math:`8\, (m + n + r)^{1/2} r\, u \sum_i |s_i| \|l_i\| \|r_i\|`: a bound on the backward error
    of the three factorizations (Higham, *Accuracy and Stability*, ch. 19) with a wide margin. The
    sum is over the terms and not over the product: terms that cancel leave their rounding behind.
    Values after as many as there are nonzero terms are exactly 0.
    """
    return values_and_bounds(op)[1]


def values_and_bounds(op: LowRankOperator) -> tuple[Tensor, Tensor]:
    """Return the computed singular values, and the upper bounds of `proved_values`.

    Parameters
    ----------
    op : LowRankOperator
        Perhaps with leading axes, of which the results have the same.
    """
    left, scale, right = op.to(dtype=torch.float64)
    sigma = product_svd(left, scale, right)[1]
    terms = _term_sizes(left, scale, right)
    bounds = sigma + _margin(op) * terms.sum(dim=-1, keepdim=True)
    # One unit more where the sum itself was rounded, or underflowed.
    bounds = torch.nextafter(bounds, torch.full_like(bounds, math.inf))
    places = torch.arange(bounds.shape[-1], device=bounds.device)
    return sigma, bounds.where(places < terms.count_nonzero(dim=-1).unsqueeze(-1), 0.0)


def _margin(op: LowRankOperator) -> float:
    """Return the error of computed singular values, relative to the sum of the terms' sizes."""
    return 8 * math.sqrt(sum(op.shape) + op.rank) * op.rank * torch.finfo(torch.float64).eps


def _term_sizes(left: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    r"""Return upper bounds on :math:`|s_i| \|l_i\| \|r_i\|`; zero only where a term is zero.

    Entries of 1e-310 and scales of 1e300 belong together: largest times smallest first.
    """
    m, n = left.shape[-2], right.shape[-2]
    peaks = torch.stack((left.abs().amax(-2), scale.abs(), right.abs().amax(-2)))
    low, middle, high = peaks.sort(dim=0).values.unbind()
    sizes = math.sqrt(m) * math.sqrt(n) * ((low * high) * middle)
    exact = sizes.new_tensor(torch.finfo(sizes.dtype).tiny)
    return torch.where((peaks > 0).all(dim=0), torch.maximum(sizes, exact), 0.0)


def certify(op: LowRankOperator, feasible_set: FeasibleSet, *, exact: bool = False) -> Certificate:
    """Return the certificate of `op` for `feasible_set`.

    The excess is an upper bound for every set with a spectral form (weighted ones too; for nested
    sets it covers norm and rank). For others, shifted sets and images under ill-conditioned
    features, it is the computed excess and a margin for its rounding, so that nothing is `exact`.

    Parameters
    ----------
    op : LowRankOperator
    feasible_set : FeasibleSet
    exact : bool
        Prove the bounds in rational arithmetic, without any margin; see `prove_membership` for the
        sets it can be done for.

    Raises
    ------
    CertificateError
        If `exact` and there is no such proof.
    """
    if exact:
        return _proved(op, feasible_set)
    view, unit = feasible_set.as_spectral(op), feasible_set.unit(op)
    tolerance = relative_tolerance(op.dtype, feasible_set.rank) * unit
    if view is None:
        margin = relative_tolerance(torch.float64, feasible_set.rank) * unit
        values = tuple(proved_values(op).tolist())
        excess = feasible_set.excess(op) + margin
        return Certificate(feasible_set, op.rank, values, excess, tolerance + margin)
    (inside, bounds), spectral = values_and_bounds(view[0]), _of_values(view[1])
    known = view[1].excess(view[0]) if spectral is None else _value_excess(inside, spectral)
    excess = _value_excess(bounds, view[1])
    tolerance += max(0.0, excess) - max(0.0, known)
    return Certificate(feasible_set, op.rank, tuple(bounds.tolist()), excess, tolerance)


def certify_each(
    op: LowRankOperator, sets: Sequence[FeasibleSet]
) -> tuple[Tensor, list[Certificate]]:
    """Return the singular values of a stack of operators, and the certificate of each.

    One stacked factorization instead of three for each operator, where a set is of singular
    values; others are certified one by one.

    Parameters
    ----------
    op : LowRankOperator
        With one leading axis of as many operators as there are sets.
    sets : sequence of FeasibleSet

    Returns
    -------
    values : Tensor, shape (operators, min(m, n, r))
        Computed, in float64.
    certificates : list of Certificate

    Examples
    --------
    >>> from lowrank_opt import BatchedParameterization, NBLoRA
    >>> members = [NBLoRA((6, 4), 2, radius=0.5) for _ in range(3)]
    >>> op = BatchedParameterization(members).factors().detach()
    >>> values, certificates = certify_each(op, [x.feasible_set for x in members])
    >>> values.shape, [certificate.holds for certificate in certificates]
    (torch.Size([3, 2]), [True, True, True])
    """
    computed, bounds = values_and_bounds(op)
    found: list[Certificate] = []
    for rows in _runs(sets):
        spectral = _of_values(sets[rows[0]])
        if spectral is None:
            found += [certify(_row(op, i), sets[i]) for i in rows]
        else:
            found += _certificates(op, spectral, computed[rows], bounds[rows], rows)
    return computed, found


def _runs(sets: Sequence[FeasibleSet]) -> list[list[int]]:
    """Return the positions of sets, equal neighbours together."""
    runs: list[list[int]] = []
    for i, feasible_set in enumerate(sets):
        if runs and _are_equal(sets[runs[-1][0]], feasible_set):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _are_equal(one: FeasibleSet, other: FeasibleSet) -> bool:
    try:
        return one is other or bool(one == other)
    except (RuntimeError, TypeError, ValueError):
        # A field that is an array is compared number by number.
        return False


def _of_values(feasible_set: FeasibleSet) -> SpectralSet | None:
    """Return a set that asks nothing but what `SpectralSet` asks of singular values."""
    if not isinstance(feasible_set, SpectralSet):
        return None
    kind = type(feasible_set)
    plain = kind.as_spectral is SpectralSet.as_spectral and kind.excess is SpectralSet.excess
    return feasible_set if plain else None


def _row(op: LowRankOperator, i: int) -> LowRankOperator:
    return LowRankOperator(*(x[i] for x in op))


def _certificates(
    op: LowRankOperator, spectral: SpectralSet, computed: Tensor, bounds: Tensor, rows: list[int]
) -> list[Certificate]:
    """Return certificates of some operators of a stack in one set, from their values."""
    if spectral.size is not None:
        units = [spectral.size] * len(rows)
    elif type(spectral).unit is SpectralSet.unit:
        units = computed.amax(dim=-1).tolist()
    else:
        units = [spectral.unit(_row(op, i)) for i in rows]
    relative = relative_tolerance(op.dtype, spectral.rank)
    excesses, known = (
        _each(lambda x: _excess(x, spectral), values).tolist() for values in (bounds, computed)
    )
    return [
        Certificate(
            spectral, op.rank, tuple(values), excess,
            relative * unit + max(0.0, excess) - max(0.0, inside),
        )
        for values, excess, inside, unit in zip(
            bounds.tolist(), excesses, known, units, strict=True
        )
    ]  # fmt: skip


def _each(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return a function of every row, of all at once where it has no branches on numbers."""
    try:
        return vmap(function)(rows)
    except RuntimeError:
        return torch.stack([function(row) for row in rows])


def _check_scale(size: float, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    if size > 0 and not info.tiny <= size <= info.max:
        raise TargetError(
            f"export keeps the scale in {dtype}, which holds {info.tiny:.1e}..{info.max:.1e}; got "
            f"a largest singular value of {size:.1e}: export in a wider dtype"
        )


def _proved(op: LowRankOperator, feasible_set: FeasibleSet) -> Certificate:
    proof = prove_membership(op, feasible_set)
    tolerance = relative_tolerance(op.dtype, feasible_set.rank) * feasible_set.unit(op)
    return Certificate(
        feasible_set, op.rank, proof.values, proof.excess, tolerance, document=proof.document
    )


def _value_excess(values: Tensor, spectral: SpectralSet) -> float:
    """Return the excess of bounds on the values; a value after the set's rank counts in full."""
    return float(_excess(values, spectral))


def _excess(values: Tensor, spectral: SpectralSet) -> Tensor:
    excess = spectral.singular_value_excess(values[: spectral.rank])
    over = len(values) > spectral.rank
    return torch.maximum(excess, values[spectral.rank]) if over else excess


def export(op: LowRankOperator, feasible_set: FeasibleSet, dtype: torch.dtype) -> LowRankOperator:
    r"""Round the factors to `dtype` and shrink the scale until norm and rank hold exactly.

    Parameters
    ----------
    op : LowRankOperator
    feasible_set : FeasibleSet
        Star-shaped about zero, so that shrinking leads inside: spectral, weighted and nested sets.
    dtype : torch.dtype
        Of the returned factors; the scale stays in float32 or better and is never folded into
        them, since that would round once more and void the bound.

    Returns
    -------
    LowRankOperator
        Its product in exact arithmetic keeps the norm and rank bounds of `feasible_set`.

    Raises
    ------
    NotInSetError
        If no shrinking by less than an eighth leads inside (the operator was no member), or the
        set has no spectral form.
    TargetError
        If the dtype of the scale cannot hold the size of the operator.
    """
    U, sigma, V = op.to(dtype=torch.float64).thin_svd()
    # Values below what certificates can tell would break a bound as small, and are no loss.
    sigma = torch.where(sigma > 64 * op.rank * _margin(op) * sigma.amax(), sigma, 0.0)
    scale_dtype = torch.promote_types(dtype, torch.float32)
    peak = sigma.amax()
    _check_scale(float(peak), scale_dtype)
    # Divided first by the peak: roots of 1e-320 have no digits left.
    root = (sigma / torch.where(peak > 0, peak, 1.0)).sqrt()
    left, right = (U * root).to(dtype), (V * root).to(dtype)
    for shrink in (2.0**-k for k in range(50, 2, -1)):
        scale = torch.full_like(sigma, float(peak) * (1 - shrink)).to(scale_dtype)
        rounded = LowRankOperator(left, scale, right)
        view = feasible_set.as_spectral(rounded)
        if view is not None and _value_excess(proved_values(view[0]), view[1]) <= 0:
            return rounded
    excess = feasible_set.excess(op)
    raise NotInSetError(
        f"export needs a member of a set with a spectral form; got an excess of {excess:.2e} over "
        f"{feasible_set}: project the operator, or export the inner parameterization",
        excess=excess,
    )
