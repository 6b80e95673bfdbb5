"""The one tolerance: what rounding explains, in every dtype, and not more."""

import math

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.parameterizations.certificate import certify
from lowrank_opt.sets import relative_tolerance

D = torch.float64


def diagonal(*values):
    return lo.LowRankOperator.from_dense(torch.diag(torch.tensor(values, dtype=D)))


def test_tolerance_is_the_documented_one():
    ball = lo.SchattenBall(math.inf, 1.0, 4)
    eps = 2.0**-52
    assert 32 * eps == relative_tolerance(D, 4)
    assert ball.contains(diagonal(1 + 31 * eps))
    assert not ball.contains(diagonal(1 + 34 * eps))


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_half_precision_is_no_excuse(dtype, rank, p):
    # Factors in half precision are an exact matrix: 5 sqrt(r) units outside is outside.
    eye = torch.eye(rank, dtype=dtype)
    stored = torch.ones(rank, dtype=D) * rank ** (-1 / p)
    unit = torch.finfo(dtype).eps * math.sqrt(rank)
    ball, one = lo.SchattenBall(p, 1.0, rank), lo.LowRankOperator(eye, stored, eye)
    assert ball.contains(one * (1 + 1.9 * unit))
    assert not ball.contains(one * (1 + 2.1 * unit))


@pytest.mark.parametrize(("rank", "factor"), [(1, 1.02), (8, 1.05), (8, 1.3), (64, 1.13)])
def test_a_bfloat16_norm_outside_is_refused(rank, factor):
    eye = torch.eye(64, rank).bfloat16()
    op = lo.LowRankOperator(eye, torch.full((rank,), factor), eye)
    ball = lo.SchattenBall(p=math.inf, radius=1.0, rank=rank)
    assert not ball.contains(op)
    assert not certify(op, ball).holds
