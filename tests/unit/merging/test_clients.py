"""What may be a client, and what is refused."""

import math

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError, ShapeError, TargetError
from lowrank_opt.merging import adapter_updates, aggregate, lora_operators
from lowrank_opt.nn import adapt
from tests.unit.merging.cases import (
    M,
    N,
    R,
    random_clients,
)


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    g = torch.Generator().manual_seed(seed)
    adapt(model, lambda s: lo.Factored(s, rank=2, scaling=0.5, generator=g), targets="all-linear")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, generator=g)
    return model


def test_models_are_aggregated_matrix_by_matrix() -> None:
    models = [model_of(seed) for seed in range(3)]
    results = aggregate(models, "fedex", weights=[0.5, 0.25, 0.25])
    assert ["0.weight", "2.weight"] == list(results)
    single = aggregate(
        [adapter_updates(model)["2.weight"] for model in models], weights=[0.5, 0.25, 0.25]
    )
    assert torch.equal(single.update.to_dense(), results["2.weight"].update.to_dense())


def test_lora_state_dict_gives_operators() -> None:
    B, A = torch.randn(5, 2), torch.randn(2, 4)
    tensors = {"x.fc.lora_A.default.weight": A, "x.fc.lora_B.default.weight": B}
    (op,) = lora_operators(tensors, scaling={"x.fc": 2.0}).values()
    assert torch.allclose(2 * B @ A, op.to_dense())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["fc.weight"], "keys must end in"),
        (["fc.lora_A.weight"], "have one of them"),
        (["fc.lora_A.weight", "fc.lora_A.other.weight"], "second one"),
    ],
)
def test_lora_state_dict_refuses(keys: list[str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        lora_operators({key: torch.ones(2, 2) for key in keys})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "mean"}, OptionError, "method must be one of"),
        ({"weights": [0.5, 0.4, 0.0, 0.0]}, OptionError, "sum to 1"),
        ({"weights": [1.0]}, OptionError, "one nonnegative number for each of 4"),
        ({"weights": [1.5, -0.5, 0.0, 0.0]}, OptionError, "nonnegative"),
        ({"weights": [math.nan, 1.0, 0.0, 0.0]}, OptionError, "nonnegative"),
        ({"method": "ffa"}, OptionError, "frozen right factor"),
        ({"method": "fair", "regularization": -1.0}, OptionError, "nonnegative"),
        ({"method": "fair", "objective": "l1"}, OptionError, "objective must be one of"),
        ({"method": "fedit", "rank": 2}, OptionError, "rank is that of 'flexlora'"),
        ({"method": "flexlora", "rank": 8}, RankError, r"1\.\.7"),
        ({"feasible_set": [lo.RankAtMost(2)]}, OptionError, "one for each of 4"),
        ({"feasible_set": {"a": lo.RankAtMost(2)}}, TargetError, "entry for each matrix"),
    ],
)
def test_aggregate_refuses_options(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        aggregate(random_clients(), **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


BAD = torch.full((M, R), math.nan)
EYE = lo.LowRankOperator.from_dense(torch.eye(3))


@pytest.mark.parametrize(
    ("clients", "error", "message"),
    [
        ([], OptionError, "at least one client"),
        ([(BAD, torch.ones(N, R))], TargetError, "client 0 has NaN"),
        ([(torch.ones(M, R), torch.ones(R, N))], ShapeError, r"pass \(B, A.mT\)"),
        ([EYE, lo.LowRankOperator.from_dense(torch.eye(4))], ShapeError, "one m x n matrix"),
        ([EYE, EYE.truncate(1)], RankError, "clients of one rank"),
        ([EYE, {"a": EYE}], TargetError, "or all send whole models"),
        ([{"a": EYE}, {"b": EYE}], TargetError, "the same matrices"),
        ([nn.Linear(2, 2)], TargetError, "one active adapter"),
        ([torch.eye(3)], TargetError, "client 0 is Tensor"),
        ([EYE.to(dtype=torch.float64) * 1e301], TargetError, "must not exceed"),
    ],
)
def test_aggregate_refuses_clients(
    clients: list[lo.LowRankOperator], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        aggregate(clients, "fedit")


def test_reference_is_refused_where_it_has_no_meaning() -> None:
    with pytest.raises(OptionError, match="average both factors"):
        aggregate([EYE], "flora", reference=EYE)
    with pytest.raises(ShapeError, match="shape and rank of the clients"):
        aggregate([EYE], "fedit", reference=EYE.truncate(1))
