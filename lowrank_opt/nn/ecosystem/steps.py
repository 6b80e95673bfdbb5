"""What is done about adapters after an optimizer step, whosever loop takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.present import active_adapters
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights
from lowrank_opt.nn.basis.sharded import check_whole, in_whole
from lowrank_opt.nn.reports.report import SiteReport, adapter_report
from lowrank_opt.nn.surgery.rewind import rewind
from lowrank_opt.parameterizations import NBLoRA
from lowrank_opt.sets.norm_ball import NormBall


@dataclass(frozen=True)
class AdapterSteps:
    r"""Reports, re-centring and a schedule of radii for the active adapters of a model.

    Called after each optimizer step, it returns what a logger may write, and nothing in between.
    Where it moves parameters, it takes their moments out of the optimizers.

    Parameters
    ----------
    every : int
        Steps between figures; 0 for none.
    recenter : int
        Steps between calls of `NBLoRA.rebase`, which leaves W as it is; 0 for none.
    radius : function of a step, optional
        Returns a bound on the Schatten-p norm of each update, besides that of its own set. Those
        that exceed it are projected, as by `rewind`.
    p : float
        In [1, inf].

    Raises
    ------
    OptionError
        If a number of steps is negative.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> after_step = AdapterSteps(every=2, radius=lambda step: 1.0 / step)
    >>> after_step(model, 1), sorted(after_step(model, 2))[:3]
    ({}, ['adapters/default/certified', 'adapters/default/drift', 'adapters/default/excess'])
    """

    every: int = 50
    recenter: int = 0
    radius: Callable[[int], float] | None = None
    p: float = math.inf

    def __post_init__(self) -> None:
        if min(self.every, self.recenter) < 0:
            raise OptionError(
                f"numbers of steps must be 0 or more; got every={self.every!r}, "
                f"recenter={self.recenter!r}"
            )

    def __call__(
        self, model: nn.Module, step: int, optimizers: Iterable[Optimizer] = ()
    ) -> dict[str, float]:
        """Do what is due after a step, counted from 1, and return figures if they are due.

        Parameters
        ----------
        model : nn.Module
            Adapted, and not merged; perhaps inside a wrapper. In shards it gives figures alone.
        step : int
        optimizers : iterable of Optimizer

        Raises
        ------
        AdapterStateError
            If parameters are to be moved and the model is sharded.
        """
        if self.recenter or self.radius is not None:
            check_whole(model, "moving parameters between steps")
        moved: list[nn.Module] = []
        if self.recenter and step % self.recenter == 0:
            moved += recentered(model)
        if self.radius is not None:
            moved += shrunk(model, self.radius(step), self.p)
        forget_moments(moved, optimizers)
        return adapter_figures(model) if self.every and step % self.every == 0 else {}


@in_whole
@torch.no_grad()
def adapter_figures(model: nn.Module) -> dict[str, float]:
    r"""Return one number for each of a few questions about each active adapter, by names for logs.

    Of all its matrices: ``norm``, the root of the sum of squares; the largest ``spectral`` norm and
    ``drift``; the largest ``excess`` over the declared sets, and whether all are ``certified``, 1
    or 0; the least ``gap``, :math:`1 - \text{norm} / \text{radius}` in a set that is a norm ball.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> adapter_figures(model)["adapters/default/gap"]
    1.0
    """
    found: dict[str, float] = {}
    for name in active_adapters(model):
        sites = adapter_report(model, name)
        figures = _figures(sites)
        gaps = [gap for w in adapted_weights(model, {name}, tied=False) for gap in _gaps(w)]
        figures |= {"gap": min(gaps)} if gaps else {}
        found |= {f"adapters/{name}/{key}": value for key, value in figures.items()}
    return found


def recentered(model: nn.Module) -> list[nn.Module]:
    """Re-centre the parameters of active adapters that can be; W stays. Return what was moved."""
    parts = [part for w in _active(model) for update in w.updates for part in update.modules()]
    return [part.rebase() for part in parts if isinstance(part, NBLoRA)]


@torch.no_grad()
def shrunk(model: nn.Module, radius: float, p: float) -> list[nn.Module]:
    """Project the updates of active adapters on a ball if one exceeds it; return the moved."""
    found = _active(model)
    norms = [float(x().detach().schatten_norm(p)) for w in found for x in w.totals()]
    if max(norms, default=0.0) <= radius:
        return []
    rewind(model, radius, p=p, names=tuple(active_adapters(model)))
    return [update for w in found for update in w.updates]


def forget_moments(moved: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
    """Take what optimizers remember of the parameters of some modules out of them."""
    parameters = [p for module in moved for p in module.parameters()]
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def _active(model: nn.Module) -> list[AdaptedWeight]:
    return adapted_weights(model, set(active_adapters(model)), tied=False)


def _figures(sites: list[SiteReport]) -> dict[str, float]:
    known = [site for site in sites if site.holds is not None]
    figures = {
        "norm": math.hypot(*(site.frobenius for site in sites)),
        "spectral": max((site.spectral for site in sites), default=0.0),
        "drift": max((site.drift for site in sites), default=0.0),
    }
    if known:
        figures["excess"] = max(site.excess for site in known)
        figures["certified"] = float(all(site.holds for site in known))
    return figures


def _gaps(found: AdaptedWeight) -> list[float]:
    sets = [(x, x.feasible_set) for x in found.updates]
    return [
        1 - float(ball.gauge(x().detach().singular_values())) / ball.radius
        for x, ball in sets
        if isinstance(ball, NormBall)
    ]
