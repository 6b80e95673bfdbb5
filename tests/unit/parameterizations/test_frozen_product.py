"""Products with a frozen matrix, in blocks, against dense ones; layers that are made of them."""

import pytest
import torch
from torch.func import vmap

import lowrank_opt as lo
from lowrank_opt.linalg import frozen, frozen_product, frozen_row_norms
from lowrank_opt.nn import adapt, adapted_weights
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.testing import forbid_dense
from tests.builders import normal

FACTOR = torch.tensor(0.25, dtype=torch.float64)
# More numbers than one block holds.
SHAPE = (500, 300)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_BLOCK", 20)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [None, FACTOR])
@pytest.mark.parametrize("transposed", [False, True])
def test_frozen_product_and_its_derivatives_equal_the_dense_ones(dtype, factor, transposed):
    weight, right = normal(9, 7, dtype=dtype), normal(7, 2, seed=1)
    weight, right = (weight.mT, normal(9, 2, seed=1)) if transposed else (weight, right)
    right.requires_grad_()
    expected = weight.double() * (1 if factor is None else factor) @ right
    torch.testing.assert_close(frozen_product(weight, right, factor), expected)

    def product(x: torch.Tensor) -> torch.Tensor:
        return frozen_product(weight, x, factor).square()

    assert torch.autograd.gradcheck(product, right, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, right)
    many = normal(3, *right.shape, seed=2)
    each = torch.stack([frozen_product(weight, x, factor) for x in many])
    torch.testing.assert_close(vmap(lambda x: frozen_product(weight, x, factor))(many), each)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1e-310, 1e-200, 1.0, 1e200, 1e307])
def test_frozen_row_norms_equal_the_dense_ones_at_any_size(size):
    unit = normal(9, 7).clamp(-1, 1)
    factor = torch.tensor(2.0**1000 if size < 1 else 1 / max(size, 1.0), dtype=torch.float64)
    expected = torch.linalg.vector_norm(size * unit * factor, dim=1)
    torch.testing.assert_close(frozen_row_norms(size * unit, factor), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("extreme", ["smallest_normal", "max"])
def test_frozen_row_norms_of_narrow_numbers_are_exact(dtype, extreme):
    weight = torch.full(SHAPE, getattr(torch.finfo(dtype), extreme), dtype=dtype)
    with forbid_dense(SHAPE):
        norms = frozen_row_norms(weight, FACTOR)
    expected = FACTOR * SHAPE[1] ** 0.5 * weight[:, 0].double()
    torch.testing.assert_close(norms, expected, rtol=1e-14, atol=0)


def test_frozen_product_gives_the_weight_no_gradient():
    weight, right = normal(3, 2, dtype=torch.float32).requires_grad_(), normal(2, 1)
    assert not frozen_product(weight, right).requires_grad


def test_compiled_product_is_one_graph_with_the_same_gradient():
    weight, right = normal(5, 4, dtype=torch.float32), normal(4, 2, seed=1).requires_grad_()
    compiled = torch.compile(frozen_product, backend="eager", fullgraph=True)
    for product in (frozen_product, compiled):
        product(weight, right, FACTOR).sum().backward()
    torch.testing.assert_close(
        right.grad, 2 * FACTOR * weight.double().sum(0)[:, None].expand(4, 2)
    )


def decomposed(base: torch.nn.Module) -> torch.nn.Module:
    return adapt(base, lambda shape: lo.Factored(shape, 2), targets=".*", magnitude=True)


def layer(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> torch.nn.Module:
    m, n = SHAPE
    module = decomposed(torch.nn.Linear(n, m, bias=bias))
    with torch.no_grad():
        for k, p in enumerate(module.parameters()):
            p.copy_(normal(*p.shape, seed=k))
    return module.to(dtype)


def dense_output(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the layer's output in float64; norms are constants."""
    (found,) = adapted_weights(module)
    V = found.slot.parameter.double() + found.updates[0]().to_dense().double()
    rows = V / torch.linalg.vector_norm(V.detach(), dim=1, keepdim=True)
    y = x.double() @ (found.magnitude.lengths[0].double().unsqueeze(1) * rows).mT
    return y if module.bias is None else y + module.bias.double()


@pytest.mark.parametrize("bias", [False, True])
def test_decomposed_layer_and_its_gradients_equal_the_dense_ones(bias):
    module = layer(torch.float64, bias=bias)
    x = normal(3, SHAPE[1], seed=9).requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    y, expected = module(x), dense_output(module, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_decomposed_layer_starts_at_the_base_layer(dtype):
    base, x = torch.nn.Linear(SHAPE[1], SHAPE[0]).to(dtype), normal(3, SHAPE[1]).to(dtype)
    expected = base(x)
    assert torch.equal(expected, decomposed(base)(x))


def change_in_place(module: torch.nn.Module) -> None:
    with torch.no_grad():
        stored(module, "weight")[3:7].mul_(5)


def change_data(module: torch.nn.Module) -> None:
    stored(module, "weight").data.mul_(-3)


def load_state(module: torch.nn.Module) -> None:
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()})


def assign_state(module: torch.nn.Module) -> None:
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)


def change_dtype(module: torch.nn.Module) -> None:
    module.to(torch.float64)


@pytest.mark.parametrize(
    "change", [change_in_place, change_data, load_state, assign_state, change_dtype]
)
def test_decomposed_layer_sees_every_change_of_its_weight(change):
    module, x = layer(), normal(3, SHAPE[1], dtype=torch.float32)
    before = module(x).detach()
    change(module)
    x = x.to(module.weight.dtype)
    expected = dense_output(module, x).to(x.dtype)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-4)
    assert change is change_dtype or not torch.allclose(before, expected)


@pytest.mark.parametrize(
    "make",
    [
        layer,
        lambda: lo.WeightDecomposed(
            lo.Factored(SHAPE, 2), normal(*SHAPE).float(), detach_norm=False
        ),
    ],
    ids=["detached", "differentiated"],
)
def test_norms_of_a_decomposed_layer_allocate_no_matrix(make):
    module, x = make(), normal(2, SHAPE[1]).float()
    given = (x,) if isinstance(module, torch.nn.Linear) else (x, normal(*SHAPE).float())
    with forbid_dense(SHAPE):
        module(*given).sum().backward()


def test_a_decomposed_layer_evaluates_its_update_once(monkeypatch):
    module, count = layer(), []
    (inner,) = next(iter(adapted_weights(module))).updates
    factors = inner.factors
    monkeypatch.setattr(inner, "factors", lambda: count.append(1) or factors())
    module(normal(2, SHAPE[1]).float())
    assert [1] == count


def test_all_rows_may_cancel_in_a_large_layer():
    weight = normal(SHAPE[0], 1) @ normal(1, SHAPE[1], seed=1)
    module = lo.WeightDecomposed(lo.Factored(SHAPE, 1, dtype=torch.float64), weight)
    module.inner.assign(-weight * (1 - 2.0**-24))
    V = weight + module.inner().to_dense()
    torch.testing.assert_close(
        module.row_norms(weight), torch.linalg.vector_norm(V, dim=1), rtol=1e-6, atol=0
    )
