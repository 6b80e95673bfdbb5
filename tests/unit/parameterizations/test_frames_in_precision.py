"""Frozen frames keep their orthonormality through every chain of dtypes."""

import itertools
import math

import pytest
import torch

import lowrank_opt as lo
from tests.oracles import fill, normal

D = torch.float64
DTYPES = [torch.bfloat16, torch.float16, torch.float32, D]


def inner(dtype):
    return lo.NBLoRA((3, 3), 2, radius=1.0, dtype=dtype)


def inductive(dtype):
    features = normal(7, 3).to(dtype), normal(6, 3).to(dtype)
    return lo.Inductive(inner(dtype), *features, orthonormal=True)


MAKE = {
    "NestedSVD": lambda dtype: lo.NestedSVD(normal(7, 6).to(dtype), inner(dtype)),
    "Inductive": inductive,
}
every_map = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
CHAINS = list(itertools.product(DTYPES, DTYPES, DTYPES))


def frames(module):
    names = ("outer_left", "outer_right", "row_features", "col_features")
    return [getattr(module, name) for name in names if hasattr(module, name)]


def defect(frame):
    Q = frame.double()
    return float((Q.mT @ Q - torch.eye(Q.shape[1], dtype=D)).abs().max())


@every_map
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_frames_are_orthonormal_to_their_dtype(make, chain):
    module = make(chain[0]).to(chain[1]).to(chain[2])
    wide = torch.promote_types(chain[2], torch.float32)
    assert {wide} == {x.dtype for x in frames(module)}
    assert all(defect(x) <= 4 * torch.finfo(wide).eps for x in frames(module))


@every_map
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_norm_bounds_survive_every_chain(make, chain):
    module = fill(make(chain[0]), 100.0).to(chain[1]).to(chain[2])
    op, unit = module().detach().to(dtype=D), torch.finfo(chain[2]).eps
    # Two roundings of each factor and one of the scale, of 14 units of float64 the arithmetic.
    allowed = 1 + math.sqrt(2) * (2 * unit + 14 * torch.finfo(D).eps)
    assert float(torch.linalg.matrix_norm(op.to_dense(), 2)) <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("split", ["none", "left", "right", "sqrt"])
def test_nora_of_a_half_weight_keeps_its_frames(dtype, split):
    module = lo.nora(normal(9, 8).to(dtype), 2, outer_rank=4, split=split)
    assert all(defect(x) <= 4 * torch.finfo(torch.float32).eps for x in frames(module))
    wide = fill(module).float()
    assert wide.feasible_set.contains(wide().detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("absorb_sigma", [True, False])
def test_lora_xs_of_a_half_weight_keeps_its_frames(dtype, absorb_sigma):
    module = lo.lora_xs(normal(9, 8).to(dtype), 3, absorb_sigma=absorb_sigma)
    assert all(defect(x) <= 4 * torch.finfo(torch.float32).eps for x in frames(module))
    wide = fill(module).float()
    assert wide.feasible_set.contains(wide().detach())
