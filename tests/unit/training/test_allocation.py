"""Allocation over modules (HeteroLoRA), late budgets, penalties and links that step down."""

import math
import statistics

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError, ShapeError, TargetError
from lowrank_opt.nn import adapt, add_shortcut, export_peft, load_adapter, save_adapter
from lowrank_opt.training import (
    ChainOfLowRank,
    CubicBudget,
    FactorPair,
    Link,
    ModuleAllocator,
    alpha_test,
    dispersion_penalty,
    factor_pairs,
    grad_norm,
    orthogonality_penalty,
    step_down_,
)
from tests.builders import normal


def plain():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(5, 5, dtype=torch.float64) for _ in range(4)])


def network(make=lambda s: lo.Factored(s, 2, dtype=torch.float64)):
    return adapt(plain(), make, targets="all-linear")


def parts(model):
    return [x for x in model.modules() if isinstance(x, lo.Factored)]


def loss_of(model):
    return lambda: (model(normal(8, 5, seed=1)) - normal(8, 5, seed=2)).square().sum()


@pytest.mark.parametrize("total", [20, 100, 997])
def test_late_budget_is_the_published_drop_fraction(total):
    budget = CubicBudget.dynamic_rank(start=30, final=20, total=total)
    first, last = round(0.15 * total), round(0.5 * total)
    for step in range(total):
        x = min(max(step - first, 0) / (last - first), 1.0)
        # Kept are all but the integer part of the dropped ones.
        dropped = 10 * x**3
        assert 30 - dropped <= budget(step) < 30 - dropped + 1 + 1e-9
    assert [30, 20] == [budget(first), budget(last)]


def test_late_budget_is_slow_where_the_early_one_is_fast():
    early, late = (CubicBudget(100, 0, 100, late=x) for x in (False, True))
    mirrored = [100 - late(100 - t) for t in range(101)]
    # Both are rounded up.
    assert all(0 <= early(t) - mirrored[t] <= 1 for t in range(101))


def test_orthogonality_penalty_is_the_formula():
    model = network(lambda s: lo.AdaLoRA(s, 2, dtype=torch.float64))
    layers = [x for x in model.modules() if isinstance(x, lo.AdaLoRA)]
    expected = torch.zeros((), dtype=torch.float64)
    for k, layer in enumerate(layers):
        layer.left.data, layer.right.data = normal(5, 2, seed=k), normal(5, 2, seed=9 + k)
        for P in (layer.left, layer.right):
            expected += (P.mT @ P - torch.eye(2)).square().sum()
    torch.testing.assert_close(orthogonality_penalty(model), expected, rtol=1e-13, atol=0)


def test_penalty_keeps_adalora_orthonormal():
    def trained(weight):
        model = network(lambda s: lo.AdaLoRA(s, 2, dtype=torch.float64))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            (loss_of(model)() + weight * orthogonality_penalty(model)).backward()
            optimizer.step()
        return float(orthogonality_penalty(model).detach())

    assert trained(10.0) < 0.1 < 1.0 < trained(0.0)


def test_dispersion_penalty_is_the_formula():
    layer = lo.DynamicRank((5, 4), 3, dtype=torch.float64)
    terms = [x[:, i].var(correction=0) for x in (layer.left, layer.right) for i in range(3)]
    torch.testing.assert_close(dispersion_penalty(layer), sum(terms) / 3, rtol=1e-13, atol=0)


def test_dispersion_penalty_of_the_code_is_the_mean_over_vectors():
    """Unbiased variances summed, over modules times twice the rank."""
    layers = [lo.DynamicRank((5, 4), 3, dtype=torch.float64) for _ in range(2)]
    vectors = [x[:, i].tolist() for y in layers for x in (y.left, y.right) for i in range(3)]
    expected = sum(statistics.variance(v) for v in vectors) / (2 * 2 * 3)
    got = float(dispersion_penalty(nn.ModuleList(layers), per_pair=False).detach())
    assert expected == pytest.approx(got, rel=1e-13)


def test_vectors_of_one_entry_have_no_dispersion():
    layer = lo.DynamicRank((1, 4), 1, dtype=torch.float64)
    expected = statistics.variance(layer.right[:, 0].tolist()) / 2
    got = float(dispersion_penalty(layer, per_pair=False).detach())
    assert expected == pytest.approx(got, rel=1e-13)


@pytest.mark.parametrize("penalty", [orthogonality_penalty, dispersion_penalty])
def test_penalties_need_their_family(penalty):
    with pytest.raises(ShapeError, match=r"penalty needs .* got a Linear"):
        penalty(nn.Linear(2, 2))


def test_grad_norm_is_the_formula():
    left, right = normal(5, 2, seed=0).requires_grad_(), normal(4, 2, seed=1).requires_grad_()
    left.grad, right.grad = normal(5, 2, seed=2), normal(4, 2, seed=3)
    expected = float(left.grad.norm() + right.grad.norm())
    assert expected == pytest.approx(grad_norm(FactorPair(left, right)), rel=1e-14)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_exactly_count_updates_are_on(count):
    model = network()
    allocator = ModuleAllocator(model, count, score=lambda pair: 1.0)
    for _ in range(5):
        allocator.reallocate(loss_of(model))
        assert count == sum(allocator.on)
    assert 5 * count == sum(allocator.frequency)


def test_updates_that_are_off_neither_act_nor_move():
    model = network()
    for part in parts(model):
        nn.init.normal_(part.left)
    allocator = ModuleAllocator(model, 1, score=grad_norm)
    allocator.reallocate(loss_of(model))
    off = [p for p, on in zip(parts(model), allocator.on, strict=True) if not on]
    kept = [p.left.detach().clone() for p in off]
    with_zeros = network()
    for mine, on, other in zip(parts(model), allocator.on, parts(with_zeros), strict=True):
        other.load_state_dict(mine.state_dict())
        if not on:
            other.zero_()
    x = normal(3, 5, seed=4)
    torch.testing.assert_close(model(x), with_zeros(x), rtol=1e-13, atol=1e-13)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss_of(model)().backward()
    optimizer.step()
    assert all(torch.equal(a, p.left) for a, p in zip(kept, off, strict=True))
    allocator.finish()
    assert all(not p().to_dense().any() for p in off)


def test_scoring_changes_nothing_but_who_is_on():
    model = network()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    ModuleAllocator(model, 2).reallocate(loss_of(model), batches=2)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(p.grad is None for p in model.parameters())


def test_best_modules_are_those_with_the_largest_gradients():
    model = network()
    loss_of(model)().backward()
    norms = [float(p.left.grad.norm() + p.right.grad.norm()) for p in parts(model)]
    model.zero_grad()
    allocator = ModuleAllocator(model, 2, score=grad_norm)
    allocator.reallocate(loss_of(model))
    threshold = sorted(norms)[-2]
    assert [x >= threshold for x in norms] == allocator.on


def test_state_of_an_update_that_comes_back_is_forgotten():
    model = network()
    scores = iter([1, 0, 0, 0, 0, 1, 0, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss_of(model)().backward()
    optimizer.step()
    allocator = ModuleAllocator(model, 1, score=lambda _: next(scores), optimizer=optimizer)
    allocator.reallocate(loss_of(model))
    allocator.reallocate(loss_of(model))
    assert [False, True, False, False] == allocator.on
    assert parts(model)[1].left not in optimizer.state


def test_too_many_modules_are_refused():
    with pytest.raises(ShapeError, match=r"count must be in 1..4, .* got count=5"):
        ModuleAllocator(network(), 5)


def test_alpha_test_finds_the_scale_where_the_metric_falls():
    update = lo.Factored((2, 2), 1, dtype=torch.float64).assign(
        torch.tensor([[3.0, 0], [0, 0]], dtype=torch.float64)
    )
    before = update.left.detach().clone()
    found = alpha_test(
        factor_pairs(update),
        lambda: -abs(3.0 - float(update().to_dense().detach()[0, 0])),
        tolerance=1.2,
        bisections=20,
    )
    assert 0.6 == pytest.approx(found[0], abs=2e-6)
    assert torch.equal(before, update.left)


def test_alpha_test_of_an_update_that_does_nothing_is_zero():
    assert [0.0] == alpha_test(factor_pairs(lo.Factored((2, 2), 1)), lambda: 1.0, tolerance=0.0)


@pytest.mark.parametrize("tolerance", [-1.0, math.inf])
def test_alpha_test_refuses_a_bad_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance must be >= 0"):
        alpha_test([], lambda: 1.0, tolerance=tolerance)


def test_updates_that_are_off_are_in_the_state_and_in_no_folder(tmp_path):
    model, other = network(), network()
    x = torch.ones(2, 5, dtype=torch.float64)
    for p in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(p)
    other.load_state_dict(model.state_dict())
    allocator, again = ModuleAllocator(model, 2), ModuleAllocator(other, 2)
    allocator.reallocate(loss_of(model))
    again.load_state_dict(allocator.state_dict())
    assert torch.equal(model(x), other(x))
    assert allocator.frequency == again.frequency
    for write in (save_adapter, export_peft):
        with pytest.raises(TargetError, match=r"a hook changes that of \d\.weight, as Module"):
            write(model, tmp_path)
    assert not [*tmp_path.iterdir()]
    expected = model(x)
    allocator.finish()
    save_adapter(model, tmp_path)
    torch.testing.assert_close(expected, load_adapter(plain(), tmp_path)(x))


def test_state_of_another_number_of_updates_is_refused():
    allocator = ModuleAllocator(network(), 2)
    with pytest.raises(ShapeError, match="must fit its 4 updates; got one of 1"):
        allocator.load_state_dict({"on": [True], "frequency": [0]})


def test_shortcut_adds_its_map_around_a_block():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())).double()
    x = normal(2, 3, seed=0)
    plain = model(x)
    shortcut = add_shortcut(model, "1", lo.Factored((4, 4), 2, dtype=torch.float64))
    assert torch.equal(plain, model(x))
    W = shortcut.weight.assign(normal(4, 4, seed=1), project=True)().to_dense()
    torch.testing.assert_close(model(x), plain + model[0](x) @ W.mT, rtol=1e-12, atol=1e-13)
    assert 1 == len(factor_pairs(model))


def test_shortcut_around_a_block_that_returns_a_tuple():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 1, batch_first=True)})
    x = torch.ones(1, 2, 4)
    plain = model["a"](x, x, x)
    shortcut = add_shortcut(model, "a", lo.Factored((4, 4), 1))
    nn.init.ones_(shortcut.weight.left)
    got = model["a"](x, x, x)
    torch.testing.assert_close(got[0], plain[0] + shortcut.weight().linear(x))
    assert torch.equal(got[1], plain[1])
    assert 4 == model["a"].embed_dim


@pytest.mark.parametrize("name", ["b", ""])
def test_shortcut_around_nothing_is_refused(name):
    with pytest.raises(OptionError, match="a shortcut goes around a submodule; got"):
        add_shortcut(nn.ModuleDict({"a": nn.Linear(2, 2)}), name, lo.Factored((2, 2), 1))


def test_shortcut_of_another_shape_is_refused():
    model = nn.ModuleDict({"a": nn.Linear(2, 3)})
    add_shortcut(model, "a", lo.Factored((2, 2), 1))
    with pytest.raises(ShapeError, match=r"got \(2, 2\) for 2 features in and 3 out"):
        model["a"](torch.ones(1, 2))


FAMILIES = {
    "Factored": lambda s, r: lo.Factored(s, r, scaling=2.0),
    "AdaLoRA": lo.AdaLoRA,
    "DynamicRank": lo.DynamicRank,
    "HomogeneousBall": lambda s, r: lo.HomogeneousBall(s, r, radius=2.0),
    "DeLoRA": lambda s, r: lo.DeLoRA(s, r, radius=2.0),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 1), (5, 5)])
def test_step_down_is_a_fresh_one_of_the_smaller_rank(name, before, after):
    part = FAMILIES[name]((5, 6), before)
    objects = [id(p) for p in part.parameters()]
    step_down_(part, after)
    like = FAMILIES[name]((5, 6), after)
    assert objects == [id(p) for p in part.parameters()]
    assert [p.shape for p in like.parameters()] == [p.shape for p in part.parameters()]
    assert like.feasible_set == part.feasible_set
    assert 0.0 == float(part().detach().schatten_norm(2))


def test_chain_with_falling_ranks_keeps_the_function_and_the_objects():
    weight, update = torch.zeros(6, 5, dtype=torch.float64), lo.Factored((6, 5), 3).double()
    optimizer = torch.optim.AdamW(update.parameters(), lr=0.1)
    chain = ChainOfLowRank([Link(weight, update)], optimizer, every=5, ranks=[2, 1])
    for _ in range(14):
        optimizer.zero_grad()
        (weight + update().to_dense() - normal(6, 5, seed=0)).square().sum().backward()
        optimizer.step()
        before = (weight + update().to_dense()).detach().clone()
        chain.step()
        torch.testing.assert_close(
            (weight + update().to_dense()).detach(), before, atol=1e-14, rtol=0
        )
    assert (1, 3 + 2 + 1) == (update.rank, chain.links[0].total().rank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": [1, 2]}, "must not increase"),
        ({"ranks": [4]}, "from at most 3"),
        ({"ranks": [2], "reset": "none"}, "ranks need reset='all'"),
    ],
)
def test_ranks_that_do_not_step_down_are_refused(options, message):
    link = Link(torch.zeros(6, 5), lo.Factored((6, 5), 3))
    with pytest.raises(RankError, match=message):
        ChainOfLowRank([link], **options)


def test_family_that_cannot_step_down_is_left_as_it_was():
    part = lo.NBLoRA((6, 5), 3, radius=1.0)
    state = {k: v.clone() for k, v in part.state_dict().items()}
    with pytest.raises(RankError, match="a link can step down only if"):
        step_down_(part, 1)
    assert all(torch.equal(v, part.state_dict()[k]) for k, v in state.items())
    assert 3 == part.rank
