"""Rotations of PEFT: its formulas, as its layers compute them, against the imported map."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import TargetError

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normal(*shape, size=0.3):
    g = torch.Generator().manual_seed(2)
    return size * torch.randn(*shape, generator=g, dtype=torch.float64)


def skew(entries, b=4):
    """Entries above the diagonal, row by row."""
    Q = torch.zeros(len(entries), b, b, dtype=torch.float64)
    for block, values in zip(Q, entries, strict=True):
        block[tuple(torch.triu_indices(b, b, 1))] = values
    return Q - Q.mT


def outputs(module):
    return X @ (WEIGHT + module().detach().to_dense()).mT


@pytest.mark.parametrize("blocks", [2, 1])
def test_exact_oft_is_met(blocks):
    entries = normal(blocks, 6)
    Q, eye = skew(entries).expand(2, -1, -1), torch.eye(4, dtype=torch.float64)
    R = (eye - Q) @ torch.linalg.inv(eye + Q)
    rotated = torch.einsum("nkr,krc->nkc", X.view(5, 2, 4), R).reshape(5, 8)
    module, distance = lo.from_peft_rotation(WEIGHT, "OFT", {"oft_R.weight": entries})
    torch.testing.assert_close(outputs(module), rotated @ WEIGHT.mT, rtol=0, atol=1e-12)
    assert distance < 1e-14


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_series_of_oft_is_left_by_as_much_as_it_says(size):
    entries = normal(2, 6, size=size)
    Q, eye = skew(entries), torch.eye(4, dtype=torch.float64)
    R = eye + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q
    rotated = torch.einsum("nkr,krc->nkc", X.view(5, 2, 4), R).reshape(5, 8)
    module, distance = lo.from_peft_rotation(
        WEIGHT, "OFT", {"oft_R.weight": entries}, series_terms=5
    )
    missed = torch.linalg.matrix_norm(outputs(module) - rotated @ WEIGHT.mT)
    assert float(missed) <= distance * float(X.norm() * torch.linalg.matrix_norm(WEIGHT, 2))
    # The truncated series is (I - Q^4) times a rotation.
    largest = float(torch.linalg.matrix_norm(Q, 2).amax())
    assert distance == pytest.approx(largest**4, rel=1e-6)


def test_boft_of_one_factor_is_met():
    factors = normal(1, 2, 4, 4)
    Q = (factors[0] - factors[0].mT) / 2
    eye = torch.eye(4, dtype=torch.float64)
    R = torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q)))
    module, _ = lo.from_peft_rotation(
        WEIGHT, "BOFT", {"boft_R": factors, "boft_s": torch.ones(6, 1)}
    )
    torch.testing.assert_close(outputs(module), X @ (R @ WEIGHT.mT), rtol=0, atol=1e-12)


def test_butterflies_are_met():
    """Two factors of blocks of four: halves of the two blocks change places between them."""
    factors = normal(2, 2, 4, 4)
    eye, order = torch.eye(4, dtype=torch.float64), [0, 1, 4, 5, 2, 3, 6, 7]
    mats = []
    for given in factors:
        Q = (given - given.mT) / 2
        mats.append(torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q))))
    P = torch.eye(8, dtype=torch.float64)[order]
    R = P @ mats[1] @ P.mT @ mats[0]
    module, distance = lo.from_peft_rotation(WEIGHT, "BOFT", {"boft_R": factors})
    torch.testing.assert_close(outputs(module), X @ R @ WEIGHT.mT, rtol=0, atol=1e-12)
    assert distance < 1e-13


def test_constraint_scales_large_blocks_down():
    entries = torch.stack([normal(6), 1e-3 * normal(6)])
    Q, eye = skew(entries), torch.eye(4, dtype=torch.float64)
    Q[0] *= 0.1 / 2**0.5 / torch.linalg.matrix_norm(Q[0])
    R = torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q)))
    module, _ = lo.from_peft_rotation(WEIGHT, "OFT", {"oft_R.weight": entries}, constraint=0.1)
    torch.testing.assert_close(outputs(module), X @ R @ WEIGHT.mT, rtol=0, atol=1e-12)


def test_scales_are_refused():
    tensors = {"boft_R": normal(1, 2, 4, 4), "boft_s": 2 * torch.ones(6, 1)}
    with pytest.raises(TargetError, match="rows that are scaled are no rotation"):
        lo.from_peft_rotation(WEIGHT, "BOFT", tensors)


@pytest.mark.parametrize("u", [torch.ones(8, 3), torch.ones(8, 8), torch.zeros(8, 2)])
def test_reflections_without_a_pair_are_refused(u):
    with pytest.raises(TargetError, match="reflections are imported in pairs"):
        lo.from_peft_rotation(WEIGHT, "HRA", {"hra_u": u})


@pytest.mark.parametrize("gram_schmidt", [False, True])
def test_hra_is_met(gram_schmidt):
    u, R = normal(8, 4), torch.eye(8, dtype=torch.float64)
    columns = list(u.mT)
    for i, column in enumerate(columns):
        for earlier in columns[:i] if gram_schmidt else ():
            column = column - (earlier @ column) * earlier
        columns[i] = column / column.norm()
        R = R @ (torch.eye(8) - 2 * torch.outer(columns[i], columns[i]))
    module, _ = lo.from_peft_rotation(WEIGHT, "HRA", {"hra_u": u}, gram_schmidt=gram_schmidt)
    torch.testing.assert_close(outputs(module), X @ (WEIGHT @ R).mT, rtol=0, atol=1e-12)
