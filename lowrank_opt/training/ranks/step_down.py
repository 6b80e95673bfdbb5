"""Make a parameterization one of a smaller rank, in place, at its zero start."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.errors import LowRankError, RankError
from lowrank_opt.parameterizations.base import Parameterization


@torch.no_grad()
def step_down_(
    parameterization: Parameterization, rank: int, *, generator: torch.Generator | None = None
) -> None:
    """Cut a parameterization to `rank` and set it to its zero start; W is what is forgotten.

    Its parameters stay the same objects, with fewer columns; an optimizer's state of them has to
    be forgotten. For families whose tensors have an entry or a column for each component.

    Parameters
    ----------
    parameterization : Parameterization
    rank : int
        In 1 to its present rank.
    generator : torch.Generator, optional
        Of the new start.

    Raises
    ------
    RankError
        If the rank does not fit, or the family cannot be cut; nothing has changed then.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> update = Factored((4, 3), 2)
    >>> step_down_(update, 1)
    >>> update.rank, tuple(update.left.shape)
    (1, (4, 1))
    """
    before = parameterization.rank
    if not 1 <= rank <= before:
        raise RankError(f"a rank steps down, to 1..{before}; got rank={rank!r}")
    tensors = _tensors(parameterization)
    kept = [(x, x.data) for x in tensors.values()]
    try:
        for name, x in tensors.items():
            x.data = _cut(name, x.data, before, rank)
        parameterization.rank = rank
        parameterization.zero_(generator=generator)
        op = parameterization.factors()
        fits = parameterization.feasible_set.rank <= rank and not float(op.schatten_norm(2))
    except (LowRankError, RuntimeError, IndexError):
        fits = False
    if not fits:
        parameterization.rank = before
        for x, data in kept:
            x.data = data
        raise RankError(
            "a link can step down only if each component has columns of its own; got "
            f"{type(parameterization).__name__}: leave ranks out, or "
            "use Factored or HomogeneousBall"
        )
    for p in parameterization.parameters():
        p.grad = None


def _tensors(module: Parameterization) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _cut(name: str, x: Tensor, before: int, rank: int) -> Tensor:
    """Return the first components: of a square matrix that is no factor, on both sides."""
    if x.ndim == 0 or x.shape[-1] != before:
        return x
    if x.ndim == 2 and x.shape[0] == before and name not in ("left", "right"):
        return x[:rank, :rank].contiguous()
    return x[..., :rank].contiguous()
