"""A frozen base is anything with a forward, a shape and a dtype: the laws, for every storage."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    adapt,
    adapted_weights,
    adapter_report,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    remove_adapter,
    save_adapter,
    summary,
    switch,
    unload,
    unmerge,
)
from lowrank_opt.nn.basis.sealed import SealedWeight
from lowrank_opt.nn.basis.storage import dense_weight
from tests.frozen_bases import COMPUTED, NARROW, STORAGES, CodedLinear
from tests.oracles import normal

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
EPS = torch.finfo(torch.float64).eps
X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def make_model(storage: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        first, second = nn.Linear(8, 8).double(), nn.Linear(8, 6).double()
        return nn.Sequential(first, nn.Tanh(), STORAGES[storage](second)).eval()


def ball(shape: tuple[int, int]) -> lo.NBLoRA:
    return lo.NBLoRA(shape, rank=2, radius=1.0, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, name: str = "default") -> nn.Module:
    """Return the model with an adapter after some steps."""
    adapt(model, ball, targets="2", name=name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    return model


def bits_of(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of everything that the base model holds."""
    found: dict[str, bytes] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        parts = [x] if type(x) in (Tensor, nn.Parameter) else [x.numbers, x.scale]
        octets = [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in parts]
        if "lowrank_adapters" not in name:
            found[name] = b"".join(octets)
    return found


def update_of(model: nn.Module) -> Tensor:
    return adapted_weights(model)[0].updates[0]().to_dense().detach()


def near(expected: Tensor, got: Tensor) -> bool:
    # The radius is 1 and inputs are of size 1; float32 in the storage of some does not matter.
    return bool((expected - got).norm() <= 1e3 * EPS * (1 + expected.norm()))


each = pytest.mark.parametrize("storage", STORAGES)


@each
def test_the_forward_is_the_own_one_plus_the_update(storage):
    base, model = make_model(storage), make_model(storage)
    adapt(model, ball, targets="2")
    assert torch.equal(base(X), model(X))
    trained_model = trained(make_model(storage))
    hidden = base[:2](X)
    expected = base[2](hidden) + hidden @ update_of(trained_model).mT
    assert near(expected, trained_model(X))
    assert not near(base(X), trained_model(X))
    with disabled(trained_model):
        assert torch.equal(base(X), trained_model(X))


@each
def test_storage_is_never_written_to(storage):
    before, model = bits_of(make_model(storage)), make_model(storage)
    trained(model)
    assert before == bits_of(model)
    merge(model, dequantize=True)
    model(X)
    assert before == bits_of(model)
    unmerge(model)
    y = model(X)
    assert before == bits_of(model)
    merge(model, dequantize=True)
    unmerge(model)
    assert torch.equal(y, model(X))
    assert before == bits_of(unload(model))
    assert torch.equal(make_model(storage)(X), model(X))


@each
def test_a_merged_model_is_the_adapted_one(storage):
    model = trained(make_model(storage))
    y = model(X)
    merge(model, dequantize=True)
    assert near(y, model(X))
    with disabled(model):
        assert torch.equal(make_model(storage)(X), model(X))
    plain = merge_and_unload(model)
    assert type(plain[2]) is nn.Linear
    assert {"weight", "bias"} == set(plain[2].state_dict())
    assert near(y, plain(X))


@pytest.mark.parametrize("storage", [name for name in NARROW if "class" not in name])
def test_nothing_is_kept_of_a_code_that_became_plain(storage):
    model = trained(make_model(storage))
    # As what other packages note beside their codes.
    model[2].quant_state = object()
    layer = merge_and_unload(model, dequantize=True)[2]
    assert set(vars(nn.Linear(8, 6))) == set(vars(layer))


WRITES = {
    "in place": lambda w, x: w.zero_(),
    "with a number": lambda w, x: w.add_(1.0),
    "copy": lambda w, x: w.copy_(x),
    "out": lambda w, x: torch.add(x, x, out=w),
    "list": lambda w, x: torch._foreach_mul_([x, w], 2.0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("storage", ["buffer of int8", "parametrized"])
def test_what_stands_for_a_storage_is_read_and_not_written(write, storage):
    layer = make_model(storage)[2]
    weight, dense, x = SealedWeight(layer, "weight"), dense_weight(layer, "weight"), normal(6, 8)
    with pytest.raises(AdapterStateError, match="cannot be written to; got"):
        WRITES[write](weight, x)
    assert torch.equal(dense, dense_weight(layer, "weight"))
    torch.testing.assert_close(normal(6, 8).copy_(weight), dense)
    torch.testing.assert_close(torch.add(x, weight, out=normal(6, 8)), x + dense)


@pytest.mark.parametrize("storage", ["tensor of its own class", "parameter of int8"])
def test_weights_of_few_bits_that_are_tied_have_one_sum(storage):
    one = make_model(storage)[2]
    two = copy.deepcopy(one)
    two.weight = one.weight
    if hasattr(one, "scale"):
        two.scale = one.scale
    model = adapt(nn.ModuleList([one, two]), ball, targets="0")
    assert adapted_weights(model)[0].updates[0] is adapted_weights(model)[1].updates[0]
    merge(model, dequantize=True)
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize("storage", NARROW)
def test_few_bits_are_made_many_only_if_asked(storage):
    model = trained(make_model(storage))
    y = model(X)
    with pytest.raises(TargetError, match=r"got 2\.weight \(.*\), held in few bits.*dequantize="):
        merge(model)
    with pytest.raises(TargetError, match="held in few bits"):
        merge_and_unload(model)
    assert torch.equal(y, model(X))


@pytest.mark.parametrize("storage", COMPUTED)
def test_computed_weights_are_merged_like_plain_ones(storage):
    model = trained(make_model(storage))
    y = model(X)
    merge(model)
    assert near(y, model(X))


@each
def test_a_weight_that_is_read_is_the_sum(storage):
    model = trained(make_model(storage))
    expected = dense_weight(make_model(storage)[2], "weight") + update_of(model)
    assert near(expected, model[2].weight)
    merge(model, dequantize=True)
    assert near(expected, model[2].weight)


@each
def test_reports_folders_and_copies_know_every_storage(storage, tmp_path):
    model = trained(make_model(storage))
    y = model(X)
    (site,) = adapter_report(model)
    assert site.holds
    dense = dense_weight(make_model(storage)[2], "weight")
    assert site.drift == pytest.approx(float(update_of(model).norm() / dense.norm()))
    assert "2.weight" in summary(model)
    save_adapter(model, tmp_path)
    assert torch.equal(y, load_adapter(make_model(storage), tmp_path)(X))
    # A folder does not depend on how the base was stored.
    plain = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    assert torch.equal(update_of(model), update_of(load_adapter(plain, tmp_path)))
    copied = copy.deepcopy(model)
    assert torch.equal(y, copied(X))
    adapted_weights(copied)[0].updates[0].zero_()
    assert torch.equal(make_model(storage)(X), copied(X))
    assert torch.equal(y, model(X))


@pytest.mark.parametrize("storage", ["buffer of int8", "parameter of int8", "pruned"])
def test_what_can_be_pickled_stays_so(storage):
    model = trained(make_model(storage))
    assert torch.equal(model(X), pickle.loads(pickle.dumps(model))(X))


@each
def test_adapters_are_switched_and_removed(storage):
    model = trained(make_model(storage), name="a")
    y = model(X)
    trained(model, name="b")
    switch(model, "a")
    assert torch.equal(y, model(X))
    switch(model, {"a": 0.5})
    base = make_model(storage)(X)
    assert near(base + (y - base) / 2, model(X))
    remove_adapter(remove_adapter(model, "a"), "b")
    assert torch.equal(base, model(X))


@each
def test_magnitudes_are_of_what_the_base_holds(storage):
    model = adapt(make_model(storage), ball, targets="2", magnitude=True)
    assert near(make_model(storage)(X), model(X))
    W0 = dense_weight(make_model(storage)[2], "weight")
    lengths = adapted_weights(model)[0].magnitude.lengths
    assert near(W0.norm(dim=1), lengths[0])
    with torch.no_grad():
        lengths.mul_(2)
    assert near(2 * W0, model[2].weight)
    hidden, bias = model[:2](X), make_model(storage)[2].bias
    assert near(hidden @ (2 * W0).mT + bias, model(X))


@pytest.mark.parametrize("mode", [True, False])
def test_a_spectral_norm_takes_no_step_because_it_is_looked_at(mode):
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)).train(mode)
    before = {key: x.clone() for key, x in layer.state_dict().items()}
    model = adapt(nn.Sequential(layer), ball, targets="0")
    summary(model)
    assert all(torch.equal(x, model[0].state_dict()[key]) for key, x in before.items())
    assert layer.training is mode


class NotLinear(CodedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class WithoutGradients(CodedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class OfIntegers(CodedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bitwise_not())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NotLinear, "forward is not linear"),
        (WithoutGradients, "forward must take floats and pass gradients"),
        (OfIntegers, "forward must take floats and pass gradients"),
    ],
)
def test_a_forward_that_is_no_linear_map_is_refused_by_name(kind, message):
    model = nn.Sequential(nn.Linear(8, 8), kind(nn.Linear(8, 6)))
    with pytest.raises(
        OptionError, match=rf"got 1 \({kind.__name__}: its own {message}.*exclude it"
    ):
        adapt(model, ball, targets="all-linear")
    adapt(model, ball, targets="all-linear", exclude="1")
