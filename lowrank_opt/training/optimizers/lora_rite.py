"""LoRA-RITE: Adam-like moments in coordinates that a change of gauge only rotates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

from torch import Tensor, nn

from lowrank_opt.training.algebra.pair_view import PairView, read_pair
from lowrank_opt.training.algebra.small import Small, namespace, small, tensor
from lowrank_opt.training.algebra.tall import TallPair, Terms, evaluate
from lowrank_opt.training.optimizers.adam import State, corrected_decay
from lowrank_opt.training.optimizers.factor_optimizer import Decay, FactorOptimizer, Group
from lowrank_opt.training.roles import FactorPair


@final
class LoRARite(FactorOptimizer):
    r"""Robust invariant transformation equilibration, on pairs :math:`W = L R^T`.

    The path of W is the same for (L, R) and (L T, R T^-T), T any invertible matrix, and stays the
    same if factors are re-factorised between steps with the state untouched (in float64, to 1e-12
    over 50 steps for condition numbers up to 100). `lr` is a size in W: each factor's part of a
    step has Frobenius norm ``lr |M|``, without LoRA's scale.

    State per pair: first moments and old frames, 2 r (m + n), and two r x r matrices.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    lr : float
    betas : tuple of float
        Decay of the first and second moment, bias-corrected.
    eps : float
        Added to the root of the second moment.
    escaped_mass : bool
        Keep what of the second moment leaves the subspace (step 5 below) as a multiple of I.
    clip : float, optional
        Largest norm of the unmagnified gradients of all pairs together; 1 in the authors' code. It
        does not depend on the gauge. Off by default.
    skip : float, optional
        An unmagnified gradient whose entries have a larger root mean square counts as zero; 1 in
        the authors' code, which is applied before `clip`. Off by default: losses that are sums
        would freeze without a word.
    weight_decay, decay, trust, others, others_lr
        See `FactorOptimizer`.

    Notes
    -----
    With :math:`\bar R = U K`, for the left factor (the right one likewise, from the old iterates):
    unmagnified gradient :math:`h = \nabla_L K^{-1}`; transport :math:`P = U^T U_{old}`;
    :math:`V = \beta_2 P V P^T + (1 - \beta_2) h^T h / m`; escaped mass
    :math:`\rho = \beta_2 (\rho + d(V, P V P^T))`; :math:`S = h (V + \rho)^{-1/2}`;
    :math:`M = \beta_1 M P^T + (1 - \beta_1) S`; :math:`L \mathrel{-}= \eta M K^{-T}`.

    References
    ----------
    Yen et al., LoRA Done RITE (arXiv 2410.20625), Algorithm 1.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((4, 3), 2)
    >>> (model().to_dense() - 1).square().sum().backward()
    >>> LoRARite(model, lr=0.1).step()
    """

    # What `clip` makes of all gradients of the present step.
    _shrink: float = 1.0

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        escaped_mass: bool = False,
        clip: float | None = None,
        skip: float | None = None,
        weight_decay: float = 0.0,
        decay: Decay = "product",
        trust: float = 0.03,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
    ) -> None:
        if not all(x is None or x > 0 for x in (clip, skip)):
            raise ValueError(f"clip and skip must be positive; got clip={clip!r}, skip={skip!r}")
        super().__init__(
            pairs,
            lr=lr,
            weight_decay=weight_decay,
            decay=decay,
            trust=trust,
            others=others,
            others_lr=others_lr,
            betas=betas,
            eps=eps,
            escaped_mass=escaped_mass,
            clip=clip,
            skip=skip,
        )

    def before_pairs(self, pairs: list[FactorPair], group: Group) -> None:
        """Find the factor that brings the norm of all unmagnified gradients to `clip`."""
        self._shrink = 1.0
        if group.get("clip") is None:
            return
        views = (read_pair(pair) for pair in pairs)
        kept = (_skipped(view.partners.unmagnified(view.gradients), view, group) for view in views)
        norm = math.sqrt(sum(float(x.trace()) for h in kept for x in h.inner(h)))
        self._shrink = min(1.0, group["clip"] / norm) if norm > 0 else 1.0

    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        t: int = state.get("step", 0) + 1
        b1, b2 = (corrected_decay(b, t) for b in group["betas"])
        partners = view.partners
        h = _skipped(partners.unmagnified(view.gradients), view, group)
        if self._shrink != 1.0:
            h = h.weighted((self._shrink, self._shrink))
        V = h.inner(h) / view.rows
        rho: Small = 0.0
        terms: list[TallPair] = []
        if t > 1:
            Pt = TallPair.get(state, "frame", V).inner(partners.frames)
            V, rho = _second_moment(V, Pt, state, b2, group["escaped_mass"])
            terms = [TallPair.get(state, "mean", V).times(b1 * Pt @ partners.inverses.mT)]
        w, Q = namespace(V).linalg.eigh(V)
        weights = (1 - b1) / ((w.clip(0) + rho) ** 0.5 + group["eps"])
        # M K^{-T} is what moves the factors, and what is kept, so that it costs no second product.
        terms.append(h.times(Q * weights[:, None]).times((partners.inverses @ Q).mT))
        D = evaluate(terms)
        state |= {"step": t, "second": tensor(V)}
        TallPair(D, partners.roots.mT).put(state, "mean")
        partners.frames.copied().put(state, "frame")
        return [TallPair(D)]


def _skipped(h: TallPair, view: PairView, group: Group) -> TallPair:
    """Return the unmagnified gradients, those that are too large replaced by zero."""
    limit = group.get("skip")
    if limit is None:
        return h
    entries = [x.numel() for x in view.gradients]
    squares = [float(x.trace()) for x in h.inner(h)]
    large = [s > limit**2 * n for s, n in zip(squares, entries, strict=True)]
    return h.weighted((float(not large[0]), float(not large[1]))) if any(large) else h


def _second_moment(
    square: Small, Pt: Small, state: State, b2: float, escaped_mass: bool
) -> tuple[Small, Small]:
    old = small(state["second"], Pt)
    moved = Pt.mT @ old @ Pt
    rho: Small = 0.0
    if escaped_mass:
        before = small(state["escaped"], Pt) if "escaped" in state else 0.0
        rho = b2 * (before + _escaped(old, moved)[:, None])
        state["escaped"] = tensor(rho)
    return b2 * moved + (1 - b2) * square, rho


def _escaped(before: Small, after: Small) -> Small:
    """Return the largest gap of the sorted eigenvalues, at most the loss of trace, at least 0."""
    xp = namespace(before)
    before, after = xp.linalg.eigvalsh(before), xp.linalg.eigvalsh(after)
    # A change of rank leaves the largest ones to compare.
    r = min(before.shape[-1], after.shape[-1])
    gaps = before[..., -r:] - after[..., -r:]
    trace = before.sum(-1) - after.sum(-1)
    return xp.minimum(xp.amax(gaps, -1), trace).clip(0)
