"""What a fitted matrix says of rows and columns without an observed entry: nothing of its own."""

from __future__ import annotations

from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.between import Between


def seen_factors(module: Parameterization, rows: Tensor, cols: Tensor) -> LowRankOperator:
    """Return the factors with zeros where nothing was observed, which increases no norm.

    Between frames or features a row of W has meaning where rows like it were observed: there the
    rows of C are zeroed that no observed one depends on, as their parameters are what they were at
    the start.

    Parameters
    ----------
    module : Parameterization
        Of shape (m, n).
    rows, cols : Tensor of bool, shapes (m,) and (n,)
        Which rows and columns had an observed entry.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> seen, none = torch.tensor([True, True]), torch.tensor([True, False])
    >>> module = Factored((2, 2), 1).assign(torch.ones(2, 2))
    >>> seen_factors(module, seen, none).to_dense().detach()
    tensor([[1., 0.],
            [1., 0.]])
    """
    if isinstance(module, Between):
        A, B = module.sides
        return module.between(seen_factors(module.inner, A.met(rows), B.met(cols)))
    found = module.factors()
    if any(isinstance(part, Between) for part in module.modules()):
        return found
    return masked(found, rows, cols)


def masked(operator: LowRankOperator, rows: Tensor, cols: Tensor) -> LowRankOperator:
    """Return the factors with zeros where nothing was observed."""
    left, scale, right = operator
    left, right = (x.where(k.unsqueeze(1), 0) for x, k in ((left, rows), (right, cols)))
    return LowRankOperator(left, scale, right)
