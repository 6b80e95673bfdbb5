"""Writing to a weight that is computed is refused, and changes nothing; to the base, it is seen."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_map

import lowrank_opt as lo
from lowrank_opt.nn import AdapterStateError, adapt, disabled, merge, unmerge


def make(shape):
    return lo.Factored(shape, min(2, *shape))


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), "weight", (torch.ones(5, 3),)),
    "convolution": (lambda: nn.Conv1d(3, 4, 2), "weight", (torch.ones(2, 3, 6),)),
    "embedding": (lambda: nn.Embedding(6, 4), "weight", (torch.tensor([[1, 2]]),)),
    "lstm": (lambda: nn.LSTM(3, 4), "weight_ih_l0", (torch.ones(2, 2, 3),)),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2),
        "in_proj_weight",
        (torch.ones(2, 2, 4),) * 3,
    ),
    "bilinear": (lambda: nn.Bilinear(3, 3, 2), "weight", (torch.ones(5, 3),) * 2),
}


def adapted(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapt(LAYERS[kind][0](), make, targets=lambda name, target: True)
        with torch.no_grad():
            for p in (p for p in model.parameters() if p.requires_grad):
                p.copy_(0.3 * torch.randn(p.shape))
    return model.eval()


def output(model, kind):
    y = model(*LAYERS[kind][2])
    return (y[0] if isinstance(y, tuple) else y).detach().clone()


def times_two(layer, name):
    weight = getattr(layer, name)
    weight *= 2


WRITES = {
    "init": lambda layer, name: nn.init.xavier_uniform_(getattr(layer, name)),
    "init data": lambda layer, name: nn.init.zeros_(getattr(layer, name).data),
    "data": lambda layer, name: getattr(layer, name).data.copy_(torch.ones(())),
    "new data": lambda layer, name: setattr(getattr(layer, name), "data", torch.ones(2)),
    "detach": lambda layer, name: getattr(layer, name).detach().zero_(),
    "mul_": lambda layer, name: getattr(layer, name).mul_(2),
    "*=": times_two,
    "item": lambda layer, name: getattr(layer, name).__setitem__(0, 1.0),
    "row": lambda layer, name: getattr(layer, name)[0].zero_(),
    "rows": lambda layer, name: getattr(layer, name).unbind()[0].zero_(),
    "view": lambda layer, name: getattr(layer, name).flatten().view(-1).fill_(3),
    "transposed": lambda layer, name: getattr(layer, name).transpose(0, 1).mul_(2),
    "out": lambda layer, name: torch.neg(torch.ones(1), out=getattr(layer, name)),
    "inplace": lambda layer, name: nn.functional.relu(getattr(layer, name), inplace=True),
    "foreach": lambda layer, name: torch._foreach_mul_([getattr(layer, name)], 2.0),
    "aten": lambda layer, name: torch.ops.aten.mul_.Tensor(getattr(layer, name), torch.ones(1)),
    "flag": lambda layer, name: getattr(layer, name).requires_grad_(True),
    "parameter": lambda layer, name: setattr(layer, name, nn.Parameter(torch.ones(4, 4))),
    "registered": lambda layer, name: layer.register_parameter(name, nn.Parameter(torch.ones(1))),
    "none": lambda layer, name: setattr(layer, name, None),
    "deleted": lambda layer, name: delattr(layer, name),
    "tied": lambda layer, name: setattr(nn.Linear(2, 2), "weight", getattr(layer, name)),
    "pruned": lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
    "weight norm": lambda layer, name: parametrizations.weight_norm(layer, name),
    "spectral norm": lambda layer, name: nn.utils.spectral_norm(layer, name),
    "older weight norm": lambda layer, name: nn.utils.weight_norm(layer, name),
    "numpy": lambda layer, name: getattr(layer, name).detach().numpy().fill(0),
}
STATES = {
    "active": lambda model: None,
    "frozen": lambda model: model.requires_grad_(False),
    "merged": merge,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("write", WRITES)
def test_write_to_an_adapted_weight_is_refused(write, kind, state):
    model, name = adapted(kind), LAYERS[kind][1]
    STATES[state](model)
    before, y = copy.deepcopy(model.state_dict()), output(model, kind)
    with torch.no_grad(), pytest.raises((AdapterStateError, ValueError)):
        WRITES[write](model, name)
    torch.testing.assert_close(before, model.state_dict(), rtol=0, atol=0)
    assert torch.equal(y, output(model, kind))


def test_message_of_a_write():
    model = adapted("linear")
    with pytest.raises(AdapterStateError, match=r"cannot be written to; got 'zero'.*disabled\(mod"):
        model.weight.data.zero_()


def test_methods_of_torch_layers_that_write_are_refused():
    # Their forward reads plain tensors, for the sake of fused kernels; what else they do does not.
    model = adapt(nn.Sequential(nn.Linear(4, 4)), lambda s: lo.NBLoRA(s, 2), targets="all-linear")
    with pytest.raises(AdapterStateError, match="cannot be written to"):
        model[0].reset_parameters()


def test_deletion_of_an_adapted_weight_names_it():
    with pytest.raises(AdapterStateError, match="cannot be deleted; got 'weight'"):
        del adapted("linear").weight


def test_what_an_adapter_has_of_its_own_is_not_set_to_none():
    model = adapt(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make, targets="0",
                  modules_to_train="1")  # fmt: skip
    with pytest.raises(AdapterStateError, match="stays one; got None for 'bias'"):
        model[1].bias = None


@pytest.mark.parametrize("kind", LAYERS)
def test_readers_get_what_they_did(kind):
    model, name = adapted(kind), LAYERS[kind][1]
    weight = getattr(model, name)
    assert isinstance(weight, nn.Parameter)
    plain = weight.detach().clone().mul_(1)
    assert type(plain) is torch.Tensor
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight.detach().clone()))):
        assert torch.equal(plain, copied)
    assert type(weight @ weight.new_ones(weight.shape[-1])) is torch.Tensor
    (gradient,) = torch.autograd.grad(weight.square().sum(), weight)
    assert torch.equal(2 * plain, gradient)


def test_attributes_of_the_parameter_are_read_and_written_through():
    model = adapted("linear")
    model.weight.tag = "mine"
    assert "mine" == model.weight.tag
    with disabled(model):
        assert "mine" == model.weight.tag


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("merged", [False, True])
def test_write_to_the_base_weight_is_seen(kind, merged):
    model, name = adapted(kind), LAYERS[kind][1]
    update = getattr(model, name).detach().clone()
    if merged:
        merge(model)
    with disabled(model), torch.no_grad():
        update -= getattr(model, name)
        getattr(model, name).fill_(0.25)
    torch.testing.assert_close(0.25 + update, getattr(model, name).detach())
    y = output(model, kind)
    if merged:
        unmerge(model)
        torch.testing.assert_close(output(model, kind), y)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_loaded_into_a_merged_model_is_seen(kind, assign):
    model, other = adapted(kind), adapted(kind)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    merge(model)
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    torch.testing.assert_close(output(other, kind), output(model, kind))
    unmerge(model)
    torch.testing.assert_close(output(other, kind), output(model, kind))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("kind", "merged"), [("linear", True), ("bilinear", False), ("lstm", False), ("lstm", True)]
)
def test_compiled_model_reads_the_same(backend, kind, merged):
    model = adapted(kind)
    if merged:
        merge(model)
    compiled = torch.compile(model, backend=backend)
    torch.testing.assert_close(output(model, kind), output(compiled, kind))


class Packed(Tensor):
    """A weight of a class of its own, as sharded and quantised ones are: a tensor inside."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    def to_local(self):
        return self.inner.view_as(self.inner)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Packed) else x, (args, kwargs))
        return tree_map(
            lambda x: Packed(x) if isinstance(x, Tensor) else x, func(*args, **kwargs or {})
        )


FOREIGN = ["init", "init data", "detach", "*=", "row", "view", "out", "local"]


@pytest.mark.parametrize("state", ["active", "merged"])
@pytest.mark.parametrize("write", FOREIGN)
def test_write_to_a_weight_of_a_foreign_class_is_refused(write, state):
    writes = {**WRITES, "local": lambda layer, name: getattr(layer, name).to_local().zero_()}
    model = adapted("linear")
    model._parameters["weight"] = nn.Parameter(Packed(model._parameters["weight"].data), False)
    STATES[state](model)
    before = model.weight.to_local().clone()
    assert isinstance(model.weight, nn.Parameter)
    assert isinstance(model.weight, Packed)
    assert type(2 * model.weight) is Packed
    with torch.no_grad(), pytest.raises(AdapterStateError):
        writes[write](model, "weight")
    assert torch.equal(before, model.weight.to_local())


class Product(torch.autograd.Function):
    """A product with a derivative of its own, as fused losses have it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.mT @ x


def test_functions_with_their_own_derivative_reach_the_adapter():
    model = adapted("linear").train()
    own = [p for p in model.parameters() if p.requires_grad]
    x = LAYERS["linear"][2][0]
    expected = torch.autograd.grad((model(x) - model.bias).square().sum(), own)
    found = torch.autograd.grad(Product.apply(x, model.weight).square().sum(), own)
    torch.testing.assert_close(found, expected)
