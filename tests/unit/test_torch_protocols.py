"""Every parameterization is an ordinary module: copies, dtypes, transforms, compilation."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

import lowrank_opt as lo
from tests.oracles import D, dense, fill, normal

SHAPE = (6, 5)
MAKERS = {
    "Factored": lambda **k: lo.Factored(SHAPE, 3, **k),
    "NBLoRA": lambda **k: lo.NBLoRA(SHAPE, 3, radius=0.7, **k),
    "NBLoRA skew": lambda **k: lo.NBLoRA(SHAPE, 3, radius=0.7, skew=True, **k),
    "NBLoRA p": lambda **k: lo.NBLoRA(SHAPE, 3, radius=0.7, p=1.5, **k),
    "NBLoRA ky fan": lambda **k: lo.NBLoRA(SHAPE, 3, radius=0.7, ky_fan=2, **k),
    "NBLoRA bounds": lambda **k: lo.NBLoRA(SHAPE, 3, bounds=[1.0, 2.0, 0.5], **k),
    "HomogeneousBall": lambda **k: lo.HomogeneousBall(SHAPE, 3, radius=0.7, **k),
    "HomogeneousBall p": lambda **k: lo.HomogeneousBall(SHAPE, 3, radius=0.7, p=1.5, **k),
    "DeLoRA": lambda **k: lo.DeLoRA(SHAPE, 3, radius=0.7, **k),
    "DeLoRA paper": lambda **k: lo.DeLoRA(SHAPE, 3, radius=0.7, variant="paper", **k),
    "DeLoRA peft": lambda **k: lo.DeLoRA(SHAPE, 3, radius=0.7, variant="peft", **k),
    "DeLoRA author": lambda **k: lo.DeLoRA(
        SHAPE,
        3,
        radius=0.7,
        variant="author",
        learn_radius=True,
        column_norms=torch.linspace(1, 2, 5),
        **k,
    ),
    "NestedSVD": lambda **k: lo.NestedSVD(normal(*SHAPE), lo.NBLoRA((4, 4), 2, radius=0.7, **k)),
    "Weighted": lambda **k: lo.Weighted(lo.DeLoRA(SHAPE, 2, radius=0.7, **k), torch.ones(6) * 2),
    "Offset": lambda **k: lo.Offset(fill(lo.NBLoRA(SHAPE, 2, radius=0.7, **k))),
    "DenseCore": lambda dtype=None, device=None, generator=None: lo.DenseCore(
        SHAPE, dtype=dtype, device=device
    ),
}
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


@every
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
    got = grad(lambda p: (functional_call(layer, p).to_dense() * G).sum())(parameters(layer))
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


@every
def test_vmap_over_stacked_modules(make):
    layers = [fill(make(dtype=D), seed=seed) for seed in range(3)]
    tensors, buffers = stack_module_state(layers)
    evaluate = lambda p, b: functional_call(layers[0], (p, b)).to_dense()  # noqa: E731
    expected = np.stack([dense(layer()) for layer in layers])
    got = vmap(evaluate)(tensors, buffers).detach()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@every
def test_gradcheck_of_entries(make):
    layer = fill(make(dtype=D), seed=4)
    names, rows, cols = list(parameters(layer)), torch.tensor([0, 5, 2]), torch.tensor([4, 0, 2])

    def value(*tensors):
        return functional_call(layer, dict(zip(names, tensors, strict=True))).entries(rows, cols)

    assert torch.autograd.gradcheck(value, tuple(layer.parameters()))


# One for each piece of numerics; a compilation takes seconds.
COMPILED = ["NBLoRA p", "HomogeneousBall p", "DeLoRA", "Offset"]


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
