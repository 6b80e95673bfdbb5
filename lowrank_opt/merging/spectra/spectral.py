r"""Intruder dimensions: singular vectors of a tuned weight that resemble none of its base.

What a norm bound implies. Let :math:`\sigma_i, x_i, y_i` be the singular values and vectors of
:math:`W_0`, and :math:`(\tau, u, v)` a singular triple of :math:`W_0 + \Delta W` with
:math:`\|\Delta W\|_2 \le \delta`. From :math:`W_0 v = \tau u - \Delta W v` and
:math:`W_0^T u = \tau v - \Delta W^T u` the coefficients :math:`a_i = x_i^T u`,
:math:`b_i = y_i^T v` satisfy

.. math::

    \begin{pmatrix} -\tau & \sigma_i \\ \sigma_i & -\tau \end{pmatrix}
    \begin{pmatrix} a_i \\ b_i \end{pmatrix} =
    -\begin{pmatrix} x_i^T \Delta W v \\ y_i^T \Delta W^T u \end{pmatrix},
    \qquad\text{so}\qquad
    a_i^2 + b_i^2 \le \frac{(x_i^T \Delta W v)^2 + (y_i^T \Delta W^T u)^2}{(\tau - \sigma_i)^2},

and a part outside all :math:`x_i` has norm at most :math:`\delta / \tau`. Summed over all i whose
:math:`\sigma_i` is at least d away from :math:`\tau`: the energy of u there is at most
:math:`2 \delta^2 / d^2` (Wedin 1972). By Weyl's inequality the j-th tuned value is within
:math:`\delta` of :math:`\sigma_j`; hence for a gap g between :math:`\sigma_j` and all others

.. math:: |\langle x_j, u_j\rangle|^2 \ge 1 - 2\delta^2 / (g - \delta)^2, \qquad \delta < g.

`intruder_free_radius` solves this for :math:`\delta`. Without a gap nothing follows: a tiny update
may turn vectors of equal singular values into any others of their span.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError, RankError, TargetError
from lowrank_opt.linalg import lp_norm
from lowrank_opt.merging.spectra.chance import chance_below, chance_quantile
from lowrank_opt.merging.spectra.model_updates import base_matrices, model_updates
from lowrank_opt.merging.spectra.singular_basis import SingularBasis, SingularSide
from lowrank_opt.merging.spectra.spectral_tables import ModelSpectralReport, SpectralReport
from lowrank_opt.operator import LowRankOperator

Base: TypeAlias = Tensor | SingularBasis
Update: TypeAlias = LowRankOperator | Tensor

_SIDES = ("left", "right", "both")
# Below this size a random direction often resembles some vector of the basis.
_RELIABLE = 64
# A vector with a larger cosine has one base vector that it clearly belongs to.
_MATCHED = 0.9


class SpectralWarning(UserWarning):
    """A count of intruder dimensions that a matrix is too small or too degenerate for."""


@overload
def spectral_report(
    base: Base,
    update: Update,
    *,
    k: int = ...,
    threshold: float | None = ...,
    side: Literal["left", "right", "both"] = ...,
    closeness: float = ...,
) -> SpectralReport: ...


@overload
def spectral_report(
    base: nn.Module | Mapping[str, Base],
    update: nn.Module | Mapping[str, Update] | None = ...,
    *,
    k: int = ...,
    threshold: float | None = ...,
    side: Literal["left", "right", "both"] = ...,
    closeness: float = ...,
) -> ModelSpectralReport: ...


def spectral_report(
    base: Base | nn.Module | Mapping[str, Base],
    update: Update | nn.Module | Mapping[str, Update] | None = None,
    *,
    k: int = 10,
    threshold: float | None = 0.5,
    side: Literal["left", "right", "both"] = "left",
    closeness: float = 0.1,
) -> SpectralReport | ModelSpectralReport:
    r"""Count the intruder dimensions among the leading singular vectors of :math:`W_0 + \Delta W`.

    A singular vector :math:`u_j` of the sum is an intruder if
    :math:`\max_i |\langle x_i, u_j\rangle|` over all singular vectors :math:`x_i` of
    :math:`W_0` is below the threshold. Beside it stands a measure that does not depend on the
    choice of a basis among nearly equal singular values: the norm of :math:`u_j` within the span
    of all :math:`x_i` whose singular values are near that of the best match.

    Parameters
    ----------
    base : Tensor, shape (m, n), or SingularBasis, or mapping of names to these, or nn.Module
        :math:`W_0`. A `SingularBasis` is computed once and serves any number of updates
        (`singular_bases` for a model). A model adapted by `lowrank_opt.nn.adapt`, merged or not,
        has its updates with it.
    update : LowRankOperator, or Tensor, shape (m, n), or mapping of names to these, or nn.Module
        :math:`\Delta W`; a model stands for its active adapters.
    k : int
        How many of the leading singular vectors are looked at; fewer if the sum has a lower rank.
    threshold : float or None
        In (0, 1]. None takes what 95 of 100 random directions stay below in this dimension.
    side : {"left", "right", "both"}
        Which singular vectors; ``both``: a triple is an intruder if both its vectors are.
    closeness : float
        Relative distance within which singular values count as nearly equal.

    Returns
    -------
    SpectralReport, or ModelSpectralReport for mappings and models

    Raises
    ------
    ShapeError, TargetError
        If matrices do not fit or are not finite, or names differ.
    RankError, OptionError
        If an option is outside its domain.

    Warns
    -----
    SpectralWarning
        If a matrix has fewer than 64 rows or columns, where random directions resemble some base
        vector by chance, or nearly equal singular values leave its vectors undetermined.

    Notes
    -----
    Computed in float64. Base vectors of singular values that are zero to rounding are arbitrary
    and left out: what enters the null space of the base is new.

    References
    ----------
    Shuttleworth et al., LoRA vs full fine-tuning: an illusion of equivalence
    (arXiv 2410.21228), definition 3.1.

    Examples
    --------
    >>> W0 = torch.cat((torch.diag(torch.linspace(2, 1, 64)), torch.zeros(1, 64)))
    >>> new = LowRankOperator(torch.eye(65)[:, 64:], torch.tensor([5.0]), torch.eye(64)[:, :1])
    >>> report = spectral_report(W0, 0.1 * new)
    >>> report.count, spectral_report(W0, new).positions
    (0, (1,))
    """
    _check_options(k, threshold, side, closeness)
    if isinstance(base, Tensor | SingularBasis):
        if not isinstance(update, LowRankOperator | Tensor):
            raise TargetError(
                f"the update of one matrix must be a LowRankOperator or a Tensor; got "
                f"{type(update).__name__}"
            )
        report = _matrix_report("", base, update, k, threshold, side, closeness)
        _warn([report])
        return report
    bases, updates = _paired(base, update)
    reports = {
        name: _matrix_report(name, bases[name], updates[name], k, threshold, side, closeness)
        for name in updates
    }
    _warn(list(reports.values()))
    return ModelSpectralReport(reports)


def singular_bases(model: nn.Module) -> dict[str, SingularBasis]:
    """Return the bases of all weights that a model's adapters update, by their names.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> singular_bases(model)["weight"].shape
    (2, 4)
    """
    return {name: SingularBasis.of(weight) for name, weight in base_matrices(model).items()}


def intruder_free_radius(base: Base, *, k: int = 10, threshold: float = 0.5) -> float:
    r"""Return a radius such that no update of smaller spectral norm makes an intruder dimension.

    With g the least gap between one of the k largest singular values and all others, and
    :math:`c^2 = (1 - t^2) / 2`: :math:`\delta = g\, c / (1 + c)`; 0.38 g at the threshold 0.5.
    Sufficient and not necessary; zero if two of the values coincide, or the base has a rank below
    k. For either side. It is also a bound for nuclear and Frobenius norms, which are larger.

    Parameters
    ----------
    base : Tensor, shape (m, n), or SingularBasis
    k : int
    threshold : float
        In (0, 1].

    Returns
    -------
    float

    Examples
    --------
    >>> round(intruder_free_radius(torch.diag(torch.tensor([4.0, 3.0, 1.0])), k=2), 4)
    0.3798
    """
    _check_options(k, threshold, "left", 0.1)
    basis = base if isinstance(base, SingularBasis) else SingularBasis.of(base)
    sigma = basis.values
    complete = len(sigma) == max(basis.shape)
    if k > len(sigma) and not complete:
        # Positions after the rank of the base are taken by what is new, however small it is.
        return 0.0
    # What is outside the basis, or made of vectors left out, has the singular value zero.
    ends = [math.inf, *sigma.tolist(), -math.inf if complete else 0.0]
    gaps = [a - b for a, b in pairwise(ends)][: k + 1]
    c = math.sqrt((1 - threshold**2) / 2)
    return min(gaps) * c / (1 + c)


def _check_options(k: int, threshold: float | None, side: str, closeness: float) -> None:
    if k < 1:
        raise RankError(f"k must be at least 1; got k={k}")
    if threshold is not None and not 0 < threshold <= 1:
        raise OptionError(f"threshold must be in (0, 1]; got {threshold!r}")
    if side not in _SIDES:
        raise OptionError(f"side must be one of {_SIDES}; got {side!r}")
    if not 0 <= closeness < 1:
        raise OptionError(f"closeness must be in [0, 1); got {closeness!r}")


def _paired(
    base: nn.Module | Mapping[str, Base], update: Update | nn.Module | Mapping[str, Update] | None
) -> tuple[Mapping[str, Base], Mapping[str, Update]]:
    bases = base_matrices(base) if isinstance(base, nn.Module) else base
    source = base if update is None else update
    if isinstance(source, nn.Module):
        updates: Mapping[str, Update] = model_updates(source)
    elif isinstance(source, Mapping) and update is not None:
        updates = update  # pyright: ignore[reportAssignmentType]
    else:
        raise TargetError(
            "the updates of several matrices must be a mapping of their names, or an adapted "
            f"model; got {type(update).__name__}"
        )
    missing = sorted(set(updates) - set(bases))
    if missing or not updates:
        raise TargetError(
            f"every update must have a base weight of its name; got none for {missing}, among "
            f"{len(updates)} updates"
        )
    return bases, updates


def _matrix_report(
    name: str,
    base: Base,
    update: Update,
    k: int,
    threshold: float | None,
    side: Literal["left", "right", "both"],
    closeness: float,
) -> SpectralReport:
    basis = base if isinstance(base, SingularBasis) else SingularBasis.of(base)
    tuned = basis.updated_svd(update, k + 1)
    sides: tuple[SingularSide, ...] = ("left", "right") if side == "both" else (side,)
    if threshold is None:
        q = len(basis.values)
        threshold = min(chance_quantile(0.95, _size(basis, s), q) for s in sides)
    spectral, frobenius = _norms(update)
    leading = LowRankOperator(tuned.left[:, :k], tuned.scale[:k], tuned.right[:, :k])
    pairs = [_cosines(basis, leading, s, closeness) for s in sides]
    return SpectralReport(
        name=name,
        shape=basis.shape,
        side=side,
        threshold=threshold,
        triples=leading,
        cosines=torch.stack([c for c, _ in pairs]).amax(dim=0),
        span_cosines=torch.stack([s for _, s in pairs]).amax(dim=0),
        gaps=_relative_gaps(tuned.scale)[:k],
        power=min(chance_below(threshold, _size(basis, s), len(basis.values)) for s in sides),
        relative_size=spectral / float(basis.values.max()) if len(basis.values) else math.inf,
        stable_rank=(frobenius / spectral) ** 2 if spectral else 0.0,
        closeness=closeness,
    )


def _size(basis: SingularBasis, side: SingularSide) -> int:
    return basis.shape[0] if side == "left" else basis.shape[1]


def _cosines(
    basis: SingularBasis, tuned: LowRankOperator, side: SingularSide, closeness: float
) -> tuple[Tensor, Tensor]:
    """Return for each vector its largest cosine, and the norm of its part near that match."""
    y = tuned.left if side == "left" else tuned.right
    sigma = basis.values
    if not len(sigma):
        return torch.zeros_like(tuned.scale), torch.zeros_like(tuned.scale)
    # Rounding may exceed one.
    cosines = (basis.vectors(side).mT @ y).abs().clamp_max(1.0)
    best, match = cosines.max(dim=0)
    near = (sigma.unsqueeze(1) - sigma[match]).abs() <= closeness * sigma[match]
    return best, (cosines.square() * near).sum(dim=0).sqrt().clamp_max(1.0)


def _relative_gaps(sigma: Tensor) -> Tensor:
    """Return the distance of each value to the nearest other one, relative to it."""
    infinite = sigma.new_full((1,), math.inf)
    steps = torch.cat((infinite, sigma[:-1] - sigma[1:], infinite))
    return torch.minimum(steps[:-1], steps[1:]) / sigma


def _norms(update: Update) -> tuple[float, float]:
    """Return the spectral and the Frobenius norm."""
    update = update.detach()
    if isinstance(update, Tensor):
        sigma = torch.linalg.svdvals(update.double())
    else:
        sigma = update.to(dtype=torch.float64).singular_values()
    spectral, frobenius = (float(lp_norm(sigma, p)) if len(sigma) else 0.0 for p in (math.inf, 2))
    return spectral, frobenius


def _warn(reports: list[SpectralReport]) -> None:
    small = [r for r in reports if min(r.shape) < _RELIABLE]
    unclear = [r for r in reports if len(r.undetermined(_MATCHED))]
    if small:
        worst = min(small, key=lambda r: r.power)
        warnings.warn(
            f"intruder dimensions need matrices of at least {_RELIABLE} rows and columns; got "
            f"{len(small)} smaller of {len(reports)}: of random directions "
            f"{worst.power:.0%} would count in {_label(worst)}; threshold=None adapts to the size",
            SpectralWarning,
            stacklevel=3,
        )
    if unclear:
        count = sum(len(r.undetermined(_MATCHED)) for r in unclear)
        warnings.warn(
            f"singular vectors need separate singular values; {count} vectors of {len(unclear)} "
            f"matrices, {_label(unclear[0])} among them, are within "
            f"{unclear[0].closeness:.0%} of their neighbours and match no single base vector: "
            "compare with span_count",
            SpectralWarning,
            stacklevel=3,
        )


def _label(report: SpectralReport) -> str:
    m, n = report.shape
    return f"{report.name} ({m} x {n})" if report.name else f"a matrix of {m} x {n}"
