"""The common part of optimizers over pairs: groups, damping, state that survives saving."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowrank_opt.errors import ConvergenceError, ShapeError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.training.algebra.pair_view import PairView, read_pair
from lowrank_opt.training.algebra.small import (
    LinAlgErrors,
    Small,
    frobenius,
    small,
    spectral_bound,
)
from lowrank_opt.training.algebra.tall import Both, TallPair, Terms, add_to, evaluate
from lowrank_opt.training.optimizers.adam import State, adam_direction, restore_precision
from lowrank_opt.training.optimizers.gathered import gathered, put_back
from lowrank_opt.training.roles import FactorPair, factor_pairs, other_parameters

Group = dict[str, Any]
Decay = Literal["product", "factors"]


class FactorOptimizer(Optimizer, ABC):
    r"""An optimizer whose unit is a pair of factors; other parameters take AdamW steps.

    A subclass writes `directions`. The step is damped where the bilinear model breaks down: if
    :math:`\|\dot L C \dot R^T\|_F` exceeds `trust` times the larger of the two first-order changes
    of W, the pair's step is shortened until it does not. From a zero start the first steps would
    otherwise turn the other factor by an angle that does not depend on `lr`. All three norms
    belong to W, so damping keeps invariance under changes of gauge.

    Factors in shards (`fully_shard`) are gathered for a step, which every process computes in the
    whole; each keeps its shards of the result, and the state of all pairs. The step is that of one
    process.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
        Of a module: ``factor_pairs(module, bilinear=True)``, and all remaining trainable
        parameters as others. Pairs of the other families, HomogeneousBall or DeLoRA for example,
        can be passed as ``factor_pairs(module)``: no step leaves their set, but the directions
        ignore what comes on top of the product and need not lower the loss.
    lr : float
        Of the pairs.
    weight_decay : float
        Decoupled; 0 switches it off.
    decay : {"product", "factors"}
        What shrinks by ``1 - lr * weight_decay`` a step: W, half of it in each factor, or each
        factor, so that W shrinks twice as fast. The published forms of LoRA-Pro, LoRA-RITE and
        of AdamW on factors are the second; LoRA-Muon's split decay is the first, where a factor
        that shrinks by k moves by 1 / k of its step: the first-order change of W is that without
        decay.
    trust : float
        Largest relative second-order change in one step; ``inf`` switches damping off. 0.03 suits
        adapters, which start at zero; factorisation and completion from factors of full size get
        further with 0.5.
    others : iterable of Tensor
        Parameters outside of the pairs; a trainable `core` of a pair joins by itself.
    others_lr : float
        Their AdamW learning rate (betas 0.9 and 0.999, no weight decay; change them in the
        parameter group with ``role="others"``).
    options : object
        Further entries of the parameter group of the pairs.
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        decay: Decay = "product",
        trust: float = 0.5,
        others: Iterable[Tensor] = (),
        others_lr: float = 1e-3,
        **options: object,
    ) -> None:
        given = list(others)
        if isinstance(pairs, nn.Module):
            declared = factor_pairs(pairs, bilinear=True)
            given = other_parameters(pairs, declared) + given
            _check_families(pairs, declared)
        else:
            declared = list(pairs)
        _check(declared, given, lr=lr, weight_decay=weight_decay, trust=trust)
        if decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {get_args(Decay)}; got decay={decay!r}")
        self.pairs = declared
        given += [p.core for p in declared if p.core is not None and p.core.requires_grad]
        unique = list({id(p): p for p in given}.values())
        flat = [x for pair in declared for x in (pair.left, pair.right)]
        shared = {"lr": lr, "weight_decay": weight_decay, "decay": decay, "trust": trust} | options
        groups: list[Group] = [{"params": flat, "role": "pairs", **shared}] if flat else []
        if unique:
            groups.append({"params": unique, "role": "others", "lr": others_lr})
        defaults = {"role": "others", "lr": others_lr, "weight_decay": 0.0}
        super().__init__(groups, defaults | {"betas": (0.9, 0.999), "eps": 1e-8})

    @abstractmethod
    def directions(self, view: PairView, state: State, group: Group) -> Terms:
        """Return what left and right lose, before damping, at ``lr = 1``; updates `state`.

        As sums of products, so that each term costs one pass over the factor.
        """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every pair and parameter that has gradients.

        Raises
        ------
        ConvergenceError
            If factors or gradients are not finite, so that they have no bases. A gradient that is
            not finite is found before anything moves.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            whole = {id(pair.left): (gathered(pair), pair) for pair in self.pairs}
            for pair, _ in whole.values():
                _check_gradients(pair)
            for group in self.param_groups:
                if group["role"] == "pairs":
                    self._step_pairs([whole[id(left)] for left in group["params"][::2]], group)
                else:
                    self._adamw(group)
        return loss

    def _step_pairs(self, pairs: list[tuple[FactorPair, FactorPair]], group: Group) -> None:
        """Step on whole pairs, each with the one that it was gathered from."""
        ready = [x for x in pairs if x[0].left.grad is not None and x[0].right.grad is not None]
        self.before_pairs([whole for whole, _ in ready], group)
        for whole, pair in ready:
            self._step_pair(whole, self.state[pair.left], group)
            put_back(whole, pair)

    def before_pairs(self, pairs: list[FactorPair], group: Group) -> None:
        """Look at all pairs that have gradients, before the first of them moves."""

    def _step_pair(self, pair: FactorPair, state: State, group: Group) -> None:
        try:
            view = read_pair(pair)
            directions = self.directions(view, state, group)
        except LinAlgErrors as error:
            raise _not_finite(pair) from error
        _apply(view, directions, group)

    def _adamw(self, group: Group) -> None:
        for p in group["params"]:
            if p.grad is not None:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                d = adam_direction(p.grad, self.state[p], "adam", group["betas"], group["eps"])
                p.sub_((group["lr"] * d).to(p.dtype))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike the base class, keep the precision in which it was stored."""
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "pairs": self.pairs}


def _check_gradients(pair: FactorPair) -> None:
    """Raise ConvergenceError if a gradient of a pair that will move is not finite."""
    both = pair.left.grad, pair.right.grad
    if any(g is None for g in both):
        return
    if not all(_is_finite(g) for g in both if g is not None):
        raise _not_finite(pair)


def _not_finite(pair: FactorPair) -> ConvergenceError:
    return ConvergenceError(
        "an optimizer over factors needs finite factors and gradients; got NaN or "
        f"infinity in a pair of shape {pair.shape}, which was not changed: lower lr, clip "
        "the gradients, or skip the step"
    )


def _is_finite(x: Tensor) -> bool:
    # The sum is cheaper, and itself not finite only where x is not, or is near overflow.
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def adam_directions(directions: Both, state: State, group: Group) -> Terms:
    """Return Adam's directions for those of the factors, entry by entry; updates `state`."""
    options = group["betas"], group["eps"]
    left, right = (
        adam_direction(d, state, name, *options)
        for d, name in zip(directions, ("left", "right"), strict=True)
    )
    return [TallPair((left, right))]


def _apply(view: PairView, directions: Terms, group: Group) -> None:
    lr, trust = group["lr"], group["trust"]
    keep = max(0.0, 1 - lr * group["weight_decay"])
    if group.get("decay", "product") == "product":
        keep = math.sqrt(keep)
        # A factor moves against the other one, which shrinks. All of W gone, there is no other.
        lr = lr / keep if keep > 0 else lr
    # The second order beside a first order that decay makes smaller.
    length = lr / keep if keep > 0 else lr
    if not (math.isinf(trust) or _is_short(view, directions, length, trust)):
        if len(directions) > 1:
            directions = [TallPair(evaluate(directions))]
        lr *= _damping(view, directions[0], length, trust)
    # A step may be spanned by the factor itself: it is evaluated before the decay changes that.
    if keep == 1.0:
        add_to(view.factors, directions, -lr)
    else:
        for factor, direction in zip(view.factors, evaluate(directions), strict=True):
            factor.mul_(keep).sub_((lr * direction).to(factor.dtype))


def _damping(view: PairView, directions: TallPair, lr: float, trust: float) -> float:
    gram_left, gram_right = grams = lr**2 * directions.inner(directions)
    first = max(float(x.sum()) for x in grams * view.partners.grams)
    second = float((_with_core(view.pair, gram_left) * gram_right).sum())
    return min(1.0, trust * math.sqrt(max(first, 0.0) / second)) if second > 0 else 1.0


def _is_short(view: PairView, directions: Terms, lr: float, trust: float) -> bool:
    r"""Return whether norms alone show that the step needs no damping, as they mostly do.

    :math:`\|\dot L C \dot R^T\| \le \|\dot L \bar R^T\| \; \|C\| \; \|\dot R\| / \sigma_r(\bar R)`,
    and likewise with the sides exchanged; only well-conditioned factors are looked at.
    """
    core = abs(view.pair.scale)
    if view.pair.core is not None:
        core *= frobenius(small(view.pair.core))
    # The right factor's step against its own basis, the first one; then the left one's.
    for side, size in ((1, view.partners.inverse_norms[0]), (0, view.partners.inverse_norms[1])):
        if math.isfinite(size):
            length = lr * sum(x.size_bound(side) for x in directions) * core
            # The margin is for the rounding of the norms.
            if length * size <= 0.99 * trust:
                return True
            if length * spectral_bound(view.partners.inverses[1 - side]) <= 0.99 * trust:
                return True
    return False


def _with_core(pair: FactorPair, gram: Small) -> Small:
    """Return ``s^2 C^T gram C``."""
    gram = gram * pair.scale**2
    if pair.core is None:
        return gram
    core = small(pair.core)
    return core[:, None] * gram * core if core.ndim == 1 else core.mT @ gram @ core


def _check_families(module: nn.Module, declared: list[FactorPair]) -> None:
    families = {type(x).__name__ for x in module.modules() if isinstance(x, Parameterization)}
    if not families:
        raise ShapeError(
            f"an optimizer over factors needs at least one pair; got a {type(module).__name__} "
            "without parameterizations: adapt it first, or pass FactorPair(left, right) objects"
        )
    if not declared:
        warnings.warn(
            f"pairs must be bilinear; got {sorted(families)} only: all parameters take AdamW steps "
            "with others_lr; pass factor_pairs(module) to treat them as pairs nevertheless",
            UserWarning,
            stacklevel=4,
        )


def _check(pairs: list[FactorPair], others: list[Tensor], **numbers: float) -> None:
    if not pairs and not others:
        raise ShapeError(
            "an optimizer over factors needs at least one pair; got none: pass a module that "
            "contains parameterizations with left and right, or FactorPair(left, right) objects"
        )
    seen = [id(x) for pair in pairs for x in (pair.left, pair.right)]
    if len(seen) != len(set(seen)):
        raise ShapeError("a factor must be in one pair only; got one declared twice")
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0; got {name}={value!r}")
