"""Synaptic flow: scores of modules before training, without data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowrank_opt.training.ranks.importance import tangent_norm
from lowrank_opt.training.roles import FactorPair


def synflow_scores(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    pairs: Iterable[FactorPair],
    *,
    score: Callable[[FactorPair], float] = tangent_norm,
) -> list[float]:
    r"""Score pairs by the gradient of :math:`R = \sum f_{|\theta|}(1)`.

    Every parameter is replaced by its modulus, the model is evaluated on `inputs`, ones of the
    right shape, and the sum of its outputs is differentiated; then everything is as before, bit by
    bit: parameters, gradients, buffers, the random state and the mode of each module.

    Parameters
    ----------
    model : nn.Module
        With parameters in float32 or float64: sums of moduli overflow in half precision.
    inputs : Tensor or tuple of Tensor
        For a model of tokens, embeddings of ones.
    pairs : iterable of FactorPair
    score : callable
        What to make of a pair with its gradients. `snip_score` gives the sum
        :math:`\sum |w\, \partial_w R|` of the paper, which is zero for every pair at its zero
        start; the default, the norm of the gradient projected on the tangent space, is not.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If the sum of the outputs is not finite, or a pair takes no part in it.

    References
    ----------
    Tanaka et al. (2020), Pruning neural networks without any data by iteratively conserving
    synaptic flow, section 5; as a proxy for ranks: HeteroLoRA (arXiv 2406.14956).

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import LowRankLinear
    >>> from lowrank_opt.training import factor_pairs, snip_score
    >>> layer = LowRankLinear(Factored((3, 4), 2))
    >>> _ = layer.weight.assign(torch.ones(3, 4))
    >>> scores = synflow_scores(layer, torch.ones(1, 4), factor_pairs(layer), score=snip_score)
    >>> [round(x) for x in scores]  # 12 flows through each of the two factors
    [24]
    """
    given = list(pairs)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with _restored(model), torch.random.fork_rng(devices=[]), torch.enable_grad():
        for p in model.parameters():
            p.data = p.data.abs()
        total = model.eval()(*arguments).sum()
        if not bool(torch.isfinite(total)):
            raise ValueError(
                f"the sum of the outputs must be finite; got {float(total)}: score a model in "
                "float32 or float64, with moderate inputs"
            )
        total.backward()
        if any(pair.left.grad is None or pair.right.grad is None for pair in given):
            raise ValueError(
                "every pair must take part in the output; got one without a gradient: pass only "
                "pairs of active updates"
            )
        return [score(pair) for pair in given]


@contextmanager
def _restored(model: nn.Module) -> Generator[None]:
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    modes = [(m, m.training) for m in model.modules()]
    for p, *_ in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, data, grad, requires_grad in parameters:
            p.data, p.grad, p.requires_grad = data, grad, requires_grad
        with torch.no_grad():
            for b, kept in buffers:
                b.copy_(kept)
        for m, training in modes:
            m.training = training
