"""Starts from weights, activations or gradients, into any set and without changing the model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_choice
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.nn.adapters.present import check_known, record_of
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights, settle
from lowrank_opt.operator import LowRankOperator

StartMethod = Literal["pissa", "milora", "eva", "corda", "lora_ga", "lora_one", "residual"]
_FROM_INPUTS, _FROM_GRADIENTS = ("eva", "corda"), ("lora_ga", "lora_one")
# Those that begin somewhere else than the model is.
_MOVES = ("lora_one", "residual")


def start(
    model: nn.Module,
    method: StartMethod,
    *,
    loss: Callable[[], Tensor] | None = None,
    residuals: Mapping[str, Tensor] | None = None,
    size: float | None = None,
    names: Sequence[str] = (),
) -> dict[str, float]:
    r"""Let adapters start at a matrix that data, gradients or the weight itself suggest.

    For each adapted matrix a target T of the update's rank is computed, and the update is assigned
    the nearest member of its set: nobody leaves a ball. Except for ``lora_one`` and ``residual``,
    which are meant to move, what was assigned is subtracted again as a settled part, so that the
    model computes what it did, to rounding. Base weights are never changed.

    ============  ================================================================================
    method        T, of rank r
    ============  ================================================================================
    ``pissa``     leading part of the weight (2404.02948)
    ``milora``    trailing part of the weight (2406.09044)
    ``eva``       the weight on the leading directions V of the layer's inputs, :math:`W_0 V V^T`
                  (2410.07170 starts the right factor at V and the left one at zero)
    ``corda``     leading part of :math:`W_0 C`, times :math:`C^{-1}`, C the second moment of the
                  inputs (2406.05223, instruction mode): :math:`U U^T W_0`, without the inverse
    ``lora_ga``   leading part of the gradient (2407.05000 takes two disjoint parts of it)
    ``lora_one``  minus the leading part of the gradient: one step of descent (2502.01235)
    ``residual``  leading part of what quantisation lost, from `residuals` (LoftQ, 2310.08659)
    ============  ================================================================================

    Parameters
    ----------
    model : nn.Module
        Adapted, at its zero start.
    method : str
    loss : callable, optional
        Evaluates the model on a batch, and returns a scalar; for methods that need inputs of layers
        or gradients.
    residuals : mapping of str to Tensor, optional
        By weight name: the full weight minus the quantised one.
    size : float, optional
        Spectral norm to which every T is scaled first; by default as it is.
    names : sequence of str
        Of adapters; all by default.

    Returns
    -------
    dict of str to float
        By matrix: the share :math:`\|T - W\|_F / \|T\|_F` that the set did not take.

    Raises
    ------
    OptionError
        If `loss` or `residuals` is missing for a method that needs it.
    TargetError
        If a layer's inputs do not fit its weight: only linear layers have them.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(6, 5), lambda s: NBLoRA(s, 2, radius=0.1), targets=".*")
    >>> x = torch.randn(8, 6)
    >>> before = model(x)
    >>> start(model, "lora_ga", loss=lambda: model(x).square().mean(), size=0.1)["weight"] < 1e-5
    True
    >>> torch.allclose(model(x), before, atol=1e-5)
    True
    """
    check_choice(method, get_args(StartMethod), "method")
    if (method in _FROM_INPUTS + _FROM_GRADIENTS) and loss is None:
        raise OptionError(f"{method} reads the model on data; got no loss: pass loss=")
    if method == "residual" and residuals is None:
        raise OptionError("a start at a residual needs one for each weight; got none: pass them")
    record_of(model)
    check_known(model, names)
    found = adapted_weights(model, names or None, tied=False)
    evidence = _evidence(found, method, loss, residuals)
    left: dict[str, float] = {}
    for weight, seen in zip(found, evidence, strict=True):
        left |= _begin(model, weight, seen, method, size)
    return left


def _evidence(
    found: Sequence[AdaptedWeight],
    method: StartMethod,
    loss: Callable[[], Tensor] | None,
    residuals: Mapping[str, Tensor] | None,
) -> list[Tensor | None]:
    if method in _FROM_INPUTS:
        return list(_second_moments(found, loss))
    if method in _FROM_GRADIENTS:
        return list(_gradients(found, loss))
    if residuals is not None:
        missing = [w.name for w in found if w.name not in residuals]
        if missing:
            raise OptionError(f"residuals must name every adapted weight; got none for {missing}")
        return [residuals[w.name] for w in found]
    return [None] * len(found)


@torch.no_grad()
def _begin(
    model: nn.Module,
    weight: AdaptedWeight,
    seen: Tensor | None,
    method: StartMethod,
    size: float | None,
) -> dict[str, float]:
    bases = weight.base_matrices().double()
    stacked = [None] * len(bases)
    if seen is not None:
        same = method not in _FROM_INPUTS
        stacked = list(seen.double().reshape(bases.shape)) if same else [seen.double()]
    left: dict[str, float] = {}
    negated: list[LowRankOperator | None] = []
    parts = zip(weight.matrix_names, weight.updates, bases, stacked, strict=True)
    for name, update, W0, given in parts:
        T = _target(W0, given, method, update.rank)
        norm = float(T.schatten_norm(float("inf")))
        if size is not None and norm > 0:
            T = T * (size / norm)
        T = T.to(dtype=next(update.parameters()).dtype)
        update.assign(T, project=True)
        whole = float(T.schatten_norm(2))
        left[name] = update.residual(T) / whole if whole else 0.0
        negated.append(update().detach() * -1.0)
    if method not in _MOVES:
        settle(model, weight, negated)
    return left


def _target(W0: Tensor, seen: Tensor | None, method: StartMethod, rank: int) -> LowRankOperator:
    """Return T in float64."""
    if method == "milora":
        U, sigma, Vh = torch.linalg.svd(W0, full_matrices=False)
        return LowRankOperator(U[:, -rank:], sigma[-rank:], Vh[-rank:].mT)
    if method == "pissa":
        return LowRankOperator(*leading_svd(W0, rank))
    assert seen is not None, "checked by the caller"
    if method == "eva":
        V = leading_svd(seen, rank)[2]
        return LowRankOperator(W0 @ V, V.new_ones(rank), V)
    if method == "corda":
        # The leading part of W0 C is U U^T W0 C: no inverse, and singular moments are no matter.
        U = leading_svd(W0 @ seen, rank)[0]
        return LowRankOperator(U, U.new_ones(U.shape[1]), W0.mT @ U)
    sign = -1.0 if method == "lora_one" else 1.0
    return LowRankOperator(*leading_svd(seen, rank)) * sign


def _second_moments(
    found: Sequence[AdaptedWeight], loss: Callable[[], Tensor] | None
) -> list[Tensor]:
    """Return ``X^T X / N`` of the inputs of each layer."""
    sums: list[Tensor] = [torch.zeros(()) for _ in found]
    counts = [0] * len(found)

    def note(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2).double()
            sums[index] = sums[index] + x.mT @ x
            counts[index] += len(x)

        return hook

    hooks = [w.slot.layer.module.register_forward_pre_hook(note(k)) for k, w in enumerate(found)]
    try:
        with torch.no_grad():
            assert loss is not None, "checked by the caller"
            loss()
    finally:
        for hook in hooks:
            hook.remove()
    for w, moment in zip(found, sums, strict=True):
        n = w.updates[0].shape[1]
        if tuple(moment.shape) != (n, n) or len(w.updates) > 1:
            raise TargetError(
                f"inputs tell a start of linear layers only; {w.name} has {n} columns and inputs "
                f"of {moment.shape[-1] if moment.ndim else 0} features: exclude it, or use pissa"
            )
    return [moment / n for moment, n in zip(sums, counts, strict=True)]


def _gradients(
    found: Sequence[AdaptedWeight], loss: Callable[[], Tensor] | None
) -> Sequence[Tensor]:
    weights = [w.slot.parameter for w in found]
    with _tracked(weights), torch.enable_grad():
        assert loss is not None, "checked by the caller"
        return torch.autograd.grad(loss(), weights)


@contextmanager
def _tracked(weights: Sequence[nn.Parameter]) -> Generator[None]:
    before = [w.requires_grad for w in weights]
    for w in weights:
        w.requires_grad_(True)
    try:
        yield
    finally:
        for w, tracked in zip(weights, before, strict=True):
            w.requires_grad_(tracked)
