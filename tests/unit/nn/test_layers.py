import math

import pytest
import torch
import torch.nn.functional as F

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.nn import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankEmbedding,
    LowRankLinear,
)
from lowrank_opt.testing import forbid_dense


def random_ball(shape: tuple[int, int], rank: int = 2) -> lo.Parameterization:
    ball = lo.HomogeneousBall(shape, rank, radius=3.0, dtype=torch.float64)
    return ball.assign(torch.randn(*shape, dtype=torch.float64), project=True)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_linear_is_the_dense_layer() -> None:
    layer, x = LowRankLinear(random_ball((6, 4))), randn(3, 5, 4)
    torch.nn.init.normal_(layer.bias)
    expected = F.linear(x, layer.weight().to_dense(), layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_embedding_is_the_dense_table() -> None:
    layer, indices = LowRankEmbedding(random_ball((9, 4))), torch.tensor([[0, 8], [3, 3]])
    torch.testing.assert_close(layer(indices), F.embedding(indices, layer.weight().to_dense()))


def test_embedding_gives_the_padding_row_no_gradient() -> None:
    layer = LowRankEmbedding(random_ball((9, 4)), padding_idx=-2)
    layer(torch.tensor([7, 7])).sum().backward()
    assert all(0.0 == float(p.grad.abs().sum()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "x"),
    [
        (LowRankConv1d, {"stride": 2, "padding": 1}, (2, 4, 9)),
        (LowRankConv1d, {"groups": 2, "padding": "same", "padding_mode": "reflect"}, (2, 4, 9)),
        (LowRankConv2d, {"dilation": (2, 1), "padding": "same"}, (4, 7, 8)),
        (LowRankConv2d, {"groups": 4, "padding_mode": "circular", "padding": (1, 2)}, (2, 4, 7, 8)),
        (LowRankConv3d, {"groups": 2, "padding": "valid"}, (2, 4, 5, 5, 5)),
    ],
)
def test_convolution_is_the_dense_one(kind: type, options: dict, x: tuple[int, ...]) -> None:
    d, groups = kind.dimensions, options.get("groups", 1)
    layer = kind(random_ball((8, 4 // groups * 3**d)), 3, **options)
    torch.nn.init.normal_(layer.bias)
    dense = getattr(torch.nn, f"Conv{d}d")(4, 8, 3, dtype=torch.float64, **options)
    with torch.no_grad():
        dense.weight.copy_(layer.weight().to_dense().view_as(dense.weight))
        dense.bias.copy_(layer.bias)
    inputs = randn(*x)
    torch.testing.assert_close(layer(inputs), dense(inputs))


@pytest.mark.parametrize(
    ("build", "variance"),
    [
        (LowRankLinear, 1 / 36),
        (LowRankEmbedding, 1.0),
        (lambda weight, **given: LowRankConv1d(weight, 3, **given), 1 / 36),
    ],
)
@pytest.mark.parametrize("radius", [0.5, 100.0])
def test_start_is_the_member_nearest_to_a_random_matrix(build, variance, radius) -> None:
    ball = lo.NBLoRA((9, 12), 2, radius=radius, dtype=torch.float64)
    layer = build(ball, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    A, B = (torch.randn(n, 2, dtype=torch.float64, generator=generator) for n in (9, 12))
    U, sigma, Vh = torch.linalg.svd(A @ B.mT * math.sqrt(variance / 2))
    nearest = U[:, :2] * sigma[:2].clamp_max(radius) @ Vh[:2]
    torch.testing.assert_close(nearest, layer.weight().to_dense())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (LowRankLinear(random_ball((97, 89))), randn(3, 89)),
        (LowRankEmbedding(random_ball((97, 89))), torch.tensor([1, 96])),
        (LowRankConv1d(random_ball((97, 90)), 3), randn(1, 30, 5)),
    ],
)
def test_forward_and_backward_form_no_dense_weight(layer: torch.nn.Module, x: torch.Tensor) -> None:
    with forbid_dense((97, 89)):
        layer(x).sum().backward()


def test_bounded_layer_stays_in_its_ball_under_training() -> None:
    layer = LowRankLinear(lo.NBLoRA((6, 4), 2, radius=0.5), bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        (-layer(torch.ones(1, 4)).sum()).backward()
        optimizer.step()
    assert layer.weight.feasible_set.contains(layer.weight())


def test_kernel_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"out, in / groups \* prod\(kernel\).*got \(8, 10\)"):
        LowRankConv1d(lo.Factored((8, 10), 2), 3)


def test_padding_row_outside_the_table_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"padding_idx must be in -9\.\.8; got 9"):
        LowRankEmbedding(lo.Factored((9, 4), 2), padding_idx=9)


def test_kernel_of_the_wrong_dimension_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected 2 sizes"):
        LowRankConv2d(lo.Factored((8, 9), 2), (3, 3, 3))
