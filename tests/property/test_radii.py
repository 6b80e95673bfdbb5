"""Radii from 1e-320 to 1e308 in every dtype: the guarantee holds, or the map says why it cannot."""

import math

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RadiusError, TargetError
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.certificate import certify
from tests.oracles import normal

D, S = torch.float64, (5, 4)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, D]
# The largest and smallest numbers of every dtype, and what is just inside of them.
RADII = [1e-320, 1e-307, 1e-45, 1e-37, 1e-7, 3e-6, 1e-3, 1.0, 4e3, 6e4, 1e37, 3e38, 1e306, 1.7e308]


def nested(r, d):
    return lo.NestedSVD(normal(6, 5).to(d), lo.NBLoRA((3, 3), 2, radius=r, dtype=d))


def weighted(r, d):
    return lo.Weighted(lo.HomogeneousBall(S, 2, radius=r, dtype=d), torch.linspace(0.5, 1, 5))


def has_a_radius(example):
    """Whether a radius is given, and is not trained."""
    options = getattr(example.make, "keywords", {})
    return "radius" in options and not options.get("learn_radius")


# What the examples of the classes do not have comes after them.
MAKE = {
    example.name: lambda r, d, make=example.make: make(S, 3, radius=r, dtype=d)
    for example in filter(has_a_radius, examples())
} | {
    "NBLoRA bounds": lambda r, d: lo.NBLoRA(S, 2, bounds=[r, r / 2], dtype=d),
    "Contractions p": lambda r, d: lo.Contractions(S, 2, radius=r, p=40, dtype=d),
    "Contractions bounds": lambda r, d: lo.Contractions(S, 2, bounds=[r, -r / 2], dtype=d),
    "NestedSVD": nested,
    "Weighted": weighted,
}
COMPLETE = {name: make for name, make in MAKE.items() if make(1.0, D).complete}
every_map = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def drawn(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=D))
    return module


def made(make, radius, dtype):
    """A map at random parameters, or None where it was refused."""
    try:
        return drawn(make(radius, dtype))
    except RadiusError:
        return None


def of_every_radius(make, dtype):
    """Maps of each radius that the dtype holds, and one of radius 1, as ``(radius, map)``."""
    kept = [module for radius in RADII if (module := made(make, radius, dtype)) is not None]
    return [(module.feasible_set.size, module) for module in [*kept, drawn(make(1.0, dtype))]]


def size(op):
    return float(op.detach().to(dtype=D).schatten_norm(math.inf))


def is_promised(module, radius):
    op = module().detach()
    finite = all(bool(torch.isfinite(x).all()) for x in op)
    inside = module.feasible_set.contains(op) and module.certify().holds
    return finite and inside and size(op) >= 1e-4 * radius


@every_map
@every_dtype
def test_every_radius_is_kept_or_refused(make, dtype):
    for radius in RADII:
        module = made(make, radius, dtype)
        assert module is None or is_promised(module, radius), radius


@every_map
@every_dtype
def test_ordinary_radii_are_never_refused(make, dtype):
    assert all(made(make, radius, dtype) is not None for radius in (1e-2, 1.0, 1e3))


@every_map
@every_dtype
def test_gradients_are_finite_and_not_zero(make, dtype):
    for radius, module in of_every_radius(make, dtype):
        # Weights as small as the radius is large: what a loss of order one would send back.
        left, scale, right = module()
        (left.sum() + (scale.double() / module.feasible_set.size).sum() + right.sum()).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients), radius
        assert any(bool(g.any()) for g in gradients), radius


@pytest.mark.parametrize("make", COMPLETE.values(), ids=COMPLETE)
@every_dtype
def test_members_are_reached(make, dtype):
    for radius, module in of_every_radius(make, dtype):
        generator = torch.Generator().manual_seed(3)
        target = module.feasible_set.sample(module.shape, generator=generator, dtype=dtype)
        difference = module.assign(target)().detach().to(dtype=D) - target.to(dtype=D)
        assert size(difference) <= 100 * torch.finfo(dtype).eps * radius, radius


@every_map
def test_export_keeps_the_size_or_says_why_not(make):
    for radius, module in of_every_radius(make, D):
        wanted = size(module())
        for dtype in DTYPES:
            found = exported_size(module, dtype)
            most = (1 + 4 * torch.finfo(dtype).eps) * wanted
            assert found is None or 0.85 * wanted <= found <= most, (radius, dtype)


def exported_size(module, dtype):
    """The size after export, or None where the dtype is said to be too narrow."""
    try:
        return size(module.export(dtype))
    except TargetError:
        return None


@pytest.mark.parametrize("radius", [1e-7, 3e-6, 6e4])
def test_moving_to_a_dtype_too_narrow_is_refused(radius):
    module = lo.NBLoRA(S, 2, radius=radius)
    with pytest.raises(RadiusError, match=r"radius must be in .* to be held in torch.float16"):
        module.half()
    assert torch.float32 == module.left_rows.dtype


CONES = {
    "Factored": lo.Factored,
    "AdaLoRA": lo.AdaLoRA,
    "SVDFrames": lo.SVDFrames,
    "DenseCore": lambda s, _r: lo.DenseCore(s),
}


@pytest.mark.parametrize("make", CONES.values(), ids=CONES)
@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_targets_beyond_the_dtype_are_refused(make, value):
    module = drawn(make(S, 2))
    before = [p.detach().clone() for p in module.parameters()]
    target = lo.LowRankOperator.from_dense(value * torch.eye(5, 4, dtype=D), 2)
    with pytest.raises(TargetError, match="over- or underflow"):
        module.assign(target)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_quotient_is_held_in_half_precision():
    module = lo.HomogeneousBall((400, 300), 20, radius=0.01, dtype=torch.float16)
    module = drawn(module)
    op = module().detach()
    assert module.feasible_set.contains(op)
    wanted = drawn(lo.HomogeneousBall((400, 300), 20, radius=0.01, dtype=D))
    assert size(op) == pytest.approx(size(wanted()), rel=1e-2)


def one(left, scale, right):
    return lo.LowRankOperator(*(torch.tensor(x, dtype=D) for x in ([[left]], [scale], [[right]])))


@pytest.mark.parametrize("triple", [(1e-310, 1e300, 1e10), (1e300, 1e-310, 1e10), (1e10, 1, 1e-10)])
def test_a_certificate_sees_terms_of_extreme_factors(triple):
    certificate = certify(one(*triple), lo.SchattenBall(math.inf, 0.5, 1))
    assert certificate.singular_values[0] >= 1.0 - 1e-9
    assert not certificate.holds


@pytest.mark.parametrize("p", [20.0, 40.0, 300.0])
def test_contractions_keep_small_values_at_large_orders(p):
    module = lo.Contractions(S, 3, radius=1.0, p=p, dtype=D)
    target = lo.LowRankOperator.from_dense(
        torch.diag(torch.tensor([1.0, 1e-9, 1e-30, 0.0], dtype=D)), 3
    )
    target = lo.LowRankOperator(torch.eye(5, 3, dtype=D), target.scale, torch.eye(4, 3, dtype=D))
    reached = module.assign(target)().detach().to_dense().diagonal()[:3]
    torch.testing.assert_close(reached, target.scale, rtol=1e-12, atol=0)


BESIDE = {
    "NBLoRA bounds": lambda: lo.NBLoRA(S, 2, bounds=[1.0, 1.0], p=2),
    "NBLoRA ky_fan": lambda: lo.NBLoRA(S, 2, ky_fan=1, p=math.inf),
    "Contractions": lambda: lo.Contractions(S, 2, bounds=[1.0, 1.0], p=1),
}


@pytest.mark.parametrize("make", BESIDE.values(), ids=BESIDE)
def test_an_order_beside_other_bounds_is_refused(make):
    with pytest.raises(OptionError, match=r"replaces .*p"):
        make()


@pytest.mark.parametrize("bounds", [[1.0, 1e-14], [1.0, 1e-300], [1e10, 1.0, 1e-8]])
@every_dtype
def test_export_takes_every_member_of_a_box(bounds, dtype):
    module = lo.NBLoRA(S, len(bounds), bounds=bounds, dtype=D)
    module.assign(10 * bounds[0] * normal(5, 4), project=True)
    assert certify(module.export(dtype), module.feasible_set).exact
