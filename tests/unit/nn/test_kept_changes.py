"""Whatever an adapter adds to a layer is computed once for many tokens, and is never stale."""

import copy
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.profiler import profile
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, disabled
from lowrank_opt.nn.adapters import evaluation
from lowrank_opt.nn.adapters.weights import settle
from lowrank_opt.nn.basis import memory
from lowrank_opt.nn.basis.products import Prepared
from lowrank_opt.parameterizations import oft
from lowrank_opt.parameterizations.catalog import examples
from tests.oracles import normal

NAMES = [method.name for method in examples()]
X = normal(2, 6)


def adapted(name, *, dtype=torch.float64, m=6, n=6, layer=nn.Linear, settled=False):
    """Return a layer with a method of the catalog that shares its weight, away from the start."""
    torch.manual_seed(0)
    model = layer(n, m).to(dtype)
    (method,) = (x for x in examples() if x.name == name)
    made = method.make((m, n), 2, dtype=dtype)
    decomposed = isinstance(made, lo.WeightDecomposed)
    inner = made.inner if decomposed else made
    if isinstance(getattr(inner, "weight", None), torch.Tensor):
        inner.weight = model.weight.detach()
    adapt(model, lambda shape: inner, targets=".*", magnitude=decomposed)
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(normal(*p.shape, 1, seed=k, dtype=dtype)[..., 0], alpha=0.3)
    if settled:
        (found,) = adapted_weights(model)
        settle(model, found, [0.5 * found.updates[0]().detach()])
    return model.eval()


def fresh(model, x):
    """Return what a copy, which has kept nothing, computes."""
    return copy.deepcopy(model)(x)


def places(model):
    """Return every tensor that the output depends on."""
    own = [*model.parameters(), *model.buffers()]
    return [x for x in own if x.is_floating_point() and x.numel()]


def scaled_past_the_counter(x):
    x.data.mul_(1.25)


def one_number_past_the_counter(x):
    x.data[(-1,) * x.ndim if x.ndim else ...] += 0.125


def one_row_past_the_counter(x):
    x.data[-1 if x.ndim else ...] *= 1.25


def in_place(x):
    x.mul_(1.25)


def elsewhere(x):
    x.data = 1.25 * x.data


WRITES = [
    scaled_past_the_counter, one_number_past_the_counter, one_row_past_the_counter, in_place,
    elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_kept_is_never_stale(name, monkeypatch):
    model = adapted(name)
    for write in WRITES:
        for x in places(model):
            assert torch.equal(model(X), model(X))
            write(x)
            torch.testing.assert_close(model(X), fresh(model, X), rtol=1e-12, atol=1e-12)
    kept = model(X)
    monkeypatch.setattr(evaluation, "_is_plain_call", lambda: False)
    torch.testing.assert_close(kept, model(X), rtol=1e-12, atol=1e-12)


OF_WEIGHTS = ["ETHER(weight, blocks=r)", "Orthogonal(weight, rank)", "hra(weight, 2 r)"]


@pytest.mark.parametrize("name", [*OF_WEIGHTS, "WeightDecomposed(inner, weight)"])
@pytest.mark.parametrize("write", [x for x in WRITES if x is not one_number_past_the_counter])
@torch.no_grad()
def test_writes_to_large_weights_are_seen(name, write):
    x, model = normal(2, 150), adapted(name, m=120, n=150)
    weight = model._parameters["weight"]
    model(x)
    write(weight)
    if write is elsewhere and name in OF_WEIGHTS:
        # It moved; what turns the weight has the old one.
        adapted_weights(model)[0].updates[0].weight = weight.detach()
    torch.testing.assert_close(model(x), fresh(model, x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_nothing_that_is_kept_holds_a_weight_that_was_replaced():
    model = adapted("WeightDecomposed(inner, weight)", m=120, n=150)
    model(normal(2, 150))
    weight = weakref.ref(model._parameters["weight"])
    with disabled(model):
        model.weight = nn.Parameter(normal(120, 150))
    assert weight() is None


@pytest.mark.parametrize("name", ["NBLoRA(radius)", "WeightDecomposed(inner, weight)"])
@torch.no_grad()
def test_settled_parts_count(name):
    model = adapted(name, settled=True)
    for write in WRITES:
        for x in places(model):
            model(X)
            write(x)
            torch.testing.assert_close(model(X), fresh(model, X), rtol=1e-12, atol=1e-12)


def names(run):
    """Return the operations of torch that a call consists of, those inside others included."""
    with profile() as seen:
        run()
    return [event.name for event in seen.function_events if event.name.startswith("aten::")]


def operations(run):
    return len(names(run))


def calls(run):
    count = 0

    def seen(frame, event, _):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_token_takes_few_operations_and_calls_by_every_method(name):
    model, plain = adapted(name), adapted("Factored")
    for layer in (model, plain):
        layer(X)
    few = operations(lambda: plain(X))
    # Lengths of rows take four more; rotations by blocks turn the input.
    more = 4 if name.startswith("WeightDecomposed") else 0
    assert operations(lambda: model(X)) <= few + more
    assert calls(lambda: model(X)) <= 80


@pytest.mark.parametrize("name", ["NBLoRA(radius)", "WeightDecomposed(inner, weight)"])
@torch.no_grad()
def test_an_update_of_one_sequence_is_two_products(name):
    model, x = adapted(name), normal(1, 3, 6)
    truth = torch.stack([model(x[0, i]) for i in range(3)]).unsqueeze(0)
    torch.testing.assert_close(model(x), truth)
    with disabled(model):
        bare = names(lambda: model(x))
    # The sum is within the second product; lengths of rows take a few small operations more.
    more = names(lambda: model(x))[len(bare) :]
    assert ["aten::bmm", "aten::baddbmm"] == [name for name in more if "mm" in name]
    assert (name.startswith("WeightDecomposed")) is ("aten::add" in more)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_turned_weight_is_its_layer_with_a_turned_input(blocks):
    layer = nn.Linear(6, 5).double()
    base = layer.weight.detach()
    x, z = (normal(2, 3, 6).requires_grad_() for _ in range(2))
    start = layer(x)
    adapt(layer, lambda _: oft(base, blocks=blocks), targets=".*")
    assert torch.equal(start, layer(x))
    (update,) = adapted_weights(layer)[0].updates
    with torch.no_grad():
        update.skew.add_(normal(*update.skew.shape), alpha=0.3)
    layer(x).sum().backward()
    found, update.skew.grad = update.skew.grad, None
    truth = z @ (base + update().to_dense()).mT + layer.bias
    truth.sum().backward()
    torch.testing.assert_close(layer(x), truth)
    torch.testing.assert_close((x.grad, found), (z.grad, update.skew.grad))
    # One product with the weight, as the layer alone has, and one with the blocks.
    products = flops(lambda: layer(x)) - flops(update)
    assert 2 * 6 * (6 * 5 + 6 * 6 // blocks) == products


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("scale", [torch.tensor([2.0, 0.5]).double(), torch.ones(2)])
def test_prepared_factors_are_the_same_operator(scale):
    op = lo.LowRankOperator(normal(5, 2), scale.double(), normal(6, 2))
    made, x, y = Prepared.of(op), normal(3, 6), normal(3, 5)
    torch.testing.assert_close(made.linear(x), op.linear(x))
    torch.testing.assert_close(made.mT.linear(y), op.mT.linear(y))
    torch.testing.assert_close(made.mT.mT.to_dense(), op.to_dense())


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_a_scale_that_fits_into_no_factor_stays_apart(scale):
    op = lo.LowRankOperator(torch.full((3, 1), scale), torch.tensor([scale]), torch.ones(3, 1))
    assert Prepared.of(op) is op


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (5, 1), (1, 5)])
def test_a_glance_meets_every_row(shape):
    for i in range(shape[0]):
        x = normal(*shape)
        seen = memory.Glance(x)
        assert seen.is_of(x)
        x.data[i] += 1
        assert not seen.is_of(x)


@torch.no_grad()
def test_nothing_is_kept_of_numbers_that_have_tangents():
    model = adapted("NBLoRA(radius)")
    model(X)
    free = {key: p for key, p in model.named_parameters() if p.requires_grad}
    moved = {key: torch.ones_like(p) for key, p in free.items()}
    _, truth = torch.func.jvp(lambda p: functional_call(model, p, (X,)), (free,), (moved,))
    with forward_ad.dual_level():
        duals = {key: forward_ad.make_dual(p, moved[key]) for key, p in free.items()}
        tangent = forward_ad.unpack_dual(functional_call(model, duals, (X,))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, truth)
