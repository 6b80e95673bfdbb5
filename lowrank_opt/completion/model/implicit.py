"""Which entries were observed, as features: that something was rated tells about both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def implicit_features(observations: Observations) -> tuple[csr_array, csr_array]:
    r"""Return features of rows, (m, n), and of columns, (n, m): where entries were observed.

    Row i is :math:`|N_i|^{-1/2}` at the columns :math:`N_i` it has entries in, so that a link
    matrix with rows :math:`y_j` adds :math:`|N_i|^{-1/2} \sum_{j \in N_i} y_j` to its factor;
    columns likewise.

    References
    ----------
    Koren (2008), Factorization meets the neighborhood, equation 15; both ways ("flipped").

    Examples
    --------
    >>> import torch
    >>> rows, cols = implicit_features(Observations.from_dense(torch.ones(1, 4)))
    >>> rows.toarray(), cols.shape
    (array([[0.5, 0.5, 0.5, 0.5]]), (4, 1))
    """
    from scipy.sparse import csr_array

    m, n = observations.shape
    sides = []
    for axis, shape in ((observations.csr, (m, n)), (observations.csc, (n, m))):
        counts = axis.counts.cpu().numpy()
        places = axis.indices.cpu().numpy(), axis.pointers.cpu().numpy()
        values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts)
        sides.append(csr_array((values, *places), shape=shape))
    return sides[0], sides[1]
