r"""Linear algebra of factors: small matrices, tall products, thin bases, tangent vectors.

Everything is r x r or n x r and knows nothing of optimizers, schedules or models: steps live in
`optimizers`, scores in `ranks`. Read in this order:

1. `small` - r x r matrices in float64. A `Small` is an array of NumPy or a tensor of torch,
   whichever is faster for its size and device; formulas are written once, for both.
2. `tall` - the two sides of :math:`W = L R^T` at once. A `TallPair` stands for
   ``span @ coordinates`` on each side, *not multiplied out*: a chain of r x r
   matrices is collected in the coordinates, and one tall product is made in the end (`evaluate`).
3. `thin_basis` - a factor as ``F = U K``: U an orthonormal frame, K r x r. With it inverses of Gram
   matrices are never needed: ``(F^T F)^-1 = K^-1 K^-T``.
4. `pair_view` - what one step may read: factors, gradients, and the bases of both factors.
5. `tangent` - the full gradient projected on the tangent space at W, from thin parts.

What they stand for, in dense matrices:

>>> import torch
>>> from lowrank_opt.training import FactorPair
>>> from lowrank_opt.training.algebra.pair_view import read_pair
>>> from lowrank_opt.training.algebra.tangent import Tangent
>>> L, R, G = (torch.randn(s, dtype=torch.float64) for s in ((6, 2), (5, 2), (6, 5)))
>>> L.requires_grad_(), R.requires_grad_()  # doctest: +ELLIPSIS
(tensor(...
>>> L.grad, R.grad = G @ R.detach(), G.mT @ L.detach()
>>> q = Tangent.of_gradient(read_pair(FactorPair(L, R))).to_dense()
>>> P_L, P_R = (F @ torch.linalg.pinv(F) for F in (L.detach(), R.detach()))
>>> torch.allclose(q, P_L @ G + G @ P_R - P_L @ G @ P_R)
True
"""
