"""A function of a stack of matrices is that of each matrix, and so are its gradients."""

import math
from functools import partial

import pytest
import torch

from lowrank_opt.linalg import extend_basis, polar_frame, product_svd
from lowrank_opt.linalg.cayley import tall_cayley
from lowrank_opt.linalg.contraction import contraction
from lowrank_opt.linalg.scaling import lp_norm, normalize_columns
from lowrank_opt.linalg.singular_values import differentiable_values
from tests.builders import normal

D = torch.float64
STACKS = [(2,), (2, 3), (3, 1, 2)]


def values(left, scale, right):
    return differentiable_values(product_svd(left, scale, right), (left, scale, right))


FUNCTIONS = {
    "tall Cayley": (tall_cayley, [(2, 2), (5, 2)]),
    "contraction": (contraction, [(5, 2)]),
    "columns": (normalize_columns, [(5, 2)]),
    "polar frame": (polar_frame, [(5, 2)]),
    "singular values": (values, [(5, 2), (2,), (4, 2)]),
    **{f"norm {p}": (partial(lp_norm, p=p), [(4,)]) for p in (1, 1.5, 2, 3, math.inf)},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("function", "shapes"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_stacks_are_taken_one_by_one(function, shapes, stack) -> None:
    given = [normal(*stack, *s, seed=k).requires_grad_() for k, s in enumerate(shapes)]
    found = function(*given)
    flat = [x.detach().reshape(-1, *s).requires_grad_() for x, s in zip(given, shapes, strict=True)]
    each = torch.stack([function(*one) for one in zip(*flat, strict=True)])
    torch.testing.assert_close(found.reshape(each.shape), each, rtol=1e-12, atol=1e-13)
    weights = normal(*each.shape, seed=9)
    slopes = torch.autograd.grad((found.reshape(each.shape) * weights).sum(), given)
    alone = torch.autograd.grad((each * weights).sum(), flat)
    for slope, one in zip(slopes, alone, strict=True):
        torch.testing.assert_close(slope.reshape(one.shape), one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_not_finite_stays_with_its_matrix(stack) -> None:
    left, scale, right = normal(*stack, 5, 2), normal(*stack, 2).abs(), normal(*stack, 4, 2)
    wanted = product_svd(left, scale, right)[1].flatten(0, -2)
    left.view(-1, 5, 2)[0, 0, 0] = math.nan
    found = product_svd(left, scale, right)[1].flatten(0, -2)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], wanted[1:])


@pytest.mark.parametrize("inside", [0, 1, 2])
def test_a_basis_grows_by_what_is_outside_of_it(inside: int) -> None:
    basis = torch.linalg.qr(normal(6, 2)).Q
    new = torch.cat((basis[:, :inside] @ normal(inside, inside, seed=1), normal(6, 1, seed=2)), 1)
    grown = extend_basis(basis, new)
    assert grown.shape == (6, 3)
    assert torch.equal(basis, grown[:, :2])
    torch.testing.assert_close(grown.mT @ grown, torch.eye(3, dtype=D), rtol=0, atol=1e-14)
    torch.testing.assert_close(grown @ (grown.mT @ new), new, rtol=0, atol=1e-13)
    assert torch.equal(grown, extend_basis(grown, new))
    assert torch.equal(grown, extend_basis(grown, torch.zeros(6, 0, dtype=D)))
