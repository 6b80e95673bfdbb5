"""Knots: the function stays, the state goes, ranks and norms add up."""

import itertools

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.nn import adapt
from lowrank_opt.training import ChainOfLowRank, Link, LoRARite

MAKERS = {
    "Factored": lambda s: lo.Factored(s, 2),
    "NBLoRA": lambda s: lo.NBLoRA(s, 2, radius=0.5),
    "HomogeneousBall": lambda s: lo.HomogeneousBall(s, 2, radius=0.5),
    "DeLoRA": lambda s: lo.DeLoRA(s, 2, radius=0.5),
    "NestedSVD": lambda s: lo.NestedSVD(torch.eye(*s), lo.NBLoRA((4, 4), 2, radius=0.5)),
    "Offset": lambda s: lo.Offset(lo.NBLoRA(s, 2, radius=0.5)),
}


def adapted(make, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype)
    return adapt(net, make, targets="all-linear")


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def scrambled(model, size=0.3):
    g = torch.Generator().manual_seed(1)
    for p in trainable(model):
        p.data.add_(size * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))
    return model


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_knot_leaves_the_function(make, dtype):
    model = scrambled(adapted(make, dtype))
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = model(x)
    chain = ChainOfLowRank(model)
    chain.tie()
    eps = torch.finfo(dtype).eps
    assert ((model(x) - before).norm() / before.norm()).item() <= 30 * eps
    # Cancelling starts are zero to rounding, not exactly.
    present = max(float(link.parameterization().schatten_norm(2)) for link in chain.links)
    assert present <= 2 * eps
    assert float(chain.links[0].merged[0].schatten_norm(2)) > 0.01


def test_sum_of_links_is_the_change_of_the_weight():
    model = adapted(MAKERS["NBLoRA"])
    chain = ChainOfLowRank(model)
    before = [link.weight.clone() for link in chain.links]
    for _ in range(3):
        scrambled(model)
        chain.tie()
    for link, weight, layer in zip(chain.links, before, (model[0], model[2]), strict=True):
        assert torch.equal(weight, link.weight)
        torch.testing.assert_close(weight + link.total().to_dense(), layer.weight)
        assert 6 < link.total().rank + 1


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_bounds_of_links_add_up(p):
    model = adapted(MAKERS["NBLoRA"])
    chain = ChainOfLowRank(model)
    for _ in range(3):
        scrambled(model, size=5.0)
        chain.tie()
    for link in chain.links:
        assert float(link.total().schatten_norm(p)) <= link.norm_bound(p) * (1 + 1e-12)
        assert link.norm_bound(float("inf")) <= 3 * 0.5 * (1 + 1e-12)
        assert all(s.contains(op) for s, op in zip(link.sets, link.merged, strict=True))


def test_bfloat16_weights_are_summed_in_float32():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=g).bfloat16()
    start = weight.float()
    update = lo.Factored((40, 30), 2)
    chain = ChainOfLowRank([Link(weight, update)])
    for _ in range(200):
        with torch.no_grad():
            update.left.fill_(1e-4)
        chain.tie()
    exact = start + chain.links[0].total().to_dense()
    assert float((weight.float() - exact).abs().max()) <= 0.004 * float(exact.abs().max())
    assert torch.equal(weight, exact.bfloat16())


def test_optimizer_state_is_forgotten():
    model = adapted(MAKERS["Factored"])
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    chain = ChainOfLowRank(model, optimizer, every=2)
    tied = []
    for _ in range(4):
        model(torch.ones(1, 7, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        tied.append(chain.step())
    assert [False, True, False, True] == tied
    assert 0 == len(optimizer.state)


@pytest.mark.parametrize(("reset", "zeros"), [("none", 0), (0.9, 13)])
def test_optimizer_state_is_kept_or_pruned(reset, zeros):
    update = lo.Factored((7, 7), 2)
    optimizer = torch.optim.AdamW(update.parameters(), lr=0.01)
    update().to_dense().sin().sum().backward()
    optimizer.step()
    state = optimizer.state[update.left]
    state["exp_avg"].copy_(torch.arange(1.0, 15.0).view(7, 2))
    ChainOfLowRank([Link(torch.zeros(7, 7), update)], optimizer, reset=reset).tie()
    assert zeros == int((state["exp_avg"] == 0).sum())
    assert 14.0 == float(state["exp_avg"].max())


def test_frames_of_moments_are_not_pruned():
    update = lo.Factored((7, 7), 2)
    torch.nn.init.normal_(update.left)
    optimizer = LoRARite(update, lr=0.01)
    update().to_dense().sin().sum().backward()
    optimizer.step()
    state = optimizer.state[update.left]
    frames = [state[f"frame_{side}"].clone() for side in (0, 1)]
    ChainOfLowRank([Link(torch.zeros(7, 7), update)], optimizer, reset=0.9).tie()
    assert all(torch.equal(frames[side], state[f"frame_{side}"]) for side in (0, 1))
    assert 13 == int((state["mean_0"] == 0).sum())


def test_first_step_after_a_knot_moves_only_the_zero_factor():
    model = adapted(MAKERS["Factored"])
    optimizer = LoRARite(model, lr=0.01)
    chain = ChainOfLowRank(model, optimizer, knots=[3])
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 7, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        chain.step()
    right = [link.parameterization.right.detach().clone() for link in chain.links]
    model(torch.ones(2, 7, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert all(
        torch.equal(a, link.parameterization.right)
        for a, link in zip(right, chain.links, strict=True)
    )


def test_chain_of_exact_links_is_the_truncated_svd():
    g = torch.Generator().manual_seed(0)
    target = torch.randn(9, 8, generator=g, dtype=torch.float64)
    weight, update = torch.zeros_like(target), lo.Factored((9, 8), 2, dtype=torch.float64)
    chain = ChainOfLowRank([Link(weight, update)])
    residuals = []
    for _ in range(3):
        update.assign(lo.LowRankOperator.from_dense(target - weight, rank=2))
        chain.tie()
        residuals.append(float((target - weight).norm()))
    tails = [float(torch.linalg.svdvals(target)[k:].norm()) for k in (2, 4, 6)]
    assert tails == pytest.approx(residuals, rel=1e-12)


def test_greedy_links_in_nuclear_balls_descend_like_frank_wolfe():
    g = torch.Generator().manual_seed(0)
    target = torch.randn(6, 5, generator=g, dtype=torch.float64)
    weight = torch.zeros_like(target)
    update = lo.HomogeneousBall((6, 5), 1, radius=0.25, dtype=torch.float64)
    chain = ChainOfLowRank([Link(weight, update)])
    losses = [float(target.norm())]
    for _ in range(30):
        # The linear minimisation oracle is the link that best follows the gradient W - target.
        update.assign(update.feasible_set.lmo(weight - target))
        chain.tie()
        losses.append(float((weight - target).norm()))
    assert all(b < a for a, b in itertools.pairwise(losses[:11]))
    assert float(chain.links[0].total().schatten_norm(1)) <= 30 * 0.25 * (1 + 1e-9)


def test_warmup_restarts_at_a_knot():
    chain = ChainOfLowRank([Link(torch.zeros(3, 2), lo.Factored((3, 2), 1))], every=3)
    factors = []
    for _ in range(4):
        factors.append(chain.warmup(2))
        chain.step()
    assert [0.5, 1.0, 1.0, 0.5] == factors


def test_tied_weights_are_merged_once():
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    model = adapt(nn.Sequential(a, b), lambda s: lo.Factored(s, 1), targets="all-linear")
    assert 1 == len(ChainOfLowRank(model).links)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"got \(3, 3\) and \(3, 2\)"):
        Link(torch.zeros(3, 3), lo.Factored((3, 2), 1))


def test_integer_weight_is_refused():
    with pytest.raises(ShapeError, match="dequantise it first"):
        Link(torch.zeros(3, 2, dtype=torch.int8), lo.Factored((3, 2), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"reset": 2.0}, "reset must be"), ({"every": 0}, "every must be >= 1")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChainOfLowRank([Link(torch.zeros(3, 2), lo.Factored((3, 2), 1))], **options)


def test_model_without_adapters_is_refused():
    with pytest.raises(ShapeError, match="at least one weight with an update"):
        ChainOfLowRank(nn.Linear(2, 2))
