import copy

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, ShapeError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    AdapterSteps,
    active_adapters,
    adapt,
    combine,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    per_sample,
    remove_adapter,
    rewind,
    save_adapter,
    switch,
    unload,
    unmerge,
)
from lowrank_opt.nn.basis import sharded
from tests.adapted import base_weight, member

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()


def randomized(shape: tuple[int, int]) -> lo.Parameterization:
    return lo.Factored(shape, 2)


@pytest.fixture
def model() -> nn.Module:
    """Two layers with the adapters a and b, both away from zero; b is active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for name in ("a", "b"):
        adapt(model, randomized, targets="all-linear", name=name)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model


def dense(model: nn.Module, weights: dict[str, float]) -> torch.Tensor:
    """Return the output with the dense weighted sum of updates, computed here."""
    h = X
    for layer in (model[0], model[2]):
        W = base_weight(layer).detach().clone()
        for name, factor in weights.items():
            W += factor * member(layer, name)().to_dense().detach()
        h = nn.functional.linear(h, W, layer.bias)
        h = h.tanh() if layer is model[0] else h
    return h


def test_switch_and_stack(model: nn.Module) -> None:
    torch.testing.assert_close(dense(model, {"b": 1.0}), model(X))
    switch(model, "a")
    torch.testing.assert_close(dense(model, {"a": 1.0}), model(X))
    switch(model, "a", "b")
    torch.testing.assert_close(dense(model, {"a": 1.0, "b": 1.0}), model(X))
    switch(model)
    assert torch.equal(dense(model, {}), model(X))


def test_per_sample_gives_each_row_its_adapter(model: nn.Module) -> None:
    with per_sample(model, ["a", None, "b", "a"]):
        y = model(X)
    a, base, b = (dense(model, w) for w in ({"a": 1.0}, {}, {"b": 1.0}))
    torch.testing.assert_close(torch.stack((a[0], base[1], b[2], a[3])), y)
    torch.testing.assert_close(b, model(X))


def test_per_sample_needs_a_name_for_each_sample(model: nn.Module) -> None:
    with per_sample(model, ["a"]), pytest.raises(ShapeError, match="got 1 names for an input"):
        model(X)


def test_per_sample_refuses_dense_layers() -> None:
    lstm = adapt(nn.LSTM(3, 4), randomized, targets=".*")
    with (
        pytest.raises(TargetError, match="per_sample needs layers with an additive update"),
        per_sample(lstm, ["default"]),
    ):
        pass


def test_merge_of_a_stack(model: nn.Module) -> None:
    merge(model, ["a", "b"])
    torch.testing.assert_close(dense_of_originals(model), model(X))
    unmerge(model)
    torch.testing.assert_close(dense(model, {"b": 1.0}), model(X))


def dense_of_originals(model: nn.Module) -> torch.Tensor:
    plain = copy.deepcopy(model)
    unmerge(plain)
    return dense(plain, {"a": 1.0, "b": 1.0})


def test_merge_and_unload_leaves_a_plain_model(model: nn.Module) -> None:
    expected = dense(model, {"b": 1.0})
    plain = merge_and_unload(model)
    assert nn.Linear is type(plain[0])
    torch.testing.assert_close(expected, plain(X))


def test_tied_weights_stay_tied_through_merging() -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    base = model["emb"].weight
    model["head"].weight = base
    adapt(model, randomized, targets="emb")
    merge(model)
    assert model["head"].weight is model["emb"].weight
    assert model["head"].weight is not base
    unmerge(model)
    assert base is base_weight(model["head"]) is base_weight(model["emb"])


def test_disabled_restores_after_an_exception(model: nn.Module) -> None:
    merge(model)
    expected = model(X)
    with pytest.raises(KeyError), disabled(model):
        raise KeyError
    assert torch.equal(expected, model(X))


def test_merge_twice_is_refused(model: nn.Module) -> None:
    merge(model)
    expected = model(X)
    with pytest.raises(AdapterStateError, match="merge needs a model that is not merged"):
        merge(model)
    assert torch.equal(expected, model(X))


@pytest.mark.parametrize(
    "action",
    [
        lambda m: switch(m, "a"),
        unload,
        lambda m: adapt(m, randomized, targets="0", name="c"),
        lambda m: combine(m, {"a": 1.0}, name="c"),
    ],
)
def test_merged_model_refuses_surgery(model: nn.Module, action: object) -> None:
    merge(model)
    with pytest.raises(AdapterStateError, match="call unmerge"):
        action(model)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("c", "a", "b"), ("c", "b", "a")])
@pytest.mark.parametrize("use", [switch, lambda model, *n, **o: merge(model, n, **o)])
def test_heads_of_several_adapters_need_a_lead(use, names) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    # The third has an update of what the others have as their own.
    given = {"a": ("0", "1"), "b": ("0", "1"), "c": ("1", ())}
    for name, (targets, head) in given.items():
        adapt(model, randomized, targets=targets, modules_to_train=head, name=name)
    with pytest.raises(AdapterStateError, match=r"1\.weight differs between .*pass lead="):
        use(model, *names)
    assert {"c": 1.0} == active_adapters(model)
    use(model, *names, lead="b")


@pytest.mark.parametrize(
    "action",
    [
        lambda model, _: adapt(model, randomized, targets="0", name="c"),
        load_adapter,
        lambda model, _: merge_and_unload(model),
        lambda model, _: unload(model),
        lambda model, _: remove_adapter(model, "a"),
        lambda model, _: rewind(model, 1.0),
        lambda model, _: AdapterSteps(every=0, recenter=1)(model, 1),
    ],
)
def test_model_in_shards_refuses_surgery(model, action, monkeypatch, tmp_path) -> None:
    before = [type(module) for module in model.modules()]
    save_adapter(model, tmp_path, name="a")
    # As if the parameters were of several processes.
    monkeypatch.setattr(sharded, "_managed", lambda: {id(x) for x in model.modules()})
    with pytest.raises(AdapterStateError, match="needs a model that is not sharded"):
        action(model, tmp_path)
    assert before == [type(module) for module in model.modules()]


def test_unmerge_of_what_is_not_merged_is_refused(model: nn.Module) -> None:
    with pytest.raises(AdapterStateError, match="unmerge needs a merged model"):
        unmerge(model)


def test_model_without_adapters_is_refused() -> None:
    with pytest.raises(AdapterStateError, match="must be adapted; got a Linear"):
        merge(nn.Linear(2, 2))


def test_unknown_adapter_is_refused(model: nn.Module) -> None:
    with pytest.raises(AdapterStateError, match=r"got \['c'\]: the model has \['a', 'b'\]"):
        switch(model, "a", "c")


def test_merge_of_nan_leaves_the_model_unchanged(model: nn.Module) -> None:
    with torch.no_grad():
        member(model[2], "b").left.fill_(float("nan"))
    with pytest.raises(TargetError, match="merged weights must be finite"):
        merge(model)
    unmerge_is_refused(model)


def unmerge_is_refused(model: nn.Module) -> None:
    with pytest.raises(AdapterStateError, match="got one that is not"):
        unmerge(model)


def test_linear_combination_is_exact(model: nn.Module) -> None:
    expected = dense(model, {"a": 0.3, "b": -2.0})
    combine(model, {"a": 0.3, "b": -2.0}, name="c")
    torch.testing.assert_close(expected, model(X), rtol=1e-12, atol=1e-12)


def test_svd_combination_is_the_best_of_its_rank(model: nn.Module) -> None:
    total = sum(member(model[0], k)().to_dense() for k in ("a", "b"))
    combine(model, {"a": 1.0, "b": 1.0}, name="c", method="svd", rank=1)
    U, s, Vh = torch.linalg.svd(total.detach())
    torch.testing.assert_close(
        s[0] * torch.outer(U[:, 0], Vh[0]), member(model[0], "c")().to_dense()
    )


def test_ties_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    for name, values in (("a", [[4.0, -3.0], [0.5, 1.0]]), ("b", [[2.0, 5.0], [0.1, -0.2]])):
        adapt(model, lambda shape: lo.DenseCore(shape), targets="0", name=name)
        member(model[0], name).assign(torch.tensor(values))
    combine(model, {"a": 1.0, "b": 1.0}, name="c", method="ties", density=0.5)
    expected = torch.tensor([[3.0, 5.0], [0.0, 0.0]])
    torch.testing.assert_close(expected, member(model[0], "c")().to_dense())


def test_dare_is_unbiased(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for i in range(300):
        combine(model, {"a": 1.0}, name=f"c{i}", method="dare", rank=5, generator=generator)
        drawn.append(member(model[0], f"c{i}")().to_dense())
        remove_adapter(model, f"c{i}")
    expected = member(model[0], "a")().to_dense().detach()
    spread = expected.abs() / 300**0.5
    assert bool(((torch.stack(drawn).mean(0) - expected).abs() <= 5 * spread).all())


def test_combination_can_be_bounded_and_trained(model: nn.Module) -> None:
    combine(
        model, {"a": 9.0, "b": 9.0}, name="c", make=lambda s: lo.HomogeneousBall(s, 2, radius=0.1)
    )
    made = member(model[0], "c")
    assert made.feasible_set.contains(made())
    assert all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "mean"}, OptionError, "method must be one of"),
        ({"method": "dare", "density": 0.0}, OptionError, r"density must be in \(0, 1\]"),
        ({"name": "a"}, AdapterStateError, "must be new"),
    ],
)
def test_bad_combination_is_refused(
    model: nn.Module, options: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        combine(model, {"a": 1.0}, **{"name": "c", **options})
    assert {"b": 1.0} == active_adapters(model)
