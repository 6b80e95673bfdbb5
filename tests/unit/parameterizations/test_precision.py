"""Membership, assignment and gradients in four precisions, at parameters of every size."""

import math
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lowrank_opt as lo
from lowrank_opt.parameterizations.catalog import examples

# Every map onto the ball of a norm, and orders whose powers under- and overflow.
FAMILIES = {
    "NBLoRA p=1": partial(lo.NBLoRA, radius=3.0, p=1),
    "NBLoRA p=50": partial(lo.NBLoRA, radius=3.0, p=50),
    **{
        e.name: e.make
        for e in examples()
        if isinstance(e.make.func if isinstance(e.make, partial) else e.make, type)
        and isinstance(e.make((7, 5), 3).feasible_set, lo.NormBall)
        and e.make((7, 5), 3).complete
    },
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (0.0, 1e-310, 1e-160, 1e-30, 1e-3, 1.0, 1e4, 1e8, 1e30, 1e300)
SHAPES = (((1, 1), 1), ((3, 3), 3), ((7, 5), 3))


def _fill(module, size, *, near_parallel):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        x = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        if near_parallel and x.ndim == 2 and x.shape[1] > 1:
            x[:, 1] = x[:, 0] * (1 + 1e-9)
        limit = torch.finfo(parameter.dtype).max / 4
        parameter.data.copy_((size * x).clamp(-limit, limit))


@pytest.mark.parametrize("near_parallel", [False, True], ids=["random", "near-parallel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_membership_in_every_precision(make, dtype, near_parallel):
    modules = [make(shape, rank, dtype=dtype) for shape, rank in SHAPES]
    for size in SIZES:
        for module in modules:
            _fill(module, size, near_parallel=near_parallel)
        ops = [module().detach() for module in modules]
        contained = [m.feasible_set.contains(op) for m, op in zip(modules, ops, strict=True)]
        assert [True] * len(SHAPES) == contained, size
        assert {dtype} == {op.dtype for op in ops}, size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_gradients_are_finite(make, dtype):
    module = make((7, 5), 3, dtype=dtype)
    for size in SIZES:
        _fill(module, size, near_parallel=False)
        module.zero_grad()
        torch.stack([x.sum() for x in module()]).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients), size


@pytest.mark.parametrize("push", [0.5, 100.0], ids=["inside", "boundary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_members_are_reached_in_every_precision(make, dtype, push):
    module = make((7, 5), 3, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    sample = module.feasible_set.sample((7, 5), generator=generator, dtype=torch.float64)
    target = module.feasible_set.project(push * sample).to(dtype=dtype)
    reached = module.assign(target)().detach().to(dtype=torch.float64).to_dense()
    expected = target.to(dtype=torch.float64).to_dense()
    # Rounding the parameters once; float64 itself is the limit of the map.
    tolerance = 16 * torch.finfo(dtype).eps * math.sqrt(3)
    floor = 128 * torch.finfo(torch.float64).eps
    assert float((reached - expected).norm()) <= module.feasible_set.radius * max(tolerance, floor)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_stacked_and_compiled_equal_eager(make):
    members = [make((7, 5), 3) for _ in range(2)]
    for member in members:
        _fill(member, 1.0, near_parallel=False)
    stacked = lo.BatchedParameterization(members)().to_dense()
    expected = torch.stack([m().to_dense() for m in members])
    torch.testing.assert_close(stacked, expected, rtol=1e-5, atol=1e-5)
    # One graph with the same values; that graphs have derivatives is in `test_torch_protocols`.
    torch._dynamo.reset()
    compiled = torch.compile(members[0].factors, fullgraph=True, backend="eager")()
    torch.testing.assert_close(tuple(compiled), tuple(members[0]()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_residual_of_a_projection(make):
    module = make((7, 5), 3, dtype=torch.float64)
    target = 50 * torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    residual = module.assign(target, project=True).residual(target)
    expected = torch.linalg.matrix_norm(module().detach().to_dense() - target)
    assert float(expected) == pytest.approx(residual, rel=1e-12)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_gradient_checkpointing_changes_nothing(make):
    module, x = make((7, 5), 3), torch.ones(2, 5)
    _fill(module, 1.0, near_parallel=False)
    parameters = list(module.parameters())
    plain = torch.autograd.grad(module().linear(x).square().sum(), parameters, allow_unused=True)
    saved = checkpoint(lambda v: module().linear(v), x, use_reentrant=False)
    again = torch.autograd.grad(saved.square().sum(), parameters, allow_unused=True)
    for a, b in zip(plain, again, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
