"""What one step on a pair of factors may read, everything as thin as the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_opt.training.algebra.small import Small, array
from lowrank_opt.training.algebra.tall import Both
from lowrank_opt.training.algebra.thin_basis import ThinBases, thin_bases
from lowrank_opt.training.roles import FactorPair


@dataclass(frozen=True, eq=False)
class PairView:
    r"""What one step on :math:`W = s L C R^T` may read; everything n x r or r x r.

    A change :math:`(\dot L, \dot R)` moves W by :math:`\dot L \bar R^T + \bar L \dot R^T` with
    :math:`\bar L = s L C`, :math:`\bar R = s R C^T`; the bases are those of the barred factors, so
    that the constant s has no influence on the size of a step of W.

    Parameters
    ----------
    pair : FactorPair
    factors, gradients : tuple of Tensor, shapes (m, r), (n, r)
        L and R; the gradients at least in float32.
    partners : ThinBases, shapes (n, r), (m, r)
        Of :math:`\bar R` and :math:`\bar L`, in the order of the factors whose steps they govern.
    """

    pair: FactorPair
    factors: Both
    gradients: Both
    partners: ThinBases

    @property
    def rows(self) -> Small:
        """M and n, to divide small matrices of both sides by; shape (2, 1, 1)."""
        return array([[[len(x)]] for x in self.factors], like=self.partners.grams)


def read_pair(pair: FactorPair) -> PairView:
    """Return the view of a pair at its present values and gradients."""
    left, right = pair.left.detach(), pair.columns(pair.right.detach())
    assert pair.left.grad is not None, "checked by the caller"
    assert pair.right.grad is not None, "checked by the caller"
    dtype = torch.promote_types(left.dtype, torch.float32)
    gradients = pair.left.grad.to(dtype), pair.columns(pair.right.grad).to(dtype)
    partners = thin_bases((pair.times_core(right, transposed=True), pair.times_core(left)))
    return PairView(pair, (left, right), gradients, partners)
