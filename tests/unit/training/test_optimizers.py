"""Optimizers over pairs: state, groups, other parameters, errors, and counts of iterations."""

import copy
import math

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import ConvergenceError, ShapeError
from lowrank_opt.kernels import observed_squared_loss
from lowrank_opt.training import (
    FactorPair,
    LoRAProAdamW,
    LoRARite,
    ScaledGD,
    factor_pairs,
    lora_plus_groups,
    spectral_start,
)
from lowrank_opt.training.optimizers import factor_optimizer
from tests.pair_optimizers import OPTIMIZERS

EVERY = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def model(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    net = nn.Module()
    net.update = lo.Factored((9, 7), 3, generator=g, dtype=dtype)
    net.bias = nn.Parameter(torch.zeros(9, dtype=dtype))
    return net


def loss(net):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 7, generator=g), torch.randn(20, 9, generator=g)
    x, y = x.to(net.bias.dtype), y.to(net.bias.dtype)
    return (net.update().linear(x) + net.bias - y).square().mean()


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    return net


def values(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@EVERY
def test_training_from_the_zero_start_lowers_the_loss(make):
    net = model()
    before = loss(net).item()
    train(net, make(net), 60)
    assert loss(net).item() < 0.8 * before
    assert bool(net.bias.any())


@EVERY
def test_two_runs_are_equal(make):
    a, b = model(), model()
    assert torch.equal(values(train(a, make(a), 5)), values(train(b, make(b), 5)))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_resumes_from_a_saved_state(make, dtype, tmp_path):
    whole, first = model(dtype=dtype), model(dtype=dtype)
    train(whole, make(whole), 8)
    optimizer = make(first)
    train(first, optimizer, 4)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "run.pt")
    saved, state = torch.load(tmp_path / "run.pt", weights_only=True)
    second = model(seed=5, dtype=dtype)
    second.load_state_dict(saved)
    resumed = make(second)
    resumed.load_state_dict(state)
    assert torch.equal(values(whole), values(train(second, resumed, 4)))


@EVERY
def test_deep_copy_goes_on_by_itself(make):
    net = model()
    optimizer = make(net)
    train(net, optimizer, 3)
    twin, twin_optimizer = copy.deepcopy((net, optimizer))
    train(twin, twin_optimizer, 3)
    assert not torch.equal(values(net), values(twin))
    assert torch.equal(values(train(net, optimizer, 3)), values(twin))


@EVERY
def test_zero_gradient_changes_nothing_at_first(make):
    net = model(dtype=torch.float64)
    nn.init.normal_(net.update.left)
    before = values(net)
    optimizer = make(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(before, values(net))


@EVERY
def test_peft_layout_takes_the_same_path(make):
    net = model(dtype=torch.float64)
    train(net, make(net), 6)
    twin = model(dtype=torch.float64)
    lora_A = twin.update.right.detach().mT.clone().requires_grad_()
    lora_B = twin.update.left.detach().clone().requires_grad_()
    optimizer = make([FactorPair(lora_B, lora_A, layout="peft")])
    group = {"params": [twin.bias], "role": "others"}
    optimizer.add_param_group(group)
    for _ in range(6):
        optimizer.zero_grad()
        twin.bias.grad = None
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(20, 7, generator=g), torch.randn(20, 9, generator=g)
        W = lora_B @ lora_A
        (x.double() @ W.T + twin.bias - y.double()).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(lora_B @ lora_A, net.update().to_dense(), rtol=1e-10, atol=1e-12)


@EVERY
def test_scale_does_not_change_the_path_of_w(make):
    products = []
    for scale in (1.0, 8.0):
        g = torch.Generator().manual_seed(0)
        L = torch.randn(6, 2, generator=g, dtype=torch.float64) / scale
        R, Y = torch.randn(5, 2, generator=g).double(), torch.randn(6, 5, generator=g).double()
        pair = FactorPair(L.requires_grad_(), R.requires_grad_(), scale=scale)
        optimizer = make([pair])
        for _ in range(10):
            optimizer.zero_grad()
            (scale * L @ R.T - Y).square().sum().backward()
            optimizer.step()
        products.append(pair.to_dense())
    damped = optimizer.param_groups[0].get("damping", 0.0) > 0
    invariant = not (damped or isinstance(optimizer, LoRAProAdamW))
    assert invariant == torch.allclose(*products, rtol=1e-10, atol=1e-12)


def test_closure_is_evaluated():
    net = model()
    optimizer = ScaledGD(net, lr=0.1)

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    assert loss(net).item() == pytest.approx(optimizer.step(closure).item())


def test_scheduler_reaches_the_pairs():
    net = model()
    optimizer = LoRARite(net, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(net, optimizer, 1)
    scheduler.step()
    assert [0.05, 0.0005] == [group["lr"] for group in optimizer.param_groups]


def test_trained_core_joins_the_others():
    core = torch.ones(2, requires_grad=True)
    L, R = torch.randn(5, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    optimizer = ScaledGD([FactorPair(L, R, core=core)], lr=0.1)
    ((L * core) @ R.T).sum().backward()
    optimizer.step()
    assert not torch.equal(torch.ones(2), core.detach())


def test_first_step_from_zero_moves_only_the_zero_factor():
    net = model()
    right = net.update.right.detach().clone()
    train(net, LoRARite(net, lr=0.1), 1)
    assert torch.equal(right, net.update.right.detach())
    assert bool(net.update.left.any())


@pytest.mark.parametrize("lr", [1e-1, 1e-3])
def test_turn_of_the_other_factor_after_a_zero_start_is_damped(lr):
    turns = {}
    for trust in (0.05, math.inf):
        net = model(dtype=torch.float64)
        right = net.update.right.detach().clone()
        train(net, LoRARite(net, lr=lr, trust=trust), 2)
        turns[trust] = float((net.update.right.detach() - right).norm() / right.norm())
    assert turns[math.inf] > 0.2
    assert turns[0.05] < 0.1


def test_factor_pairs_finds_trainable_factors_once():
    tied = lo.Factored((4, 3), 2)
    net = nn.ModuleList([tied, nn.ModuleList([tied]), lo.NBLoRA((4, 3), 2, radius=1.0)])
    net.append(lo.Offset(lo.HomogeneousBall((5, 3), 2, radius=1.0)))
    assert [(4, 3), (5, 3)] == [pair.shape for pair in factor_pairs(net)]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ((4, 2), (3, 3), r"got left \(4, 2\), right \(3, 3\)"),
        ((4,), (3, 2), r"a pair is left"),
    ],
)
def test_shapes_that_do_not_pair_are_refused(left, right, message):
    with pytest.raises(ShapeError, match=message):
        FactorPair(torch.ones(left, requires_grad=True), torch.ones(right, requires_grad=True))


def test_computed_factor_is_refused():
    x = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(ShapeError, match="declare the parameters themselves"):
        FactorPair(x, x * 2)


def test_module_without_pairs_is_refused():
    with pytest.raises(ShapeError, match="needs at least one pair"):
        ScaledGD(nn.Linear(3, 2))


def test_factor_declared_twice_is_refused():
    pair = factor_pairs(model())[0]
    with pytest.raises(ShapeError, match="declared twice"):
        ScaledGD([pair, pair])


def test_negative_lr_is_refused():
    with pytest.raises(ValueError, match=r"lr must be >= 0; got lr=-1"):
        ScaledGD(model(), lr=-1.0)


def test_lora_plus_covers_every_parameter_once():
    net = model()
    high, low = lora_plus_groups(net, lr=1e-3, ratio=4.0)
    assert {id(net.update.left), id(net.bias)} == {id(p) for p in high["params"]}
    assert [id(net.update.right)] == [id(p) for p in low["params"]]
    assert [4e-3, 1e-3] == [high["lr"], low["lr"]]


def test_lora_plus_with_ratio_one_is_plain_adamw():
    a, b = model(), model()
    train(a, torch.optim.AdamW(lora_plus_groups(a, lr=0.01, ratio=1.0)), 5)
    train(b, torch.optim.AdamW(b.parameters(), lr=0.01), 5)
    assert torch.equal(values(a), values(b))


def test_lora_plus_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match=r"ratio must be >= 1; got ratio=0.5"):
        lora_plus_groups(model(), lr=1.0, ratio=0.5)


def planted(condition, n=500, rank=10, share=0.2):
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64)).Q
    truth = (U * torch.linspace(1.0, 1 / condition, rank).double()) @ V.T
    mask = torch.rand(n, n, generator=g) < share
    rows, cols = mask.nonzero().unbind(1)
    return truth, lo.Observations(rows, cols, truth[mask], (n, n)), truth * mask, share


def iterations(condition, scaled, limit=1500):
    """Count the steps of completion to a relative error of 1e-6."""
    truth, observations, observed, share = planted(condition)
    left, right = spectral_start(observed, 10, fraction=share)
    pair = FactorPair(left.requires_grad_(), right.requires_grad_())
    lr = 0.5
    optimizer = ScaledGD([pair], lr=lr) if scaled else torch.optim.SGD([left, right], lr=lr)
    ones = torch.ones(10, dtype=torch.float64)
    for k in range(limit):
        optimizer.zero_grad()
        loss = observed_squared_loss(lo.LowRankOperator(left, ones, right), observations)
        (loss / (2 * share)).backward()
        optimizer.step()
        if (pair.to_dense() - truth).norm() <= 1e-6 * truth.norm():
            return k + 1
    return limit


def test_iterations_of_scaled_gd_do_not_depend_on_the_condition_number():
    easy, hard = iterations(1.0, scaled=True), iterations(20.0, scaled=True)
    assert abs(hard - easy) <= 0.1 * easy
    assert iterations(5.0, scaled=False) > 2.5 * iterations(1.0, scaled=False)


def bounded(family):
    net = model()
    net.update = family((9, 7), 3, radius=0.5, generator=torch.Generator().manual_seed(3))
    net.bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("family", [lo.HomogeneousBall, lo.NBLoRA])
def test_families_that_are_not_bilinear_take_adamw_steps(family):
    net, twin = bounded(family), bounded(family)
    with pytest.warns(UserWarning, match="all parameters take AdamW steps"):
        optimizer = LoRARite(net, others_lr=0.05)
    train(net, optimizer, 20)
    train(twin, torch.optim.AdamW(twin.update.parameters(), lr=0.05, weight_decay=0.0), 20)
    torch.testing.assert_close(values(net), values(twin))


@EVERY
@pytest.mark.parametrize("family", [lo.HomogeneousBall, lo.DeLoRA])
def test_no_step_leaves_the_feasible_set(make, family):
    net = bounded(family)
    optimizer = make(factor_pairs(net))
    optimizer.param_groups[0]["lr"] = 3.0
    inside = []
    for _ in range(10):
        train(net, optimizer, 1)
        inside.append(net.update.feasible_set.contains(net.update()))
    assert [True] * 10 == inside


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_that_are_not_finite_are_named(make, dtype):
    net = model(dtype=dtype)
    optimizer = make(net)
    train(net, optimizer, 2)
    with torch.no_grad():
        net.update.right[0] = math.nan
    before = net.update.left.detach().clone()
    with pytest.raises(ConvergenceError, match="needs finite factors and gradients"):
        train(net, optimizer, 1)
    assert torch.equal(before, net.update.left.detach())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_that_are_not_finite_change_nothing(make, dtype, value, side):
    net = model(dtype=dtype)
    optimizer = make(net)
    train(net, optimizer, 2)
    loss(net).backward()
    getattr(net.update, side).grad[0, 0] = value
    before = net.update.left.detach().clone(), net.update.right.detach().clone()
    with pytest.raises(ConvergenceError, match="needs finite factors and gradients"):
        optimizer.step()
    assert torch.equal(before[0], net.update.left.detach())
    assert torch.equal(before[1], net.update.right.detach())


def test_gradients_whose_sum_overflows_are_finite():
    assert factor_optimizer._is_finite(torch.full((5, 3), 3e38))
