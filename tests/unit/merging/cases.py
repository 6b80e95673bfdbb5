"""Clients for the tests of aggregation, and dense float64 arithmetic to compare with."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from lowrank_opt.merging.federated.aggregate import Aggregate
from lowrank_opt.merging.federated.rules import FederatedMethod

METHODS: tuple[FederatedMethod, ...] = get_args(FederatedMethod)
M, N, R, K = 9, 7, 2, 4
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
Pair = tuple[Tensor, Tensor]


def random_clients(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, ranks: Sequence[int] = (R,) * K
) -> list[Pair]:
    """Return unrelated factors."""
    g = torch.Generator().manual_seed(seed)
    draw = [(torch.randn(M, r, generator=g), torch.randn(N, r, generator=g)) for r in ranks]
    return [(left.to(dtype), right.to(dtype)) for left, right in draw]


def with_common_right(clients: list[Pair]) -> list[Pair]:
    return [(left, clients[0][1]) for left, _ in clients]


def clients_for(method: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Pair]:
    clients = random_clients(seed, dtype=dtype)
    return with_common_right(clients) if method == "ffa" else clients


def average_dense(clients: Sequence[Pair], weights: Sequence[float] = WEIGHTS) -> Tensor:
    pairs = zip(weights, clients, strict=True)
    return sum(
        (p * left.double() @ right.double().mT for p, (left, right) in pairs), torch.zeros(1)
    )


def mean_factors(clients: Sequence[Pair], weights: Sequence[float] = WEIGHTS) -> Pair:
    pairs = list(zip(weights, clients, strict=True))
    left = sum((p * left for p, (left, _) in pairs), torch.zeros(1))
    return left, sum((p * right for p, (_, right) in pairs), torch.zeros(1))


def update_dense(result: Aggregate) -> Tensor:
    return result.update.to(dtype=torch.float64).to_dense()
