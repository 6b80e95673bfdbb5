"""At the edges: no value, zero, a half turn, the smallest numbers, one that is not finite."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import vmap

from lowrank_opt.linalg import extend_basis, polar_frame, product_svd, qr_frame, turn_between
from lowrank_opt.linalg.climbing import climb
from lowrank_opt.linalg.forward_rule import is_differentiated
from lowrank_opt.linalg.projections import _lp_roots
from lowrank_opt.linalg.scaling import lp_norm, normalize_columns
from lowrank_opt.linalg.singular_values import differentiable_values
from tests.builders import normal

D = torch.float64


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_no_values_have_norm_zero(shape, p):
    assert torch.equal(torch.zeros(shape, dtype=D), lp_norm(torch.zeros(*shape, 0, dtype=D), p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize("computed", [None, D])
def test_columns_are_units_or_count_as_zero(dtype, computed):
    info, half = torch.finfo(dtype), math.sqrt(0.5)
    least = info.tiny if dtype == torch.float16 else info.tiny / info.eps
    columns = torch.tensor([[2.0 * least, 0.5 * least], [-2.0 * least, 0.0]], dtype=dtype)
    units = normalize_columns(columns.requires_grad_(), dtype=computed)
    torch.testing.assert_close(units, units.new_tensor([[half, 0.0], [-half, 0.0]]))
    units[0, 1].backward()
    assert not columns.grad.any()


def test_a_forward_derivative_is_one_with_gradients_switched_off():
    with torch.no_grad():
        assert not is_differentiated()
        with forward_ad.dual_level():
            assert is_differentiated()


def test_zero_adds_no_direction():
    basis = torch.linalg.qr(normal(6, 2)).Q
    assert torch.equal(basis, extend_basis(basis, torch.zeros(6, 2, dtype=D)))
    assert extend_basis(None, torch.zeros(6, 2, dtype=D)).shape == (6, 0)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_number_that_is_not_finite_makes_no_values(place, value):
    triple = normal(5, 2), normal(2).abs(), normal(4, 2)
    triple[place].view(-1)[0] = value
    assert not product_svd(*triple)[1].isfinite().any()


def test_singular_values_are_mapped_over_a_batch():
    left, one, right = normal(3, 5, 2), torch.ones(2, dtype=D), normal(4, 2)

    def values(x):
        return differentiable_values(product_svd(x, one, right), (x, one, right))

    torch.testing.assert_close(vmap(values)(left), torch.stack([values(x) for x in left]))


@pytest.mark.parametrize("radius", [None, 1.2])
def test_nothing_is_turned_by_nothing(radius):
    nothing = torch.zeros(2, 3, dtype=D)
    assert not turn_between(nothing, nothing, radius).any()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rows_turn_half_round_by_a_rotation(rows, size):
    A = normal(min(rows, size - 1), size)
    found = turn_between(A, -2 * A)
    R = torch.eye(size, dtype=D) + found
    torch.testing.assert_close(R.mT @ R, torch.eye(size, dtype=D), rtol=0, atol=1e-13)
    torch.testing.assert_close(A @ found, -2 * A, rtol=0, atol=1e-12)
    assert float(torch.linalg.det(R)) > 0


@pytest.mark.parametrize("radius", [0.4, 1.2, 1.9])
def test_half_a_turn_is_cut_off_at_the_radius(radius):
    eye = torch.eye(2, dtype=D)
    found = turn_between(eye, -2 * eye, radius)
    assert float(torch.linalg.matrix_norm(found, 2)) == pytest.approx(radius, rel=1e-9)
    torch.testing.assert_close((eye + found).mT @ (eye + found), eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1e-12, 1.0])
def test_climbing_starts_flat_in_a_direction(size):
    start = torch.zeros(2, dtype=D, requires_grad=True)
    found = climb(lambda x: size * (x[0] - x[0] ** 2 - x[1] ** 2), start)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0], dtype=D), rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [1.0001, 1.001, 1.01, 1.5, 3.0, 100.0, 1001.0, 1e4])
@pytest.mark.parametrize("weight", [1e-3, 0.7, 1e3])
def test_roots_of_projections_lie_where_the_sum_passes(p, weight):
    v = torch.logspace(-3, 3, 61, dtype=D)
    x = _lp_roots(v, v.new_tensor(weight), p)
    known = x > 1e-300
    assert bool(known.any())
    for factor, above in ((1 - 1e-9, False), (1 + 1e-9, True)):
        near = factor * x
        assert bool((((near + weight * near.pow(p - 1)) > v) == above)[known].all())


@pytest.mark.parametrize("frame", [qr_frame, polar_frame])
def test_frames_of_numbers_that_vanish_have_gradients_that_do_not_overflow(frame):
    rows = (1e-299 * (torch.ones(4, 2, dtype=D) + 1e-9 * normal(4, 2))).requires_grad_()
    (found,) = torch.autograd.grad(frame(rows), rows, 1e3 * normal(4, 2, seed=1))
    assert bool(torch.isfinite(found).all())
