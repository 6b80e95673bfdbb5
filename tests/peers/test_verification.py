"""What the laws find in maps of other packages: each finding at its smallest case."""

from functools import partial

import geotorch
import pytest
import torch
from torch import nn

from lowrank_opt.testing import LAWS, BrokenLawError, Case, FreeParameters
from tests.peers.parametrizations import delora, fixed_rank, linear, low_rank, orthogonal

LAW_OF = {law.name: law for law in LAWS}
NORMAL, LARGE = FreeParameters(seed=1), FreeParameters("normal", (100.0,))
HUGE = FreeParameters("normal", (1e30,), seed=1)
householder = partial(orthogonal, orthogonal_map="householder")
cayley = partial(orthogonal, orthogonal_map="cayley")

# (map, law, case, what is found)
FINDINGS = [
    (householder, "purity", Case((2, 2), 2, NORMAL), r"right_inverse\(\) changed"),
    (cayley, "section", Case((2, 2), 2, NORMAL), "returns from right_inverse"),
    (cayley, "copies", Case((2, 2), 2, NORMAL), "cannot be pickled"),
    (low_rank, "purity", Case((1, 1), 1, NORMAL), r"right_inverse\(\) changed"),
    (low_rank, "section", Case((1, 1), 1, NORMAL), "returns from right_inverse"),
    (low_rank, "membership", Case((1, 2), 1, HUGE), "not finite"),
    (low_rank, "never_dense", Case((80, 80), 1, NORMAL), "6400 elements"),
    (fixed_rank, "purity", Case((2, 2), 1, NORMAL), r"right_inverse\(\) changed"),
    (fixed_rank, "never_dense", Case((80, 80), 1, NORMAL), "6400 elements"),
    (delora, "membership", Case((1, 1), 1, LARGE), "leaves SchattenBall"),
    (delora, "zero_start", Case((2, 2), 1, NORMAL), "next to a jump"),
]


@pytest.mark.parametrize(("make", "law", "case", "found"), FINDINGS)
def test_finding(make, law, case, found) -> None:
    with pytest.raises(BrokenLawError, match=found):
        LAW_OF[law](make, case=case)


@pytest.mark.parametrize("law", ["agreement", "smoothness", "in_place", "dtype"])
def test_law_that_torch_keeps(law) -> None:
    assert "passed" == LAW_OF[law](cayley, case=Case((3, 2), 2, NORMAL)).status


def test_weight_decay_sets_a_householder_weight_to_zero() -> None:
    layer = linear((6, 4), torch.float32)
    nn.utils.parametrizations.orthogonal(layer, orthogonal_map="householder")
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.01)
    layer(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert 0.0 == float(layer.weight.detach().abs().max())


def test_a_matrix_of_rank_four_is_refused_in_float32() -> None:
    layer = linear((512, 256), torch.float32)
    geotorch.low_rank(layer, "weight", 4)
    torch.manual_seed(0)
    with pytest.raises(geotorch.exceptions.InManifoldError):
        layer.weight = torch.randn(512, 4) @ torch.randn(4, 256)
