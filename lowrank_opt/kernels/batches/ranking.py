"""The best columns of some rows, in plain torch."""

import torch
from torch import Tensor

from lowrank_opt.kernels.protocol import Ranked


def best_columns(given: Ranked, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row, and their columns."""
    scores = given.rows @ given.cols.mT + given.offsets
    scores.masked_fill_(~given.allowed, -torch.inf)
    scores[given.seen] = -torch.inf
    values, columns = scores.topk(min(k, scores.shape[1]), dim=1)
    return values, columns
