"""Contractions, SpectralLoRA and RadialBall against dense formulas and hostile parameters."""

import math
from functools import partial

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, RadiusError
from lowrank_opt.linalg import contraction, framed_product, inverse_one_plus_gram
from tests.oracles import expect_boundary_reached

MAKES = {
    "contractions": partial(lo.Contractions, radius=2.0),
    "contractions_nuclear": partial(lo.Contractions, radius=2.0, p=1.0),
    "contractions_signed": partial(lo.Contractions, bounds=[-2.0, 1.0, 0.5]),
    "spectral_lora": partial(lo.SpectralLoRA, radius=2.0),
    "radial": partial(lo.RadialBall, radius=2.0),
    "radial_nuclear": partial(lo.RadialBall, radius=2.0, norm=1.0),
    "radial_ky_fan": partial(lo.RadialBall, radius=2.0, norm=partial(lo.KyFanBall, 2)),
}
every_family = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())


def made(make, shape=(6, 5), dtype=torch.float64):
    torch.manual_seed(0)
    module = make(shape, 3, dtype=dtype)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module


def dense_k(x: np.ndarray) -> np.ndarray:
    """Return the matrix whose singular values s became 2 s / (1 + s^2), from a dense SVD."""
    U, s, Vh = np.linalg.svd(x, full_matrices=False)
    return (U * (2 * s / (1 + s**2))) @ Vh


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def test_contraction_equals_the_singular_value_map() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    np.testing.assert_allclose(array(contraction(x)), dense_k(array(x)), atol=1e-14)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e12])
def test_contraction_stays_one_beside_a_unit_direction(size: float) -> None:
    q = torch.linalg.qr(torch.randn(9, 3, dtype=torch.float64)).Q
    mixed = q * torch.tensor([size, 1.0, 1.0], dtype=torch.float64)
    turned = mixed @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert np.linalg.norm(array(contraction(turned)), 2) <= 1 + 16 * 2.2e-16


def test_contractions_equal_the_formula() -> None:
    module = made(MAKES["contractions_signed"])
    expected = dense_k(array(module.left)) @ np.diag([-2, 1, 0.5]) @ dense_k(array(module.right)).T
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-14)


def test_spectral_lora_equals_the_formula() -> None:
    module = made(MAKES["spectral_lora"])
    expected = 2 * dense_k(array(module.left) @ array(module.right).T)
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("radial", np.linalg.norm),
        ("radial_nuclear", partial(np.linalg.norm, ord="nuc")),
        ("radial_ky_fan", lambda P: np.linalg.svd(P)[1][:2].sum()),
    ],
)
def test_radial_ball_equals_the_formula(name: str, norm) -> None:
    module = made(MAKES[name])
    P = array(module.left) @ array(module.right).T
    expected = 4 * P / (1 + norm(P) ** 2)
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-14)


@every_family
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-160, 1.0, 1e4, 1e6, 1e30, 1e300])
def test_hostile_parameters_stay_inside_with_finite_gradients(make, size: float) -> None:
    module = made(make)
    with torch.no_grad():
        for p in module.parameters():
            # Columns that differ by one where they are large: cancelling, almost parallel.
            p.copy_(size * p[..., :1] * torch.tensor([1.0, -1.0, 1.0]) + p * min(size, 1.0))
    op = module()
    assert module.feasible_set.contains(op.detach())
    (op.linear(torch.ones(2, 5, dtype=torch.float64))).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@every_family
def test_cancelling_columns_do_not_lose_the_bound(make) -> None:
    module = made(make)
    if module.left.shape != (6, 3):
        pytest.skip("needs two factors")
    with torch.no_grad():
        module.left[:, 1] = 1e7 * module.left[:, 0] + module.left[:, 1]
        module.left[:, 0] *= -1e7
        module.right[:, 1] = module.right[:, 0]
    assert module.feasible_set.contains(module().detach())


@every_family
def test_right_inverse_reaches_boundary_and_rank_deficient_targets(make) -> None:
    expect_boundary_reached(made(make), atol=1e-13)


@every_family
def test_right_inverse_refuses_what_is_outside(make) -> None:
    with pytest.raises(NotInSetError, match="pass project=True"):
        made(make).assign(10 * torch.eye(6, 5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["spectral_lora", "radial", "radial_nuclear"])
def test_first_gradient_is_that_of_lora(name: str) -> None:
    module = MAKES[name]((6, 5), 3, dtype=torch.float64)
    lora = lo.Factored((6, 5), 3, scaling=4.0, dtype=torch.float64)
    lora.load_state_dict(module.state_dict())
    x = torch.randn(4, 5, dtype=torch.float64)
    for layer in (module, lora):
        layer().linear(x).square().sum().add(layer().linear(x).sum()).backward()
    assert torch.allclose(module.left.grad, lora.left.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["spectral_lora", "radial"])
def test_gradients_are_exact_where_a_factor_loses_rank(name: str) -> None:
    module = made(MAKES[name])
    weights = torch.randn(6, 5, dtype=torch.float64)

    def value(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        op = torch.func.functional_call(module, {"left": left, "right": right}, ())
        return (weights * op.to_dense()).sum()

    left, right = module.left.detach().clone(), module.right.detach().clone()
    left[:, 2] = left[:, 0]
    right[:, 1] = 0.0
    assert torch.autograd.gradcheck(
        value, (left.requires_grad_(), right.requires_grad_()), fast_mode=False, atol=1e-6
    )


@pytest.mark.parametrize("name", ["spectral_lora", "radial"])
def test_offsets_of_framed_products_start_at_zero(name: str) -> None:
    offset = lo.Offset(made(MAKES[name]))
    assert 0.0 == offset().to_dense().abs().max().item()
    assert 0.0 == offset.zero_()().to_dense().abs().max().item()


def test_inverse_of_one_plus_gram_equals_the_dense_inverse() -> None:
    x = 100 * torch.randn(5, 3, dtype=torch.float64)
    expected = np.linalg.inv(np.eye(3) + array(x).T @ array(x))
    np.testing.assert_allclose(array(inverse_one_plus_gram(x)), expected, rtol=1e-9)


def test_framed_product_keeps_products_below_the_range() -> None:
    tiny = torch.full((3, 1), 1e-160, dtype=torch.float64)
    core = framed_product(tiny, 1e155 * torch.ones(3, 1, dtype=torch.float64)).core
    assert core.abs().item() == pytest.approx(3e-5, rel=1e-13)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: lo.Contractions((3, 3), 2, bounds=[1.0]),
            OptionError,
            "needs rank=2 values; got 1 values",
        ),
        (
            lambda: lo.Contractions((3, 3), 2, bounds=[1, 1], radius=1.0),
            OptionError,
            "bounds replaces radius",
        ),
        (lambda: lo.Contractions((3, 3), 2, radius=-1.0), RadiusError, "radius must be positive"),
        (
            lambda: lo.SpectralLoRA((3, 3), 2, radius=math.nan),
            RadiusError,
            "radius must be positive",
        ),
        (
            lambda: lo.RadialBall((3, 3), 2, radius=1.0, norm=0.5),
            RadiusError,
            r"must be in \[1, inf\]",
        ),
        (
            lambda: lo.RadialBall((3, 3), 2, radius=1.0, norm=lambda _r, k: lo.RankAtMost(k)),
            OptionError,
            "must return a NormBall",
        ),
    ],
)
def test_bad_bounds_are_refused(make, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make()
    assert error is caught.type


@pytest.mark.parametrize("make", [lo.NBLoRA, lo.Contractions], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("p", "small"), [(3.0, 1e-6), (40.0, 1e-9), (40.0, 0.1), (200.0, 0.01)])
def test_a_small_value_beside_the_radius_is_assigned(make, p: float, small: float) -> None:
    # At p = 40 the 40th power of 1e-9 underflows: its bound was 0, and the value lost.
    module = make((6, 5), 2, radius=1.0, p=p, dtype=torch.float64)
    target = torch.zeros(6, 5, dtype=torch.float64)
    target[0, 0], target[1, 1] = 1.0, small
    reached = module.assign(target, project=True)().detach().to_dense()
    assert reached[1, 1].item() == pytest.approx(small, rel=1e-6)
