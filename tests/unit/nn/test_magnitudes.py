"""Weight-decomposed adapters, which train the lengths of rows too; dropout of updates' inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn import (
    LayerKind,
    adapt,
    adapted_weights,
    adapter_report,
    combine,
    disabled,
    inspect_adapter,
    load_adapter,
    merge,
    per_sample,
    save_adapter,
    switch,
    unload,
    unmerge,
)
from tests.oracles import normal


class Across(nn.Module):
    """A layer that keeps its weight as in x out, the class of GPT-2."""

    lowrank_kind = LayerKind(
        lambda layer: ("weight",), lambda layer, op, x, y: op.mT.linear(x), outputs="columns"
    )

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x @ self.weight + self.bias


class Stack(nn.Module):
    """A parameter of several matrices."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        return torch.einsum("bn,emn->bem", x, self.experts)


class Tied(nn.Module):
    """An embedding whose table is the weight of an output layer, where its outputs are inputs."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x).tanh())


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4)

    def forward(self, x):
        return self.lstm(x)[0]


INDICES = torch.tensor([[1, 2, 0], [6, 0, 2]])
# (model, input, targets, the axis over which lengths are taken in each matrix)
CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4)), normal(5, 3), "0", 1),
    "without bias": (lambda: nn.Sequential(nn.Linear(3, 4, bias=False)), normal(5, 3), "0", 1),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2)), normal(2, 4, 3, 3), "0", 1,
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0)), INDICES, "0", 0),
    "tied": (Tied, INDICES, "table", 0),
    "across": (lambda: nn.Sequential(Across()), normal(5, 3), "0", 0),
    "attention": (Attending, normal(2, 3, 4), "attention", 1),
    "recurrent": (Recurrent, normal(3, 2, 3), "lstm", 1),
    "stack": (Stack, normal(5, 3), "experts", 1),
}  # fmt: skip


def make(shape):
    return lo.Factored(shape, 2, dtype=torch.float64)


def fresh(case):
    torch.manual_seed(0)
    return CASES[case][0]().double().eval()


def adapted(case, *, name="default", seed=3, model=None, **options):
    _, _, targets, _ = CASES[case]
    model = fresh(case) if model is None else model
    model = adapt(model, make, targets=targets, magnitude=True, name=name, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def dense(model, axis, name="default"):
    """Return the weights ``g V / |V|`` of an adapter, |V| a constant, from dense matrices."""
    found = {}
    for weight in adapted_weights(model, {name}):
        W0, g = weight.base_matrices(), weight.magnitude.lengths
        V = W0 + torch.stack([update().to_dense() for update in weight.updates])
        sizes = torch.linalg.vector_norm(V.detach(), dim=axis + 1, keepdim=True)
        W = g.unsqueeze(axis + 1) * V / sizes
        found[weight.name] = W.reshape(weight.slot.parameter.shape)
    return found


def output(case, weights):
    """Return what a plain model computes with other weights."""
    return functional_call(fresh(case), weights, (CASES[case][1],), tie_weights=False)


@pytest.mark.parametrize("case", CASES)
def test_rows_have_the_lengths_of_the_magnitudes(case, tmp_path):
    x, axis = CASES[case][1], CASES[case][3]
    model, base = adapted(case), fresh(case).requires_grad_(False)
    truth = output(case, dense(model, axis))
    torch.testing.assert_close(model(x), truth, rtol=1e-9, atol=1e-9)
    merge(model)
    torch.testing.assert_close(model(x), truth, rtol=1e-9, atol=1e-9)
    with disabled(model):
        assert torch.equal(base(x), model(x))
    unmerge(model)
    save_adapter(model, tmp_path)
    again = load_adapter(fresh(case), tmp_path)
    assert torch.equal(model(x), again(x))
    assert torch.equal(base(x), unload(model)(x))


@pytest.mark.parametrize("case", CASES)
def test_start_is_the_base_model_to_the_last_bit(case):
    _, x, targets, _ = CASES[case]
    model = adapt(fresh(case), make, targets=targets, magnitude=True)
    assert torch.equal(fresh(case)(x), model(x))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_dense_weight(case):
    x, axis = CASES[case][1], CASES[case][3]
    model = adapted(case)
    free = [p for p in model.parameters() if p.requires_grad]
    truth = torch.autograd.grad(output(case, dense(model, axis)).square().sum(), free)
    found = torch.autograd.grad(model(x).square().sum(), free)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_changes_of_several_adapters_add(case):
    x, axis = CASES[case][1], CASES[case][3]
    model = adapted(case, name="b", seed=4, model=adapted(case, name="a"))
    base = dict(fresh(case).named_parameters(remove_duplicate=False))
    a, b = dense(model, axis, "a"), dense(model, axis, "b")
    weights = {k: base[k] + 0.5 * (a[k] - base[k]) - 2 * (b[k] - base[k]) for k in a}
    switch(model, {"a": 0.5, "b": -2.0})
    torch.testing.assert_close(model(x), output(case, weights), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("case", ["linear", "without bias", "convolution", "embedding"])
def test_each_sample_has_the_lengths_of_its_adapter(case):
    x, axis = CASES[case][1], CASES[case][3]
    model = adapted(case)
    with per_sample(model, [None] * (len(x) - 1) + ["default"], axis=0):
        found = model(x)
    assert torch.equal(fresh(case)(x)[:-1], found[:-1])
    truth = output(case, dense(model, axis))
    torch.testing.assert_close(found[-1], truth[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["tied", "across"])
def test_samples_cannot_have_dense_weights_of_their_own(case):
    with (
        pytest.raises(TargetError, match="per_sample needs layers with an additive update"),
        per_sample(adapted(case), ["default"], axis=0),
    ):
        pass


def test_a_row_that_vanishes_stays_zero():
    model = fresh("linear")
    with torch.no_grad():
        model[0].weight[1] = 0
    model = adapt(model, make, targets="0", magnitude=True)
    with torch.no_grad():
        next(iter(adapted_weights(model))).magnitude.lengths.fill_(2.0)
    torch.testing.assert_close(model(normal(5, 3))[:, 1], model[0].bias[1].expand(5))


def test_reports_say_that_rows_are_rescaled(tmp_path):
    model = adapted("linear")
    save_adapter(model, tmp_path)
    reports = [*adapter_report(model), *inspect_adapter(tmp_path)]
    assert ["none: magnitudes"] * 2 == [site.bound for site in reports]


def test_what_needs_low_rank_refuses_magnitudes():
    model = adapted("linear")
    with pytest.raises(TargetError, match=r"of low rank here; the adapter of 0\.weight has magnit"):
        combine(model, {"default": 1.0}, name="other")


def test_an_adapter_without_magnitudes_does_not_take_some(tmp_path):
    save_adapter(adapted("linear"), tmp_path)
    model = adapt(fresh("linear"), make, targets="0")
    before = model(CASES["linear"][1])
    with pytest.raises(TargetError, match="magnitudes where 'default' has"):
        load_adapter(model, tmp_path)
    assert torch.equal(before, model(CASES["linear"][1]))


REFUSED = [
    (nn.ConvTranspose1d(2, 3, 2), {"magnitude": True}, OptionError, "no side of its matrix"),
    (nn.Linear(2, 3, device="meta"), {"magnitude": True}, TargetError, "on the meta device"),
    (nn.LSTM(2, 3), {"dropout": 0.1}, OptionError, "weight_ih_l0 of a LSTM, which is called with"),
    (nn.Linear(2, 3), {"dropout": 1.0}, OptionError, r"in \[0, 1\); got dropout=1.0"),
    (Tied(), {"magnitude": True, "dropout": 0.1}, OptionError, "head.weight of a Linear, which is"),
]


@pytest.mark.parametrize(("layer", "options", "error", "message"), REFUSED)
def test_magnitudes_and_dropout_are_refused(layer, options, error, message):
    with pytest.raises(error, match=message):
        adapt(nn.Sequential(layer), make, targets=".*weight.*|0|0.table", **options)


DROPPED = {
    "linear": lambda x, W, p: F.linear(F.dropout(x, p), W),
    "convolution": lambda x, W, p: F.conv2d(F.dropout(x, p), W, groups=2),
    "embedding": lambda x, W, p: F.embedding(x, W, 0),
}


@pytest.mark.parametrize("case", DROPPED)
def test_dropout_is_of_the_input_of_the_update(case):
    _, x, targets, _ = CASES[case]
    model = adapt(fresh(case), make, targets=targets, dropout=0.4)
    with torch.no_grad():
        (found,) = adapted_weights(model)
        nn.init.normal_(found.updates[0].left)
        update = found.updates[0]().to_dense().reshape(found.slot.parameter.shape)
    base = fresh(case)(x)
    torch.manual_seed(5)
    trained = model.train()(x)
    torch.manual_seed(5)
    torch.testing.assert_close(trained, base + DROPPED[case](x, update, 0.4))
    torch.testing.assert_close(model.eval()(x), base + DROPPED[case](x, update, 0.0))


def test_adapters_with_dropout_have_masks_of_their_own():
    model, x = fresh("linear"), torch.ones(500, 3, dtype=torch.float64)
    for name in "ab":
        adapt(model, make, targets="0", name=name, dropout=0.5)
    with torch.no_grad():
        for found in adapted_weights(model):
            found.updates[0].left.fill_(1.0)
            found.updates[0].right.fill_(1.0)
    switch(model, "a", "b")
    y = model.train()(x)[:, 0] - fresh("linear")(x)[:, 0]
    # Twice two terms for each entry that is kept: one mask would only give multiples of 8.
    assert bool((y.round() % 8 == 4).any())


def test_dropout_is_saved(tmp_path):
    model = adapt(fresh("linear"), make, targets="0", dropout=0.4)
    save_adapter(model, tmp_path)
    again, x = load_adapter(fresh("linear"), tmp_path), CASES["linear"][1]
    for each in (model, again):
        (found,) = adapted_weights(each)
        with torch.no_grad():
            found.updates[0].left.fill_(1.0)
            found.updates[0].right.fill_(1.0)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    assert torch.equal(y, again.train()(x))


@pytest.mark.parametrize("cancelled", [False, True], ids=["clear", "cancelled"])
def test_magnitudes_compile_to_one_graph(cancelled):
    model = adapt(nn.Linear(6, 5), lambda s: lo.Factored(s, 2), targets=".*", magnitude=True)
    own = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for k, p in enumerate(own):
            p.add_(normal(*p.shape, seed=k).to(p.dtype), alpha=0.1)
        if cancelled:
            # Of the first row a part in 10^5 is left, whose length is computed directly.
            dense = adapted_weights(model)[0].updates[0]().to_dense()
            model._parameters["weight"][0] = -dense[0] * (1 + 1e-5)
    x = normal(3, 6).float()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found = [(y := run(x), torch.autograd.grad(y.sum(), own)) for run in (model, compiled)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
