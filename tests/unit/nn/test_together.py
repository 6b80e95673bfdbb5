"""Updates that are evaluated in one stacked call are what each would be by itself."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, disabled, switch, unload
from lowrank_opt.nn.adapters import together
from lowrank_opt.parameterizations.catalog import examples
from tests.oracles import normal
from tests.unit.nn.test_evaluation import WRITES

LAYERS = 4


def ball(shape, radius=0.5):
    return lo.NBLoRA(shape, 2, radius=radius)


def adapted(make=ball, *, layers=LAYERS, away=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(layers)]).double()
    adapt(model, make, targets=".*", **options)
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad and away):
            p.add_(normal(*p.shape, 1, seed=k)[..., 0], alpha=0.3)
    return model


def alone(model, x):
    """Call the layers one by one: no pass of the whole begins."""
    for layer in model:
        x = layer(x)
    return x


def whole(model, x):
    return model(x)


def members(model):
    return [weight.updates[0] for weight in adapted_weights(model)]


def gradients(model, loss, **options):
    free = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, free, allow_unused=True, **options)


def assert_close(one, other):
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.fixture
def counted(monkeypatch):
    """Return a list of how many updates each stacked evaluation had."""
    sizes, evaluate = [], together.evaluate_together
    monkeypatch.setattr(
        together, "evaluate_together", lambda xs: sizes.append(len(xs)) or evaluate(xs)
    )
    return sizes


X = normal(3, 6)
NAMES = [method.name for method in examples()]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_single_layers(name):
    (method,) = (x for x in examples() if x.name == name)
    made = [method.make((6, 6), 2, dtype=torch.float64) for _ in range(LAYERS)]
    inner = [x.inner if isinstance(x, lo.WeightDecomposed) else x for x in made]
    waiting = iter(inner)
    model = adapted(lambda shape: next(waiting), magnitude=inner[0] is not made[0])
    found = [(y := call(model, X), gradients(model, y.square().sum())) for call in (whole, alone)]
    assert_close(*((y, *(g for g in own if g is not None)) for y, own in found))
    assert [g is None for g in found[0][1]] == [g is None for g in found[1][1]]


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_exactly_the_base_model(name):
    (method,) = (x for x in examples() if x.name == name)
    made = [method.make((6, 6), 2, dtype=torch.float64) for _ in range(LAYERS)]
    inner = iter([x.inner if isinstance(x, lo.WeightDecomposed) else x for x in made])
    model = adapted(lambda shape: next(inner), away=False)
    assert torch.equal(whole(model, X), alone(model, X))


def test_one_evaluation_is_for_all_alike_layers_of_one_pass(counted):
    model = adapted()
    for _ in range(2):
        whole(model, X).sum().backward()
    alone(model, X).sum().backward()
    assert [LAYERS, LAYERS] == counted


def test_layers_that_differ_are_not_stacked(counted):
    model = adapted(radius_pattern={"2": 0.1})
    whole(model, X)
    assert [LAYERS - 1] == counted


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("when", [0, 2])
def test_factors_are_never_stale_whatever_happens_in_a_pass(write, when):
    found = []
    for call in (whole, alone):
        model = adapted()

        def change(*_, model=model):
            with torch.no_grad():
                write(members(model)[2])

        model[when].register_forward_pre_hook(change)
        y = call(model, X)
        found.append((y, *(g for g in gradients(model, y.sum()) if g is not None)))
    assert_close(*found)


@pytest.mark.parametrize("attribute", [("p", 1.5), ("_set", lo.SchattenBall(float("inf"), 0.1, 2))])
@pytest.mark.parametrize("which", range(LAYERS))
def test_attributes_that_are_set_in_a_pass_count(attribute, which):
    found = []
    for call in (whole, alone):
        model = adapted()
        model[1].register_forward_pre_hook(
            lambda *_, model=model: setattr(members(model)[which], *attribute)
        )
        found.append((call(model, X),))
    assert_close(*found)


class Towers(nn.Module):
    """Runs its layers side by side."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, chosen=range(LAYERS)):
        return [self.layers[i](x) for i in chosen]


def towers():
    torch.manual_seed(0)
    model = Towers([nn.Linear(6, 6) for _ in range(LAYERS)]).double()
    adapt(model, ball, targets=".*")
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(normal(*p.shape, seed=k))
    return model


def single(model, i):
    """Return the gradients of one layer's parameters from a call of that layer alone."""
    layer = model.layers[i]
    return gradients(layer, layer(X).square().sum())


def test_losses_of_one_pass_are_differentiated_one_after_the_other(counted):
    model = towers()
    outputs = model(X)
    for i in (2, 0, 3, 1):
        outputs[i].square().sum().backward()
        own = [p.grad for p in model.layers[i].parameters() if p.requires_grad]
        assert_close(own, single(model, i))
    assert [LAYERS] == counted


def test_passes_are_differentiated_in_any_order(counted):
    model = towers()
    first, second = model(X), model(2 * X)
    for outputs in (second, first):
        sum(y.sum() for y in outputs).backward()
    assert [LAYERS, LAYERS] == counted


def test_layers_that_are_not_used_get_no_gradient():
    model = towers()
    sum(y.sum() for y in model(X, [1, 3])).backward()
    used = [all(p.grad is not None for p in members(model)[i].parameters()) for i in range(LAYERS)]
    none = [all(p.grad is None for p in members(model)[i].parameters()) for i in range(LAYERS)]
    assert ([False, True] * 2, [True, False] * 2) == (used, none)


def test_a_step_between_forward_and_backward_leaves_the_gradient_of_the_forward():
    model = towers()
    outputs, expected = model(X), single(model, 2)
    with torch.no_grad():
        for p in model.layers[0].parameters():
            p.mul_(2.0)
    outputs[2].square().sum().backward()
    assert_close([p.grad for p in members(model)[2].parameters()], expected)


def test_second_derivatives_are_those_of_single_layers():
    found = []
    for call in (whole, alone):
        model = adapted()
        first = gradients(model, call(model, X).square().sum(), create_graph=True)
        found.append(gradients(model, sum(g.square().sum() for g in first)))
    assert_close(*found)


def test_a_graph_can_be_kept():
    model = adapted()
    loss = whole(model, X).square().sum()
    assert_close(gradients(model, loss, retain_graph=True), gradients(model, loss))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_frozen_parts_of_one_layer_stay_frozen():
    model = adapted()
    next(members(model)[1].parameters()).requires_grad_(False)
    found = [gradients(model, call(model, X).sum()) for call in (whole, alone)]
    assert_close(*found)


def test_switching_between_forward_and_backward_is_followed():
    model = adapted()
    adapt(model, ball, targets=".*", name="second")
    switch(model, "default")
    free = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(alone(model, X).sum(), free)
    y = whole(model, X)
    switch(model, "second")
    y.sum().backward()
    assert_close([p.grad for p in free], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_evaluated_by_themselves(counted, reentrant):
    model, x = adapted(), X.clone().requires_grad_()
    expected = gradients(model, alone(model, x).sum())
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert_close([p.grad for p in model.parameters() if p.requires_grad], expected)


def test_hooks_of_parameters_see_gradients_only(counted):
    model, seen = towers(), []
    members(model)[0].left_rows.register_hook(lambda g: seen.append(g.shape))
    sum(y.sum() for y in model(X, [1, 3])).backward()
    assert ([], [LAYERS - 1]) == (seen, counted)


def test_transforms_see_single_layers(counted):
    model = adapted()
    own = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def loss(own):
        return torch.func.functional_call(model, own, (X,)).square().sum()

    found = torch.func.grad(loss)(own)
    assert_close(found.values(), gradients(model, alone(model, X).square().sum()))
    assert [] == counted


def test_other_parameters_are_followed():
    model, other = adapted(), adapted(away=False)
    own = {k: p for k, p in other.named_parameters() if p.requires_grad}
    y = torch.func.functional_call(model, own, (X,))
    expected = alone(other, X)
    assert_close((y, *gradients(other, y.sum())), (expected, *gradients(other, expected.sum())))


class Product(lo.Parameterization):
    """Multiplies in the dtype of its parameters, which autocast changes."""

    def __init__(self, shape):
        super().__init__(shape, 2)
        self.left = nn.Parameter(normal(shape[0], 3).float())
        self.core = nn.Parameter(torch.zeros(3, 2))

    def factors(self):
        left = self.left @ self.core
        return lo.LowRankOperator(left, left.new_ones(2), left)


def test_autocast_is_followed(counted):
    found = []
    for call in (whole, alone):
        model = adapted(Product).float()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(call(model, X.float()).float())
    torch.testing.assert_close(*found, rtol=0, atol=0.01)
    assert [LAYERS] == counted


def test_an_error_ends_the_pass(counted):
    model = adapted()
    with pytest.raises(RuntimeError, match="shapes"):
        model(X[:, :3])
    alone(model, X)
    assert [LAYERS] == counted


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_stacked_too_and_apart(counted, copied):
    model = adapted()
    other = copied(model)
    with torch.no_grad():
        members(model)[2].left_rows.zero_()
    whole(model, X)
    assert_close((whole(other, X),), (alone(other, X),))
    assert [LAYERS, LAYERS] == counted


def test_nothing_is_left_of_unloaded_models():
    model = unload(adapted())
    assert (0, 0) == (len(model._forward_pre_hooks), len(model._forward_hooks))


def test_a_pass_of_the_base_model_evaluates_nothing(counted):
    model = adapted()
    with disabled(model):
        whole(model, X)
    with torch.no_grad():
        whole(model, X)
    assert [] == counted


class Operations(TorchDispatchMode):
    """Counts what torch is asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(make):
    """Return the operations of one step, in each layer of a model of two dozen."""
    model = adapted(make, layers=24).float()
    x = X.float().requires_grad_()
    with Operations() as counter:
        whole(model, x).sum().backward()
    return counter.count / 24


@pytest.mark.parametrize(
    "make",
    [
        ball,
        lambda shape: lo.HomogeneousBall(shape, 2, radius=1.0),
        lambda shape: lo.DeLoRA(shape, 2, radius=1.0),
    ],
)
def test_a_step_has_few_more_operations_than_that_of_lora(make):
    # PEFT's LoRA has 26.
    assert operations(make) <= 1.5 * 26
