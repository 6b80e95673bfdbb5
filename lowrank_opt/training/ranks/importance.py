"""Scores of components and of whole modules, from parameters and their gradients."""

from __future__ import annotations

import math
from typing import Protocol, final

import torch
from torch import Tensor

from lowrank_opt.parameterizations.free import components
from lowrank_opt.training.algebra.pair_view import read_pair
from lowrank_opt.training.algebra.tangent import Tangent
from lowrank_opt.training.ranks.sensitivity import SensitivityAverage
from lowrank_opt.training.roles import FactorPair


class Importance(Protocol):
    """Collects evidence step by step and scores the components of each pair."""

    def update(self, pairs: list[FactorPair]) -> None:
        """Take the present values and gradients into account."""
        ...

    def scores(self, pairs: list[FactorPair]) -> list[Tensor]:
        """Return one score for each component, shapes (r,)."""
        ...

    def keep(self, pair: FactorPair, index: Tensor) -> None:
        """Forget the components of a pair that are not in `index`."""
        ...

    def state(self, pairs: list[FactorPair]) -> list[dict[str, Tensor]]:
        """Return what was collected of each pair."""
        ...

    def load(self, pairs: list[FactorPair], state: list[dict[str, Tensor]]) -> None:
        """Take over what was collected of each pair."""
        ...


@final
class Sensitivity(Importance):
    r"""AdaLoRA's importance: smoothed :math:`|w\,\partial_w L|` times its uncertainty.

    .. math::
        \bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \quad
        \bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|, \quad s = \bar I \bar U

    and :math:`S_i = s(\lambda_i) + \mathrm{mean}_j\, s(P_{ji}) + \mathrm{mean}_j\, s(Q_{ij})`,
    where a pair without core has no first term. Depends on the gauge.

    Parameters
    ----------
    betas : tuple of float

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), eqs. (8) to (11).
    """

    def __init__(self, betas: tuple[float, float] = (0.85, 0.85)) -> None:
        self.betas = betas
        self._average = SensitivityAverage(*betas)

    def update(self, pairs: list[FactorPair]) -> None:
        for pair in pairs:
            self._average.update(_with_gradients(pair))

    def scores(self, pairs: list[FactorPair]) -> list[Tensor]:
        return [
            sum(
                (self._average.importance(name).mean(0) for name in _with_gradients(pair)),
                start=pair.left.detach().new_zeros(pair.rank),
            )
            for pair in pairs
        ]

    def keep(self, pair: FactorPair, index: Tensor) -> None:
        for name in _with_gradients(pair):
            self._average.keep(name, index)

    def state(self, pairs: list[FactorPair]) -> list[dict[str, Tensor]]:
        return [self._average.state(f"{id(pair.left)} ") for pair in pairs]

    def load(self, pairs: list[FactorPair], state: list[dict[str, Tensor]]) -> None:
        for pair, held in zip(pairs, state, strict=True):
            self._average.load(f"{id(pair.left)} ", held)


def _with_gradients(pair: FactorPair) -> dict[str, tuple[Tensor, Tensor]]:
    """Return left, right and a diagonal core with their gradients, as matrices of r columns."""
    core = pair.core if pair.core is not None and pair.core.ndim == 1 else None
    parts = {"left": pair.left, "right": pair.right, "core": core}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, x in parts.items():
        if x is not None:
            grad = torch.zeros_like(x) if x.grad is None else x.grad
            dtype = torch.promote_types(x.dtype, torch.float32)
            both = (x.detach().to(dtype), grad.to(dtype))
            w, g = (pair.columns(y) if name == "right" else torch.atleast_2d(y) for y in both)
            found[f"{id(pair.left)} {name}"] = (w, g)
    return found


@final
class Magnitude(Importance):
    r"""The share :math:`|c_i|\,|b_i|\,|a_i| / |\Delta W|_F` of each component, smoothed.

    Needs no gradient. With `normalized` false, sizes are comparable between modules: dropping the
    smallest is then the best allocation for factors of an SVD.

    Parameters
    ----------
    beta : float
    normalized : bool

    References
    ----------
    Mao et al., DoRA: dynamic rank distribution (arXiv 2405.17357), eqs. (4), (5).
    """

    def __init__(self, beta: float = 0.9, *, normalized: bool = True) -> None:
        self.beta: float
        self.normalized: bool
        self.beta, self.normalized = beta, normalized
        self._mean: dict[int, Tensor] = {}

    def update(self, pairs: list[FactorPair]) -> None:
        for pair in pairs:
            now = component_norms(pair)
            if self.normalized:
                now = now / (_frobenius(pair) + 1e-8)
            old = self._mean.get(id(pair.left), now)
            self._mean[id(pair.left)] = self.beta * old + (1 - self.beta) * now

    def scores(self, pairs: list[FactorPair]) -> list[Tensor]:
        return [self._mean[id(pair.left)] for pair in pairs]

    def keep(self, pair: FactorPair, index: Tensor) -> None:
        if id(pair.left) in self._mean:
            self._mean[id(pair.left)] = self._mean[id(pair.left)][index]

    def state(self, pairs: list[FactorPair]) -> list[dict[str, Tensor]]:
        known = (self._mean.get(id(pair.left)) for pair in pairs)
        return [{} if mean is None else {"mean": mean} for mean in known]

    def load(self, pairs: list[FactorPair], state: list[dict[str, Tensor]]) -> None:
        self._mean = {
            id(pair.left): held["mean"].clone()
            for pair, held in zip(pairs, state, strict=True)
            if held
        }


def component_norms(pair: FactorPair) -> Tensor:
    r"""Return :math:`s |c_i| |b_i| |a_i|`, the size of each rank-one term, shape (r,)."""
    left, right = pair.times_core(pair.left.detach()), pair.columns(pair.right.detach())
    return components.component_norms(left, left.new_ones(pair.rank), right)


def _frobenius(pair: FactorPair) -> Tensor:
    """Return the norm of the product from two r x r Gram matrices."""
    left = pair.times_core(pair.left.detach()).double()
    right = pair.columns(pair.right.detach()).double()
    return ((left.mT @ left) * (right.mT @ right)).sum().clamp_min(0).sqrt()


def tangent_norm(pair: FactorPair) -> float:
    r"""Return :math:`|q|_F`, the projection of the full gradient on the tangent space at W.

    Times :math:`\rho` it is the largest first-order decrease of the loss that the pair can reach
    by moving W by :math:`\rho`. From the factors' gradients alone, basis-free, and not zero at a
    zero start, where the SNIP score :math:`\sum |w\, \partial_w L|` is.
    """
    return math.sqrt(Tangent.of_gradient(read_pair(pair)).square())


def snip_score(pair: FactorPair) -> float:
    r"""Return :math:`\sum |w\, \partial_w L|` over both factors; zero at every zero start."""
    factors = list(_with_gradients(pair).values())[:2]
    return sum(float((w * g).abs().double().sum()) for w, g in factors)


def grad_norm(pair: FactorPair) -> float:
    """Return the sum of the Frobenius norms of both factors' gradients: HeteroLoRA's GRAD-NORM.

    Depends on the gauge; at a zero start only the zero factor has a gradient.

    References
    ----------
    HeteroLoRA (arXiv 2406.14956), section 3.
    """
    norms = (
        torch.linalg.vector_norm(x.grad) for x in (pair.left, pair.right) if x.grad is not None
    )
    return float(sum(x.double() for x in norms))
