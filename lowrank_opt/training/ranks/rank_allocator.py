"""One budget of components for all low-rank updates of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Factored
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.training.ranks.budget import CubicBudget, top_components
from lowrank_opt.training.ranks.importance import Importance, Sensitivity
from lowrank_opt.training.roles import FactorPair, factor_pairs


@final
class RankAllocator:
    r"""Spend a falling budget on the rank-one components that matter, over all pairs.

    A component is dropped by setting its entry of a diagonal core to zero, or, without one, its
    left column; the other factor stays, so that it can come back while the budget still falls.
    Parameters are only ever set to zero or cut: whatever set a parameterization guarantees, it
    goes on guaranteeing, and the rank is at most the number of living components.

    Parameters
    ----------
    pairs : nn.Module or iterable of FactorPair
    budget : CubicBudget
    importance : Importance, optional
        `Sensitivity` (AdaLoRA) by default, `Magnitude` (dynamic-rank DoRA), or one's own.
    every : int
        Steps between two rankings.
    revivable : bool
        Whether dropped components may grow again between rankings, until the budget is final. If
        not, at most ``budget(t)`` components live at any time.
    balanced : bool
        Re-factorise every pair after each step, so that components are singular triples of W. The
        optimizers that do not depend on the gauge need it: they let columns grow that cancel, and
        dropping one of those is no small change. Not for entrywise ones like AdamW.
    optimizer : Optimizer, optional
        Whose state `compact` cuts along.

    Notes
    -----
    Call `step` between ``backward`` and the optimizer's step, so that parameters and gradients
    belong together, and `enforce` after it.

    References
    ----------
    Zhang et al., AdaLoRA (arXiv 2303.10512), Algorithm 1.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = Factored((6, 5), 4)
    >>> allocator = RankAllocator(model, CubicBudget(start=4, final=2, total=2))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     (model().to_dense() - 1).square().sum().backward()
    ...     allocator.step()
    ...     optimizer.step()
    ...     allocator.enforce()
    >>> allocator.compact()
    [2]
    >>> model.rank, tuple(model.left.shape)
    (2, (6, 2))
    """

    def __init__(
        self,
        pairs: nn.Module | Iterable[FactorPair],
        budget: CubicBudget,
        *,
        importance: Importance | None = None,
        every: int = 1,
        revivable: bool = True,
        balanced: bool = False,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.pairs: list[FactorPair] = (
            factor_pairs(pairs) if isinstance(pairs, nn.Module) else list(pairs)
        )
        self._owners = _owners(pairs) if isinstance(pairs, nn.Module) else {}
        total = sum(pair.rank for pair in self.pairs)
        if budget.start > total or not self.pairs:
            raise ShapeError(
                f"the budget must start at no more than all components; got {budget.start} for "
                f"{total} components in {len(self.pairs)} pairs"
            )
        if any(pair.core is not None and pair.core.ndim == 2 for pair in self.pairs):
            raise ShapeError(
                "components need a diagonal core or none; got a full one: multiply it into a factor"
            )
        self.importance: Sensitivity | Importance = (
            Sensitivity() if importance is None else importance
        )
        if balanced:
            _check_bilinear(self.pairs, self._owners)
        self.budget: CubicBudget
        self.every: int
        self.budget, self.every = budget, every
        self.revivable: bool
        self.balanced: bool
        self.revivable, self.balanced = revivable, balanced
        self.optimizer: Optimizer | None
        self.optimizer, self.steps = optimizer, 0
        self.masks = [torch.ones(pair.rank, dtype=torch.bool) for pair in self.pairs]

    @property
    def ranks(self) -> list[int]:
        """Number of living components of each pair."""
        return [int(mask.sum()) for mask in self.masks]

    def step(self) -> None:
        """Collect importance from the gradients and, when it is time, rank and drop."""
        self.importance.update(self.pairs)
        frozen = self.budget.finished(self.steps - 1) and self.steps > 0
        due = self.steps % self.every == 0 or self.budget.finished(self.steps)
        if due and not frozen and self.steps >= self.budget.warmup:
            count = self.budget(self.steps)
            self.masks = top_components(self._eligible(), count)
            self._drop()
        self.steps += 1

    def enforce(self) -> None:
        """Drop again what the optimizer's step has moved; all of it once the budget is final."""
        if not self.revivable or self.budget.finished(self.steps - 1):
            self._drop()
        if self.balanced:
            for pair, mask in zip(self.pairs, self.masks, strict=True):
                _balance(pair, mask)

    @torch.no_grad()
    def compact(self) -> list[int]:
        """Cut dropped components off, with gradients and optimizer state; return the new ranks.

        W stays the same: it is checked, and nothing is cut if it would not. A pair without living
        components keeps one that is zero. Parameters stay the same objects.
        """
        self._drop()
        kept = [_index(mask) for mask in self.masks]
        if all(len(index) == len(mask) for index, mask in zip(kept, self.masks, strict=True)):
            return self.ranks
        self._check_compactable(kept)
        for k, (pair, index) in enumerate(zip(self.pairs, kept, strict=True)):
            _cut(pair, index, self.optimizer)
            self.importance.keep(pair, index)
            self.masks[k] = self.masks[k][index]
            owner = self._owners.get(id(pair.left))
            if owner is not None:
                owner.rank = len(index)
        return self.ranks

    def state_dict(self) -> dict[str, object]:
        """Return counts, masks and importance, for `torch.save`; the factors are the model's."""
        return {
            "steps": self.steps,
            "masks": [mask.clone() for mask in self.masks],
            "importance": self.importance.state(self.pairs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, on factors of the ranks of that moment.

        Raises
        ------
        ShapeError
            If the masks do not fit the factors. Nothing is changed.
        """
        ranks, own = [len(mask) for mask in state["masks"]], [pair.rank for pair in self.pairs]
        if ranks != own:
            raise ShapeError(
                f"an allocator's state must fit the factors' ranks, {own}; got masks for {ranks}: "
                "load the model of that moment first"
            )
        self.steps: int = int(state["steps"])
        self.masks: list[Any] = [mask.clone() for mask in state["masks"]]
        self.importance.load(self.pairs, state["importance"])

    def _eligible(self) -> list[Tensor]:
        """Return scores in which, unless revivable, dropped components come last."""
        scores = self.importance.scores(self.pairs)
        if self.revivable:
            return scores
        pairs = zip(scores, self.masks, strict=True)
        return [torch.where(m.to(s.device), s, -torch.inf) for s, m in pairs]

    @torch.no_grad()
    def _drop(self) -> None:
        for pair, mask in zip(self.pairs, self.masks, strict=True):
            target = pair.left if pair.core is None else pair.core
            target[..., ~mask.to(target.device)] = 0

    def _check_compactable(self, kept: list[Tensor]) -> None:
        for pair, index in zip(self.pairs, kept, strict=True):
            owner = self._owners.get(id(pair.left))
            if owner is not None and not _same_without(owner, pair, index):
                raise ShapeError(
                    f"components can be cut only where that leaves W unchanged; {owner} depends on "
                    "its rank: keep the dropped components, which are zero"
                )


def _owners(module: nn.Module) -> dict[int, Parameterization]:
    parts = (x for x in module.modules() if isinstance(x, Parameterization))
    return {id(getattr(x, "left", None)): x for x in parts}


def _check_bilinear(pairs: list[FactorPair], owners: dict[int, Parameterization]) -> None:
    for pair in pairs:
        owner = owners.get(id(pair.left))
        if pair.core is not None or (owner is not None and not isinstance(owner, Factored)):
            raise ShapeError(
                f"balanced=True needs W = s L R^T with constant s; got {owner or 'a core'}: "
                "leave it out"
            )


@torch.no_grad()
def _balance(pair: FactorPair, mask: Tensor) -> None:
    """Make the living columns singular vectors times the roots of the singular values."""
    mask = mask.to(pair.left.device)
    left, right = pair.left[:, mask], pair.columns(pair.right)[:, mask]
    if left.shape[1] == 0:
        return
    op = LowRankOperator(left, left.new_ones(left.shape[1]), right).thin_svd()
    root = op.scale.sqrt()
    # Columns of size zero keep their right part: both zero would never move again.
    pair.left[:, mask] = op.left * root
    pair.columns(pair.right)[:, mask] = op.right * torch.where(root > 0, root, 1.0)


def _index(mask: Tensor) -> Tensor:
    index = mask.nonzero().squeeze(1)
    return index if len(index) else torch.zeros(1, dtype=torch.int64)


def _same_without(owner: Parameterization, pair: FactorPair, index: Tensor) -> bool:
    """Cut the parameters on trial and compare W, in factors; restore them."""
    before, rank = owner.factors().detach().clone(), owner.rank
    stored = [(x, x.data) for x in (pair.left, pair.right, pair.core) if x is not None]
    _cut(pair, index, None)
    owner.rank = len(index)
    difference = float((owner.factors().detach() - before).schatten_norm(2))
    owner.rank = rank
    for tensor, data in stored:
        tensor.data = data
    # Terms may cancel in W: rounding is relative to their sizes.
    norm = torch.linalg.vector_norm
    size = float((norm(before.left, dim=0) * before.scale.abs() * norm(before.right, dim=0)).sum())
    return difference <= 16 * torch.finfo(before.dtype).eps * size


def _cut(pair: FactorPair, index: Tensor, optimizer: Optimizer | None) -> None:
    r, index = pair.rank, index.to(pair.left.device)
    if optimizer is not None:
        _cut_state(optimizer, pair, r, index)
    axis = 0 if pair.layout == "peft" else 1
    pair.left.data = pair.left.data[:, index].contiguous()
    pair.right.data = pair.right.data.index_select(axis, index)
    pair.left.grad = pair.right.grad = None
    if pair.core is not None:
        pair.core.data, pair.core.grad = pair.core.data[index], None


def _cut_state(optimizer: Optimizer, pair: FactorPair, r: int, index: Tensor) -> None:
    for tensor in (pair.left, pair.right, pair.core):
        state = optimizer.state.get(tensor, {}) if tensor is not None else {}
        # States in a frame of the factors' ranges are transported to any rank at the next step.
        if any(name.startswith("frame") for name in state):
            continue
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim > 0:
                axis = 0 if tensor is pair.right and pair.layout == "peft" else value.ndim - 1
                assert value.shape[axis] == r, f"{name} must have one entry per component"
                state[name] = value.index_select(axis, index)
