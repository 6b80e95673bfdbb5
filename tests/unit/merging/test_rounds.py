"""Federated rounds of whole models: the next start computes what the server sent."""

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.merging import aggregate, private_merge, start_round
from lowrank_opt.merging.federated.rules import FederatedMethod
from lowrank_opt.nn import AdapterStateError, adapt, adapted_weights, merge
from lowrank_opt.parameterizations import Parameterization
from tests.adapted import base_weight, member


def plain(shape: tuple[int, int]) -> Parameterization:
    return lo.Factored(shape, rank=2, scaling=0.5)


def bounded(shape: tuple[int, int]) -> Parameterization:
    return lo.NBLoRA(shape, rank=2, radius=1.0)


def trained(seed: int, make: object = plain) -> nn.Module:
    """Return a model with the base of all clients and an update of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.MultiheadAttention(6, 2)).double()
    adapt(model, make, targets="all-linear")  # pyright: ignore[reportArgumentType]
    torch.manual_seed(1 + seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return model.double()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [
        getattr(found.slot.layer.module, found.slot.weight).detach()
        for found in adapted_weights(model)
    ]


@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_exact_methods_start_from_the_average_weight(method: FederatedMethod) -> None:
    clients = [trained(seed) for seed in range(3)]
    shares = [0.5, 0.3, 0.2]
    before = [weights_of(client) for client in clients]
    results = aggregate(clients, method, weights=shares)
    start_round(clients[1], results)
    after = weights_of(clients[1])
    expected = [
        sum((p * w for p, w in zip(shares, same, strict=True)), torch.zeros(1))
        for same in zip(*before, strict=True)
    ]
    assert len(after) == 3
    assert all(
        torch.allclose(w, x, rtol=0, atol=1e-12) for w, x in zip(expected, after, strict=True)
    )


def test_fedit_copies_the_factors_and_leaves_the_base() -> None:
    clients = [trained(seed) for seed in range(2)]
    results = aggregate(clients, "fedit")
    base = base_weight(clients[0][0]).detach().clone()
    start_round(clients[0], results)
    layer = next(m for m in clients[0].modules() if isinstance(m, lo.Factored))
    broadcast = results["0.weight"].broadcast
    assert broadcast is not None
    assert torch.equal(broadcast.left, layer.left)
    assert torch.equal(broadcast.right, layer.right)
    assert torch.equal(base, base_weight(clients[0][0]))


def test_bounded_adapters_take_truncated_averages_exactly() -> None:
    clients = [trained(seed, bounded) for seed in range(3)]
    results = aggregate(clients, "flexlora")
    start_round(clients[0], results)
    update = member(clients[0][0])()
    broadcast = results["0.weight"].broadcast
    assert broadcast is not None
    assert results["0.weight"].feasible_set.contains(broadcast)
    assert torch.allclose(broadcast.to_dense(), update.to_dense(), rtol=0, atol=1e-12)


def test_private_results_start_a_round() -> None:
    clients = [trained(seed, bounded) for seed in range(3)]
    results = private_merge(clients, epsilon=1.0, delta=1e-5)
    start_round(clients[0], results)
    update = member(clients[0][0])().to_dense()
    # The private mean is in the Frobenius ball, which is larger than the declared spectral one.
    nearest = bounded((6, 5)).feasible_set.project(results["0.weight"].operator)
    assert torch.allclose(nearest.to_dense(), update, rtol=0, atol=1e-12)


def test_start_round_refuses_other_models() -> None:
    client = trained(0)
    results = aggregate([client], "flora")
    with pytest.raises(TargetError, match="these differ"):
        start_round(client, {"0.weight": results["0.weight"]})
    swapped = {**results, "0.weight": results["2.out_proj.weight"]}
    with pytest.raises(ShapeError, match="shapes of the model"):
        start_round(client, swapped)
    merge(client)
    with pytest.raises(AdapterStateError, match="not merged"):
        start_round(client, results)
