"""Derivatives of every map, forward and reverse, first and second: finite differences or a refusal.

A map that has no second derivative to offer must say so. The truth is a central difference of the
dense matrix, extrapolated once, which knows nothing of autograd.
"""

import math
from functools import partial

import pytest
import torch
from torch.func import functional_call, hessian, jacfwd, jvp, vjp, vmap

import lowrank_opt as lo
from lowrank_opt.errors import DerivativeError
from lowrank_opt.linalg import frozen_product
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.composed.weight_decomposed import WeightDecomposed
from lowrank_opt.parameterizations.example import example_tensor
from lowrank_opt.testing import FreeParameters

D = torch.float64
SHAPE, RANK = (7, 6), 2
WEIGHT = example_tensor(*SHAPE)

MORE = {
    "SVDFrames(qr)": lambda s, r: lo.SVDFrames(s, r, frame="qr", dtype=D),
    "SVDFrames(cayley)": lambda s, r: lo.SVDFrames(s, r, frame="cayley", radius=1.0, dtype=D),
    "RadialBall(spectral)": lambda s, r: lo.RadialBall(s, r, radius=1.0, norm=math.inf, dtype=D),
    "SpectralLoRA(square)": lambda s, r: lo.SpectralLoRA(s, min(s), radius=1.0, dtype=D),
    "NBLoRA(skew)": lambda s, r: lo.NBLoRA(s, r, radius=1.0, skew=True, dtype=D),
    "HomogeneousBall(p=1.5)": lambda s, r: lo.HomogeneousBall(s, r, radius=1.0, p=1.5, dtype=D),
    "DeLoRA(odd)": lambda s, r: lo.DeLoRA(s, r + 1, radius=1.0, dtype=D),
    "DeLoRA(peft)": lambda s, r: lo.DeLoRA(s, r, radius=1.0, variant="peft", dtype=D),
    "DeLoRA(author)": lambda s, r: lo.DeLoRA(
        s, r, radius=1.0, variant="author", learn_radius=True, dtype=D
    ),
    "SimplexRankOnes(odd)": lambda s, r: lo.SimplexRankOnes(s, r + 1, radius=1.0, dtype=D),
    "WeightDecomposed(whole norm)": lambda s, r: WeightDecomposed(
        lo.Factored(s, r, dtype=D), example_tensor(*s), detach_norm=False
    ),
}
# The paper's gradient of a norm that counts as constant is not the derivative of the map.
LEFT_OUT = {"WeightDecomposed(inner, weight)"}
MAPS = {e.name: partial(e.make, dtype=D) for e in examples() if e.name not in LEFT_OUT} | MORE

every_map = pytest.mark.parametrize("make", MAPS.values(), ids=MAPS)
everywhere = pytest.mark.parametrize("size", [0.3, 3.0])


class Map:
    """A map as a function of one vector, at a random point with random directions."""

    def __init__(self, make, size):
        self.module = make(SHAPE, RANK)
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        self.shapes = [p.shape for _, p in named]
        generator = torch.Generator().manual_seed(5)
        count = sum(p.numel() for _, p in named)
        self.point = size * torch.randn(count, dtype=D, generator=generator)
        self.direction = torch.randn(count, dtype=D, generator=generator)
        self.other = torch.randn(count, dtype=D, generator=generator)
        self.cotangent = torch.randn(*SHAPE, dtype=D, generator=generator)

    def __call__(self, vector):
        parts = vector.split([math.prod(s) for s in self.shapes])
        values = {n: x.view(s) for n, x, s in zip(self.names, parts, self.shapes, strict=True)}
        if isinstance(self.module, WeightDecomposed):
            return functional_call(
                _Merged(self.module), {f"0.{n}": x for n, x in values.items()}, ()
            )
        return functional_call(self.module, values, ()).to_dense()

    def scalar(self, vector):
        return (self(vector) * self.cotangent).sum()

    def gradient(self, vector):
        return vjp(self, vector)[1](self.cotangent)[0]


class _Merged(torch.nn.ModuleList):
    def __init__(self, module):
        super().__init__([module])

    def forward(self):
        return self[0].merged_dense(WEIGHT)


def difference(function, point, direction, step=2e-4):
    """Central differences at three steps, extrapolated twice: errors of order step^6."""
    with torch.no_grad():
        a, b, c = (
            (function(point + h * direction) - function(point - h * direction)) / (2 * h)
            for h in (step, step / 2, step / 4)
        )
    ab, bc = (4 * b - a) / 3, (4 * c - b) / 3
    return (16 * bc - ab) / 15


def assert_near(actual, expected, name="derivative"):
    near = 1e-8 * (1 + float(expected.abs().max()))
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=near, msg=lambda text: f"{name}: {text}"
    )


def or_refused(compute):
    """What was computed, or None where the map says that it has no such derivative."""
    try:
        return compute()
    except DerivativeError:
        return None


@every_map
@everywhere
def test_first_derivatives_are_right(make, size):
    f = Map(make, size)
    expected = difference(f, f.point, f.direction)
    assert_near(jvp(f, (f.point,), (f.direction,))[1], expected, "forward")
    reverse = f.gradient(f.point) @ f.direction
    assert_near(reverse, (expected * f.cotangent).sum(), "reverse")


@every_map
def test_dual_numbers_are_the_derivative(make):
    f = Map(make, 1.0)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(f.point, f.direction)
        tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
    assert_near(tangent, difference(f, f.point, f.direction))


SECOND = {
    "jvp of vjp": lambda f: jvp(f.gradient, (f.point,), (f.direction,))[1],
    "vjp of vjp": lambda f: vjp(f.gradient, f.point)[1](f.direction)[0],
    "vjp of jvp": lambda f: vjp(
        lambda x: (jvp(f, (x,), (f.direction,))[1] * f.cotangent).sum(), f.point
    )[1](torch.ones((), dtype=D))[0],
    "hessian": lambda f: hessian(f.scalar)(f.point) @ f.direction,
    "double backward": lambda f: torch.autograd.functional.hvp(f.scalar, f.point, f.direction)[1],
}


@every_map
@everywhere
def test_second_derivatives_are_right_or_refused(make, size):
    f = Map(make, size)
    expected = difference(f.gradient, f.point, f.direction)
    for name, compute in SECOND.items():
        found = or_refused(partial(compute, f))
        assert_near(expected if found is None else found, expected, name)


SPECIAL = {
    "start": FreeParameters("start"),
    "permutations": FreeParameters("permutation"),
    "first is zero": FreeParameters("normal", (0.0, 1.0)),
}


@every_map
@pytest.mark.parametrize("place", SPECIAL.values(), ids=SPECIAL)
def test_derivatives_where_values_tie_or_vanish(make, place):
    """Where both sides of a direction and both steps agree; what bends there has no derivative."""
    f = Map(make, 1.0)
    place.fill_(f.module)
    f.point = torch.cat([f.module.get_parameter(n).detach().flatten() for n in f.names])
    tangent = jvp(f, (f.point,), (f.direction,))[1]
    second = or_refused(lambda: jvp(f.gradient, (f.point,), (f.direction,))[1])
    for function, found, step in ((f, tangent, 1e-5), (f.gradient, second, 1e-4)):
        here = function(f.point).detach()
        up, down, near, low = (
            function(f.point + h * step * f.direction).detach() for h in (1, -1, 0.5, -0.5)
        )
        wide, half = (up - down) / (2 * step), (near - low) / step
        expected = (4 * half - wide) / 3
        doubt = float(((up - 2 * here + down).abs() / step + (wide - half).abs()).max())
        size = float(torch.maximum(expected.abs().max(), here.abs().max()))
        torch.testing.assert_close(
            expected if found is None else found, expected, rtol=0, atol=1e-5 * size + 10 * doubt
        )


@every_map
def test_forward_over_forward_is_right_or_refused(make):
    f = Map(make, 1.0)

    def first(x):
        return jvp(f, (x,), (f.other,))[1]

    found = or_refused(lambda: jvp(first, (f.point,), (f.direction,))[1])
    expected = difference(lambda x: difference(f, x, f.other, 1e-2), f.point, f.direction, 1e-2)
    scale = 1e-5 * (1 + float(expected.abs().max()))
    torch.testing.assert_close(expected if found is None else found, expected, rtol=0, atol=scale)


@every_map
def test_batched_forward_mode_agrees_with_single_directions(make):
    f = Map(make, 1.0)
    directions = torch.stack((f.direction, f.other))
    batched = vmap(lambda d: jvp(f, (f.point,), (d,))[1])(directions)
    single = torch.stack([jvp(f, (f.point,), (d,))[1] for d in directions])
    assert_near(batched, single)
    assert_near(jacfwd(f)(f.point) @ f.direction, single[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_frozen_product_can_be_differentiated_forward_twice(dtype):
    weight, x = WEIGHT.to(dtype), torch.linspace(1, 2, SHAPE[1], dtype=D)
    twice = jacfwd(jacfwd(lambda x: frozen_product(weight, x.pow(2).unsqueeze(1)).sum()))(x)
    torch.testing.assert_close(twice, torch.diag(2 * weight.double().sum(0)))


SINGULAR = {
    "forward over forward": lambda f, x: jacfwd(jacfwd(f))(x),
    "forward over reverse": lambda f, x: hessian(f)(x),
    "reverse over forward": lambda f, x: torch.func.jacrev(jacfwd(f))(x),
    "double backward": torch.autograd.functional.hessian,
}


@pytest.mark.parametrize("compute", SINGULAR.values(), ids=SINGULAR)
def test_second_derivatives_of_singular_values_are_refused(compute):
    one, eye = torch.ones(2, dtype=D), torch.eye(2, dtype=D)

    def nuclear(left):
        return lo.LowRankOperator(left, one, eye).schatten_norm(1)

    with pytest.raises(DerivativeError, match="differentiable once"):
        compute(nuclear, torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=D))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_norms_have_forward_derivatives(p):
    one, right = torch.ones(2, dtype=D), WEIGHT[:, :2]

    def norm(left):
        return lo.LowRankOperator(left, one, right).schatten_norm(p)

    left, direction = WEIGHT[:, 2:4], WEIGHT[:, 4:6]
    expected = difference(norm, left, direction)
    torch.testing.assert_close(jvp(norm, (left,), (direction,))[1], expected)
