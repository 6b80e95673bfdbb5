"""Changing what intruder dimensions contribute, and the control that such a change needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.merging.spectra.spectral_tables import ModelSpectralReport, SpectralReport
from lowrank_opt.operator import LowRankOperator


@overload
def rescale_intruders(
    update: LowRankOperator, report: SpectralReport, *, factor: float = ..., most: int | None = ...
) -> LowRankOperator: ...


@overload
def rescale_intruders(
    update: Mapping[str, LowRankOperator],
    report: ModelSpectralReport,
    *,
    factor: float = ...,
    most: int | None = ...,
) -> dict[str, LowRankOperator]: ...


def rescale_intruders(
    update: LowRankOperator | Mapping[str, LowRankOperator],
    report: SpectralReport | ModelSpectralReport,
    *,
    factor: float = 0.7,
    most: int | None = 1,
) -> LowRankOperator | dict[str, LowRankOperator]:
    r"""Multiply the leading intruders of :math:`W_0 + \Delta W` by a factor.

    Returns :math:`\Delta W + \sum_j (\lambda - 1)\, \tau_j u_j v_j^T`: of the sum's singular
    values the intruders' change, to :math:`\lambda \tau_j`, and nothing else.

    Parameters
    ----------
    update : LowRankOperator, or mapping of names to these
        What was reported on.
    report : SpectralReport or ModelSpectralReport
    factor : float
        :math:`\lambda \ge 0`: 1 changes nothing, 0 removes them.
    most : int or None
        How many of each matrix, from the largest one on; None for all.

    Returns
    -------
    LowRankOperator, or dict of names to these
        In the dtype of the update; its rank grows by one for each intruder.

    Raises
    ------
    OptionError
        If `factor` or `most` is negative or not finite.
    TargetError
        If the update and the report are not of the same matrices.

    References
    ----------
    Shuttleworth et al. (arXiv 2410.21228), section 5, who rescale the top one of each matrix.
    A smaller update forgets less whatever it loses: compare with `shrunk_to_norm_of`.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt.merging import spectral_report
    >>> W0 = torch.cat((torch.diag(torch.linspace(2, 1, 64)), torch.zeros(1, 64)))
    >>> new = LowRankOperator(torch.eye(65)[:, 64:], torch.tensor([5.0]), torch.eye(64)[:, :1])
    >>> rescaled = rescale_intruders(new, spectral_report(W0, new), factor=0.5)
    >>> [torch.linalg.svdvals(W0 + op.to_dense())[:2] for op in (new, rescaled)]
    [tensor([5.3852, 1.9841]), tensor([2.6926, 1.9841])]
    """
    if not (factor >= 0 and math.isfinite(factor)) or (most is not None and most < 0):
        raise OptionError(
            f"factor must be finite, and factor and most nonnegative; got {factor!r} and {most!r}"
        )
    if isinstance(update, LowRankOperator) and isinstance(report, SpectralReport):
        return _rescaled(update, report, factor, most)
    if (
        isinstance(update, Mapping)
        and isinstance(report, ModelSpectralReport)
        and set(update) == set(report)
    ):
        return {name: _rescaled(op, report[name], factor, most) for name, op in update.items()}
    raise TargetError("the update and the report must be of the same matrices; got other ones")


def shrunk_to_norm_of(update: LowRankOperator, other: LowRankOperator) -> LowRankOperator:
    r"""Return :math:`c\, \Delta W` with the Frobenius norm of another update: the control.

    Parameters
    ----------
    update, other : LowRankOperator

    Returns
    -------
    LowRankOperator
        The update itself if it is zero.

    Examples
    --------
    >>> import torch
    >>> one = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(2, 1))
    >>> shrunk_to_norm_of(one, 0.25 * one).to_dense()[0, 0]
    tensor(0.2500)
    """
    norm, target = (float(op.to(dtype=torch.float64).schatten_norm(2)) for op in (update, other))
    return (target / norm) * update if norm > 0 else update


def intruder_part(report: SpectralReport, most: int | None = None) -> LowRankOperator:
    r"""Return :math:`\sum_j \tau_j u_j v_j^T` over the intruders, float64; perhaps of no columns.

    Parameters
    ----------
    report : SpectralReport
    most : int, optional
        How many, from the largest one on.
    """
    index: Tensor = report.intruders.nonzero().flatten()[:most]
    left, scale, right = report.triples
    return LowRankOperator(left[:, index], scale[index], right[:, index])


def _rescaled(
    update: LowRankOperator, report: SpectralReport, factor: float, most: int | None
) -> LowRankOperator:
    if update.shape != report.shape:
        raise TargetError(
            f"the update and the report must be of the same matrix; got {update.shape} and "
            f"{report.shape}"
        )
    change = (factor - 1) * intruder_part(report, most)
    return update + change.to(dtype=update.dtype, device=update.device)
