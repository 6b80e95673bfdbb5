"""AdaLoRA: a product in SVD form."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_opt.linalg import working_dtype
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.parameterizations.free.sum_of_components import SumOfComponents


class AdaLoRA(SumOfComponents):
    r""":math:`W = \text{scaling} \cdot P\, \mathrm{diag}(\lambda)\, Q`.

    Set: all matrices of rank at most r, complete; after pruning, of rank at most the number of
    nonzero :math:`\lambda_i`. There is no norm bound: P and Q are only drawn towards orthonormal
    ones by `orthogonality_penalty`, which the caller adds to the loss.

    Ranks are allocated by `lowrank_opt.training.RankAllocator`, which sets :math:`\lambda_i = 0`
    and leaves P and Q, so that a component may return. The scaling stays what it was.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
        Initial rank, usually 1.5 times the budget.
    scaling : float
        alpha / r. Positive.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    OptionError
        If the scaling is not positive and finite.

    References
    ----------
    Zhang et al., AdaLoRA (ICLR 2023, arXiv 2303.10512), equations 3 and 4.

    Examples
    --------
    >>> layer = AdaLoRA((4, 4), rank=3).assign(torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0])))
    >>> layer.active
    2
    """

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example("AdaLoRA", cls, reference="arXiv 2303.10512")

    def orthogonality_penalty(self, *, squared: bool = True) -> Tensor:
        r"""Return :math:`\|P^T P - I\|_F^2 + \|Q Q^T - I\|_F^2`, a scalar in the working dtype.

        With ``squared=False`` the mean of the two norms, as in the paper's code; its gradient does
        not vanish where the penalty does, and is zero at exactly orthonormal factors.
        """
        squares = torch.stack([_gram_defect(p) for p in (self.left, self.right)])
        if squared:
            return squares.sum()
        positive = squares > 0
        return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0).mean()


def _gram_defect(x: Tensor) -> Tensor:
    x = x.to(working_dtype(x))
    return (x.mT @ x - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)).square().sum()
