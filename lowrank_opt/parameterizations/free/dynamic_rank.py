"""Dynamic-rank DoRA: single-rank components with weights, dropped by their share of W."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_opt.linalg import working_dtype
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.parameterizations.free.components import component_norms
from lowrank_opt.parameterizations.free.sum_of_components import SumOfComponents


class DynamicRank(SumOfComponents):
    r""":math:`W = \text{scaling} \sum_i c_i\, b_i a_i^T`, components dropped by their share of W.

    Set: all matrices of rank at most r, complete; after pruning, of rank at most the number of
    nonzero c_i. No hard norm bound, but always
    :math:`\|W\|_* \le` `nuclear_bound` :math:`= \text{scaling} \sum_i |c_i| \|a_i\| \|b_i\|`.

    Ranks are allocated by `lowrank_opt.training.RankAllocator` with its `Magnitude`, which sets
    c_i = 0: a dropped component gets a gradient and may return.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
        Initial number of components, usually 1.5 times the budget.
    scaling : float
        alpha / r. Positive; stays what it is when components are dropped.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    OptionError
        If the scaling is not positive and finite.

    References
    ----------
    Mao et al., DoRA: Dynamic Rank Distribution (ACL 2024, arXiv 2405.17357), equations 3 to 8.

    Examples
    --------
    >>> layer = DynamicRank((5, 4), rank=2).assign(
    ...     torch.diag(torch.tensor([4.0, 3.0, 0, 0, 0]))[:, :4]
    ... )
    >>> [round(x, 6) for x in layer.shares().tolist()]
    [0.8, 0.6]
    """

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example("DynamicRank", cls, reference="arXiv 2405.17357")

    @torch.no_grad()
    def shares(self) -> Tensor:
        r"""Return :math:`\|c_i b_i a_i^T\|_F / \|W\|_F`, shape (r,); zeros where W = 0."""
        terms = self.scaling * component_norms(self.left, self.values, self.right)
        op = self.factors().to(dtype=working_dtype(self.left))
        total = op.schatten_norm(2)
        return torch.where(total > 0, terms / torch.where(total > 0, total, 1.0), 0.0)

    def nuclear_bound(self) -> Tensor:
        r"""Return :math:`\text{scaling} \sum_i |c_i| \|a_i\| \|b_i\|`, a scalar, float64."""
        return self.scaling * component_norms(self.left, self.values, self.right).sum()

    def dispersion_penalty(self, *, per_pair: bool = True) -> Tensor:
        """Return the mean over components of the variances of the entries of a_i and b_i.

        The paper's regulariser; it draws the entries of each vector together. A vector with one
        entry has none.

        Parameters
        ----------
        per_pair : bool
            Otherwise the mean over all vectors of their unbiased variances, as in the authors'
            code: little more than half as much.
        """
        k = int(not per_pair)
        both = [p.to(working_dtype(p)) for p in (self.left, self.right)]
        left, right = (x.var(0, correction=min(k, len(x) - 1)) for x in both)
        return (left + right).mean() / (1 + k)
