"""Every parameterization is an ordinary module: copies, dtypes, transforms, compilation."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

import lowrank_opt as lo
from lowrank_opt.parameterizations.catalog import examples
from tests.oracles import D, dense, fill, normal

SHAPE = (6, 5)
MAKERS = {
    **{e.name: partial(e.make, SHAPE, 3) for e in examples() if "WeightDecomposed" not in e.name},
    "DeLoRA column norms": partial(
        lo.DeLoRA, SHAPE, 3, radius=0.7, column_norms=torch.linspace(1, 2, 5)
    ),
    "DenseCore": partial(lo.DenseCore, SHAPE),
}
# What is random in the others comes from a fixed seed.
RANDOM = {k: make for k, make in MAKERS.items() if isinstance(make.func, type) and k != "DenseCore"}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def parameters(layer):
    return {k: p.detach().clone() for k, p in layer.named_parameters()}


@every
def test_state_dict_restores_the_value(make):
    layer, other = fill(make(dtype=D), seed=1), fill(make(dtype=D), seed=2)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream))
    np.testing.assert_array_equal(dense(other()), dense(layer()))


@every
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_value_and_share_nothing(make, copier):
    layer = fill(make(dtype=D), seed=1)
    before = dense(layer())
    other = copier(layer)
    np.testing.assert_array_equal(dense(other()), before)
    fill(other, seed=2)
    np.testing.assert_array_equal(dense(layer()), before)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_other_dtype_keeps_the_set_and_nearly_the_value(make, dtype):
    layer = fill(make(dtype=D), seed=1)
    before = dense(layer())
    op = layer.to(dtype)()
    assert {dtype} == {x.dtype for x in op}
    assert layer.feasible_set.contains(op)
    np.testing.assert_allclose(dense(op), before, rtol=0, atol=300 * torch.finfo(dtype).eps)


@every
def test_double_stays_in_the_set_of_float64(make):
    layer = fill(make(dtype=torch.float32), seed=1).double()
    assert D == layer().dtype
    assert layer.feasible_set.contains(layer())


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_generator_makes_starts_repeat(make):
    a, b = (make(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    equal = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(equal)


@every
def test_evaluation_changes_nothing(make):
    layer = fill(make(dtype=D))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    first, second = dense(layer()), dense(layer())
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@every
def test_function_transform_has_the_gradient_of_backward(make):
    layer, G = fill(make(dtype=D)), normal(*SHAPE, seed=9)
    (layer().to_dense() * G).sum().backward()
    got = grad(lambda p: (functional_call(layer, p, ()).to_dense() * G).sum())(parameters(layer))
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


@every
def test_vmap_over_stacked_modules(make):
    layers = [fill(make(dtype=D), seed=seed) for seed in range(3)]
    tensors, buffers = stack_module_state(layers)
    evaluate = lambda p, b: functional_call(layers[0], (p, b), ()).to_dense()  # noqa: E731
    expected = np.stack([dense(layer()) for layer in layers])
    got = vmap(evaluate)(tensors, buffers).detach()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@every
def test_gradcheck_of_entries(make):
    layer = fill(make(dtype=D), seed=4)
    names, rows, cols = list(parameters(layer)), torch.tensor([0, 5, 2]), torch.tensor([4, 0, 2])

    def value(*tensors):
        return functional_call(layer, dict(zip(names, tensors, strict=True)), ()).entries(
            rows, cols
        )

    assert torch.autograd.gradcheck(value, tuple(layer.parameters()))


# One for each piece of numerics; a compilation takes seconds.
COMPILED = [
    "NBLoRA(radius, p)",
    "HomogeneousBall(radius, p)",
    "DeLoRA(radius)",
    "Offset(inner)",
    "SpectralLoRA(radius)",
    "SVDFrames(radius)",
]


@pytest.mark.parametrize("name", COMPILED)
def test_whole_graph_compiles(name):
    layer, x = fill(MAKERS[name](dtype=D)), normal(2, 5)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: layer().linear(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer().linear(x))
    compiled(x).sum().backward()
    assert any(bool(p.grad.any()) for p in layer.parameters())


def test_forward_hooks_see_the_operator():
    layer, seen = lo.Factored(SHAPE, 2), []
    layer.register_forward_hook(lambda module, inputs, op: seen.append(op.shape))
    layer()
    assert [SHAPE] == seen


@every
def test_modules_move_to_the_meta_device(make):
    assert {"meta"} == {str(p.device) for p in copy.deepcopy(make()).to("meta").parameters()}
