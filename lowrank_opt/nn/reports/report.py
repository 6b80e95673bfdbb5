"""What the adapters of a model are and how far they have moved: tables, reports, a callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import lp_norm
from lowrank_opt.nn.adapters.present import (
    check_known,
    record_of,
)
from lowrank_opt.nn.adapters.weights import (
    adapted_weights,
)
from lowrank_opt.nn.basis.sharded import in_whole
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.batched import stacks
from lowrank_opt.parameterizations.certificate import Certificate, certify_each
from lowrank_opt.sets import FeasibleSet


@dataclass(frozen=True)
class SiteReport:
    r"""One matrix of one adapter.

    Attributes
    ----------
    name, adapter, kind : str
        The parameter, the adapter, and the class of the parameterization.
    shape : tuple of int
    rank : int
    bound : str
        The declared norm bound, or "none"; "none: magnitudes" where the adapter rescales rows.
    spectral, frobenius, nuclear : float
        Norms of the update, before rows are rescaled.
    stable_rank : float
        :math:`\|\Delta W\|_F^2 / \|\Delta W\|_2^2`, between 1 and the rank; 0 for no update.
    drift : float
        :math:`\|\Delta W\|_F / \|W_0\|_F`; NaN for a base on the meta device.
    holds : bool, optional
        Whether the certificate of the update holds; None if nothing was certified, for the base
        weight would be needed, or no set is declared.
    excess : float
        By how much the update exceeds its set, bounded from above.
    trainable : int
        Trainable numbers.
    """

    name: str
    adapter: str
    kind: str
    shape: tuple[int, int]
    rank: int
    bound: str
    spectral: float
    frobenius: float
    nuclear: float
    stable_rank: float
    drift: float
    holds: bool | None
    excess: float
    trainable: int


@in_whole
@torch.no_grad()
def adapter_report(model: nn.Module, *names: str) -> list[SiteReport]:
    """Return norms, bounds, certificates and drift of every adapted matrix.

    Parameters
    ----------
    model : nn.Module
        Adapted.
    *names : str
        Of adapters; all by default.

    Raises
    ------
    AdapterStateError
        If the model has no adapter, or none of that name.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> [(site.name, site.bound, site.drift) for site in adapter_report(model)]
    [('weight', 'spectral <= 0.5', 0.0)]
    """
    record_of(model)
    check_known(model, names)
    norms: dict[int, list[float]] = {}
    sites: list[Site] = []
    for found in adapted_weights(model, names or None):
        weight = found.slot.parameter
        if id(weight) not in norms:
            norms[id(weight)] = [_norm(matrix) for matrix in found.base_matrices()]
        sites += [
            Site(name, found.adapter, member, norm, rescaled=found.magnitude is not None)
            for name, member, norm in zip(
                found.matrix_names, found.totals_before_rescaling(), norms[id(weight)], strict=True
            )
        ]
    return report_sites(sites)


@in_whole
def summary(model: nn.Module) -> str:
    """Return a table of adapted matrices, ranks, bounds, norms and the trainable share.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> print(summary(model).splitlines()[-1])
    trainable: 5 of 15 parameters (33.3 %)
    """
    lines = table(adapter_report(model))
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    share = f"{100 * trained / max(total, 1):.1f} %"
    return f"{lines}\ntrainable: {trained} of {total} parameters ({share})"


def table(sites: Sequence[SiteReport]) -> str:
    """Return reports as an aligned table, a line for each matrix."""
    head = ("weight", "adapter", "class", "shape", "rank", "bound", "spectral", "stable rank",
            "drift", "holds")  # fmt: skip
    rows = [head, *(_row(site) for site in sites)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def monitor(
    model: nn.Module, log: Callable[[int, list[SiteReport]], None], *, every: int = 1
) -> Callable[[], None]:
    """Return a function to call after each optimizer step; it logs a report every so often.

    Parameters
    ----------
    model : nn.Module
    log : function of (step, reports)
    every : int
        Steps between reports.

    Raises
    ------
    OptionError
        If `every` is less than 1.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> after_step = monitor(model, lambda step, sites: print(step, len(sites)), every=2)
    >>> after_step(), after_step()
    2 1
    (None, None)
    """
    if every < 1:
        raise OptionError(f"every must be at least 1 step; got every={every!r}")
    step = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        if step % every == 0:
            log(step, adapter_report(model))

    return after_step


def _norm(matrix: Tensor) -> float:
    if matrix.is_meta:
        return math.nan
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


class Site(NamedTuple):
    """One matrix of one adapter, and the Frobenius norm of its base weight."""

    name: str
    adapter: str
    member: Parameterization
    base_norm: float
    rescaled: bool = False


@torch.no_grad()
def report_sites(sites: Sequence[Site]) -> list[SiteReport]:
    """Return the reports of some matrices; updates that are alike are evaluated together."""
    found: dict[int, SiteReport] = {}
    for i in (k for k, site in enumerate(sites) if _certifies_itself(site.member)):
        op, certificate = sites[i].member.factors().detach(), sites[i].member.certify()
        norms, declared = _norms(op.singular_values().unsqueeze(0))[0], sites[i].member.feasible_set
        found[i] = _report(sites[i], norms, declared, certificate)
    rest = [i for i in range(len(sites)) if i not in found]
    for positions, op in stacks([sites[i].member for i in rest]):
        chosen = [rest[k] for k in positions]
        sets = [sites[i].member.feasible_set for i in chosen]
        values, certificates = certify_each(op.detach(), sets)
        norms = _norms(values.to(op.dtype))
        for i, own, declared, certificate in zip(chosen, norms, sets, certificates, strict=True):
            found[i] = _report(sites[i], own, declared, certificate)
    return [found[i] for i in range(len(sites))]


def _certifies_itself(member: Parameterization) -> bool:
    return type(member).certify is not Parameterization.certify


def _norms(values: Tensor) -> list[list[float]]:
    """Return spectral, Frobenius and nuclear norms for each row of singular values."""
    return torch.stack([lp_norm(values, p) for p in (math.inf, 2, 1)], dim=-1).tolist()


def _report(
    site: Site, norms: Sequence[float], declared: FeasibleSet, certificate: Certificate
) -> SiteReport:
    (spectral, frobenius, nuclear), member, base = norms, site.member, site.base_norm
    return SiteReport(
        name=site.name,
        adapter=site.adapter,
        kind=type(member).__name__,
        shape=member.shape,
        rank=declared.rank,
        bound="none: magnitudes" if site.rescaled else declared.bound,
        spectral=spectral,
        frobenius=frobenius,
        nuclear=nuclear,
        stable_rank=(frobenius / spectral) ** 2 if spectral else 0.0,
        drift=frobenius / base if base else math.inf if frobenius else 0.0,
        holds=certificate.holds,
        excess=certificate.excess,
        trainable=sum(p.numel() for p in member.parameters() if p.requires_grad),
    )


def _row(site: SiteReport) -> tuple[str, ...]:
    return (
        site.name,
        site.adapter,
        site.kind,
        f"{site.shape[0]} x {site.shape[1]}",
        str(site.rank),
        site.bound,
        f"{site.spectral:.3g}",
        f"{site.stable_rank:.2f}",
        "-" if math.isnan(site.drift) else f"{site.drift:.2%}",
        {True: "yes", False: "NO", None: "-"}[site.holds],
    )
