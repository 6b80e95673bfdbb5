"""Budgets met exactly, functions kept at a cut, optimizer state cut along, scores by hand."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import RankError, ShapeError
from lowrank_opt.training import (
    CubicBudget,
    FactorPair,
    LoRAPro,
    LoRAProAdamW,
    LoRARite,
    Magnitude,
    RankAllocator,
    ScaledAdamW,
    ScaledGD,
    Sensitivity,
    SpectralDescent,
    choose_modules,
    component_norms,
    factor_pairs,
    greedy_ranks,
    snip_score,
    tangent_norm,
    top_components,
)

OPTIMIZERS = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02),
    "ScaledGD": lambda m: ScaledGD(m, lr=0.05),
    "ScaledAdamW": lambda m: ScaledAdamW(m, lr=0.02),
    "LoRARite": lambda m: LoRARite(m, lr=0.02),
    "LoRAPro": lambda m: LoRAPro(m, lr=0.02, momentum=0.9, normalized=True),
    "LoRAProAdamW": lambda m: LoRAProAdamW(m, lr=0.02),
    "SpectralDescent": lambda m: SpectralDescent(m, lr=0.02),
}


def models(make=lo.Factored, **options):
    g = torch.Generator().manual_seed(0)
    return nn.ModuleList(
        [make((m, n), 4, generator=g, dtype=torch.float64, **options) for m, n in ((9, 7), (6, 8))]
    )


def targets():
    g = torch.Generator().manual_seed(1)
    big = lo.LowRankOperator.from_dense(torch.randn(9, 7, generator=g).double(), rank=4)
    small = lo.LowRankOperator.from_dense(torch.randn(6, 8, generator=g).double(), rank=1)
    return big.to_dense(), 0.3 * small.to_dense()


def loss(model):
    return sum(
        (part().to_dense() - y).square().sum() for part, y in zip(model, targets(), strict=True)
    )


def train(model, optimizer, allocator, steps):
    living = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        allocator.step()
        optimizer.step()
        allocator.enforce()
        ranks = [int((part.left.detach() != 0).any(0).sum()) for part in model]
        living.append(sum(ranks))
    return living


def test_budget_is_monotone_with_exact_ends():
    budget = CubicBudget(start=12, final=5, total=50, warmup=7, hold=11)
    values = [budget(t) for t in range(60)]
    assert [12] * 8 == values[:8]
    assert [5] * 21 == values[39:]
    assert all(b <= a for a, b in itertools.pairwise(values))


def test_budget_follows_the_formula():
    budget = CubicBudget(start=100, final=20, total=100, warmup=10, hold=30)
    exact = [20 + 80 * (1 - (t - 10) / 60) ** 3 for t in range(10, 71)]
    assert all(0 <= budget(t) - x < 1 + 1e-9 for t, x in zip(range(10, 71), exact, strict=True))


def test_top_components_keeps_the_count_with_ties():
    masks = top_components([torch.zeros(4), torch.zeros(3)], 5)
    assert [4, 1] == [int(m.sum()) for m in masks]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_ends_within_the_budget(make):
    model = models()
    optimizer = make(model)
    budget = CubicBudget(start=8, final=4, total=60, warmup=10, hold=20)
    balanced = isinstance(optimizer, LoRARite | LoRAPro | ScaledGD | SpectralDescent)
    allocator = RankAllocator(model, budget, optimizer=optimizer, balanced=balanced)
    living = train(model, optimizer, allocator, 60)
    assert living[-1] <= 4
    assert [4] == [sum(allocator.ranks)]
    before = [part().to_dense().detach() for part in model]
    ranks = allocator.compact()
    assert [(9, max(ranks[0], 1)), (6, max(ranks[1], 1))] == [tuple(p.left.shape) for p in model]
    for part, W in zip(model, before, strict=True):
        torch.testing.assert_close(part().to_dense(), W, rtol=1e-14, atol=1e-14)
    value = loss(model).item()
    train(model, optimizer, allocator, 60)
    assert loss(model).item() < value


def test_more_rank_goes_where_more_is_needed():
    model = models()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    budget = CubicBudget(start=8, final=5, total=200, warmup=50, hold=50)
    allocator = RankAllocator(model, budget, importance=Magnitude(normalized=False))
    train(model, optimizer, allocator, 200)
    assert allocator.ranks[0] == 4


@pytest.mark.parametrize("every", [1, 7])
def test_components_that_cannot_revive_obey_the_budget_at_every_step(every):
    model = models()
    budget = CubicBudget(start=8, final=3, total=40, warmup=5, hold=10)
    allocator = RankAllocator(model, budget, every=every, revivable=False)
    living = train(model, torch.optim.AdamW(model.parameters(), lr=0.02), allocator, 40)
    allowed = [budget(t - t % every if t < 30 else t) for t in range(40)]
    assert all(a <= b for a, b in zip(living, allowed, strict=True))
    assert all(b <= a for a, b in itertools.pairwise(living[1:]))


def test_state_of_adamw_is_cut_along():
    model = models()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    allocator = RankAllocator(model, CubicBudget(start=8, final=3, total=10), optimizer=optimizer)
    train(model, optimizer, allocator, 12)
    living = [mask.clone() for mask in allocator.masks]
    moments = [optimizer.state[part.right]["exp_avg"].clone() for part in model]
    allocator.compact()
    for part, mask, old in zip(model, living, moments, strict=True):
        kept = old[:, mask] if bool(mask.any()) else old[:, :1]
        assert torch.equal(kept, optimizer.state[part.right]["exp_avg"])


@pytest.mark.parametrize("make", [lo.HomogeneousBall, lo.DeLoRA])
def test_guarantee_holds_while_components_go(make):
    model = models(make, radius=2.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    allocator = RankAllocator(model, CubicBudget(start=8, final=3, total=30, hold=5))
    for _ in range(35):
        train(model, optimizer, allocator, 1)
        assert all(part.feasible_set.contains(part()) for part in model)
    assert sum(int((part().singular_values() > 1e-12).sum()) for part in model) <= 3


def test_cut_of_a_map_that_depends_on_its_rank_is_refused():
    model = models(lo.DeLoRA, radius=2.0)
    before = [part().to_dense() for part in model]
    allocator = RankAllocator(model, CubicBudget(start=8, final=3, total=10))
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1), allocator, 12)
    before = [part().to_dense() for part in model]
    with pytest.raises(ShapeError, match="only where that leaves W unchanged"):
        allocator.compact()
    assert all(torch.equal(a, part().to_dense()) for a, part in zip(before, model, strict=True))


def svd_pair():
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 3), (4, 3), (3,))]
    P, Q, values = (x.requires_grad_() for x in parts)
    pair = FactorPair(P, Q, core=values)
    ((P * values) @ Q.T).sin().sum().backward()
    return pair


def test_sensitivity_of_a_triplet_by_hand():
    pair, sensitivity = svd_pair(), Sensitivity(betas=(0.8, 0.7))
    sensitivity.update([pair])
    sensitivity.update([pair])

    def s(w):
        product = (w.detach() * w.grad).abs()
        first = 0.2 * product
        spread = 0.3 * (product - first)
        second = 0.8 * first + 0.2 * product
        return second * (0.7 * spread + 0.3 * (product - second).abs())

    expected = s(pair.core) + s(pair.left).mean(0) + s(pair.right).mean(0)
    (scores,) = sensitivity.scores([pair])
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=0)


def test_dropping_a_triplet_leaves_its_vectors():
    pair = svd_pair()
    P, Q = pair.left.detach().clone(), pair.right.detach().clone()
    allocator = RankAllocator([pair], CubicBudget(start=2, final=2, total=1))
    allocator.step()
    assert 1 == int((pair.core == 0).sum())
    assert torch.equal(P, pair.left.detach())
    assert torch.equal(Q, pair.right.detach())
    W = pair.to_dense()
    assert [2] == allocator.compact()
    torch.testing.assert_close(pair.to_dense(), W, rtol=1e-14, atol=1e-14)


def test_magnitude_is_the_norm_of_each_term():
    pair, magnitude = svd_pair(), Magnitude()
    magnitude.update([pair])
    terms = [
        float((pair.core[i] * torch.outer(pair.left[:, i], pair.right[:, i])).detach().norm())
        for i in range(3)
    ]
    share = [x / float(pair.to_dense().norm()) for x in terms]
    assert share == pytest.approx(magnitude.scores([pair])[0].tolist(), rel=1e-6)


def at_start(T=None):
    """A pair with L = 0 whose loss has the gradient G."""
    g = torch.Generator().manual_seed(0)
    G = torch.randn(6, 5, generator=g, dtype=torch.float64)
    R = torch.randn(5, 2, generator=g, dtype=torch.float64)
    R = (R if T is None else R @ T).requires_grad_()
    L = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    (G * (L @ R.T)).sum().backward()
    return FactorPair(L, R), G


def test_snip_vanishes_at_a_zero_start_and_the_tangent_score_does_not():
    pair, G = at_start()
    assert 0.0 == snip_score(pair)
    Q = torch.linalg.qr(pair.right.detach()).Q
    assert float((G @ Q).norm()) == pytest.approx(tangent_norm(pair), rel=1e-12)


def test_tangent_score_is_basis_free():
    T = torch.tensor([[3.0, 1.0], [-0.5, 0.2]], dtype=torch.float64)
    assert tangent_norm(at_start()[0]) == pytest.approx(tangent_norm(at_start(T)[0]), rel=1e-12)


def test_scoring_changes_nothing():
    pair, _ = at_start()
    values = [x.clone() for x in (pair.left, pair.right, pair.left.grad, pair.right.grad)]
    state = torch.get_rng_state()
    _ = snip_score(pair), tangent_norm(pair)
    assert torch.equal(state, torch.get_rng_state())
    after = (pair.left, pair.right, pair.left.grad, pair.right.grad)
    assert all(map(torch.equal, values, after))


def test_greedy_ranks_are_optimal_for_equal_costs():
    g = torch.Generator().manual_seed(0)
    spectra = [torch.rand(3, generator=g).sort(descending=True).values for _ in range(3)]
    best = min(
        (sum(float(s[r:].square().sum()) for s, r in zip(spectra, ranks, strict=True)), ranks)
        for ranks in itertools.product(range(4), repeat=3)
        if sum(ranks) == 4
    )
    assert list(best[1]) == greedy_ranks(spectra, 4)


def test_greedy_ranks_stay_within_a_budget_of_parameters():
    spectra = [torch.tensor([5.0, 4.0]), torch.tensor([3.0, 1.0])]
    assert [1, 1] == greedy_ranks(spectra, 12.0, costs=[10.0, 2.0])


def test_module_choice_meets_the_count_with_ties():
    g = torch.Generator().manual_seed(0)
    choices = [tuple(choose_modules([1.0, 1.0, 1.0, 2.0], 2, generator=g)) for _ in range(30)]
    assert {2} == {sum(c) for c in choices}
    assert {True} == {c[3] for c in choices}
    assert 3 == len(set(choices))


def test_budget_that_grows_is_refused():
    with pytest.raises(RankError, match="got start=2, final=3"):
        CubicBudget(start=2, final=3, total=5)


def test_budget_without_time_to_fall_is_refused():
    with pytest.raises(ValueError, match=r"got 3 \+ 2 and 5"):
        CubicBudget(start=3, final=2, total=5, warmup=3, hold=2)


def test_budget_above_all_components_is_refused():
    with pytest.raises(ShapeError, match="got 9 for 8 components"):
        RankAllocator(models(), CubicBudget(start=9, final=2, total=5))


def test_full_core_is_refused():
    L, R = torch.ones(3, 2, requires_grad=True), torch.ones(4, 2, requires_grad=True)
    pair = FactorPair(L, R, core=torch.eye(2))
    with pytest.raises(ShapeError, match="got a full one"):
        RankAllocator([pair], CubicBudget(start=2, final=1, total=5))


@pytest.mark.parametrize("make", [lo.AdaLoRA, lo.DynamicRank])
def test_svd_forms_are_pruned_and_cut(make):
    model = models(make)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    budget = CubicBudget(start=8, final=3, total=40, warmup=10, hold=10)
    allocator = RankAllocator(model, budget, optimizer=optimizer)
    train(model, optimizer, allocator, 40)
    assert 3 == sum(int(part.values.detach().count_nonzero()) for part in model)
    before = [part().to_dense().detach() for part in model]
    ranks = allocator.compact()
    assert [max(r, 1) for r in ranks] == [part.rank for part in model]
    assert [(part.rank,) for part in model] == [tuple(part.values.shape) for part in model]
    for part, W in zip(model, before, strict=True):
        torch.testing.assert_close(part().to_dense(), W, rtol=1e-14, atol=1e-14)
    train(model, optimizer, allocator, 3)


def test_scores_are_those_of_adalora():
    """Equations 7 to 11, written anew in NumPy."""
    part, sensitivity = models(lo.AdaLoRA)[0], Sensitivity((0.85, 0.7))
    mean, spread = [0.0] * 3, [0.0] * 3
    for _ in range(3):
        part.zero_grad()
        (part().to_dense() - 1).sin().sum().backward()
        sensitivity.update(factor_pairs(part))
        for k, p in enumerate((part.left, part.right, part.values)):
            now = np.abs(p.detach().numpy() * p.grad.numpy())
            mean[k] = 0.85 * mean[k] + 0.15 * now
            spread[k] = 0.7 * spread[k] + 0.3 * np.abs(now - mean[k])
    P, Q, values = (a * b for a, b in zip(mean, spread, strict=True))
    (scores,) = sensitivity.scores(factor_pairs(part))
    np.testing.assert_allclose(scores.numpy(), P.mean(0) + Q.mean(0) + values, rtol=1e-6)


def test_dropping_keeps_the_vectors_and_is_the_best_truncation():
    part = lo.AdaLoRA((6, 5), 3, dtype=torch.float64)
    part.assign(torch.randn(6, 5, dtype=torch.float64), project=True)
    expected, left = part().to_dense().detach(), part.left.detach().clone()
    budget = CubicBudget(start=3, final=2, total=1)
    allocator = RankAllocator(part, budget, importance=Magnitude())
    for _ in range(2):
        allocator.step()
    assert 2 == part.active
    assert torch.equal(left, part.left)
    missing = torch.linalg.matrix_norm(expected - part().to_dense().detach(), 2)
    torch.testing.assert_close(missing, torch.linalg.svdvals(expected)[2])


def test_balancing_keeps_the_product_and_orders_the_components():
    model = models()
    nn.init.normal_(model[0].left)
    before = [part().to_dense() for part in model]
    allocator = RankAllocator(model, CubicBudget(start=8, final=8, total=1), balanced=True)
    allocator.enforce()
    for part, W in zip(model, before, strict=True):
        torch.testing.assert_close(part().to_dense(), W, rtol=1e-13, atol=1e-13)
    (norms,) = [component_norms(pair) for pair in factor_pairs(model[0])]
    torch.testing.assert_close(norms, model[0]().singular_values().detach())


def test_balancing_of_a_normalised_map_is_refused():
    with pytest.raises(ShapeError, match="needs W = s L R"):
        RankAllocator(
            models(lo.HomogeneousBall, radius=1.0),
            CubicBudget(start=2, final=1, total=5),
            balanced=True,
        )
