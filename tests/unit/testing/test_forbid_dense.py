import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import DenseMaterializationError, ShapeError
from lowrank_opt.testing import forbid_dense

SHAPE = (97, 89)


def factors(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.ones(97, 3, requires_grad=requires_grad),
        torch.ones(89, 3, requires_grad=requires_grad),
    )


@pytest.mark.parametrize(
    "dense",
    [
        lambda L, R: L @ R.mT,
        lambda L, R: R @ L.mT,
        lambda L, R: torch.einsum("ik,jk->ij", L, R),
        lambda L, R: torch.outer(L[:, 0], R[:, 0]).flatten(),
        lambda L, R: (L.unsqueeze(1) * R.unsqueeze(0)).sum(-1),
        lambda L, R: torch.zeros(97 * 89),
        lambda L, R: torch.empty(89, 97, dtype=torch.float16),
        lambda L, R: torch.eye(97)[:, :1],
        lambda L, R: lo.LowRankOperator(L, torch.ones(3), R).to_dense(),
    ],
)
def test_dense_allocation_raises(dense) -> None:
    L, R = factors()
    with pytest.raises(DenseMaterializationError), forbid_dense(SHAPE):
        dense(L, R)


def test_dense_allocation_in_backward_raises() -> None:
    class DenseGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, L, R):
            ctx.save_for_backward(L, R)
            return (L.sum(0) * R.sum(0)).sum()

        @staticmethod
        def backward(ctx, grad):
            L, R = ctx.saved_tensors
            G = grad * torch.ones(97, 89)
            return G @ R, G.mT @ L

    loss = DenseGradient.apply(*factors(requires_grad=True))
    with pytest.raises(DenseMaterializationError), forbid_dense(SHAPE):
        loss.backward()


def test_factors_pass() -> None:
    L, R = factors(requires_grad=True)
    op = lo.LowRankOperator(L, torch.ones(3), R)
    x = torch.ones(20, 89)
    with forbid_dense(op):
        op.linear(x).sum().backward()
        op.thin_svd()
        op.entries(torch.arange(80), torch.arange(80))
    assert (97, 3) == L.grad.shape


def test_views_and_existing_memory_pass() -> None:
    dense = torch.zeros(SHAPE)
    with forbid_dense(SHAPE):
        dense.mT.reshape(89, 97)
        torch.ones(1, 1).expand(97, 89)
        dense.add_(1.0)
        torch.mm(*(x.detach() for x in (factors()[0], factors()[1].mT)), out=dense)
    assert 3.0 == dense[0, 0].item()


def test_parameterization_is_accepted() -> None:
    ball = lo.HomogeneousBall(SHAPE, 3, radius=1.0)
    with forbid_dense(ball):
        ball()


def test_guard_ends_with_the_block() -> None:
    L, R = factors()
    with forbid_dense(SHAPE):
        pass
    assert SHAPE == (L @ R.mT).shape


def test_message_names_rule_shape_and_cure() -> None:
    L, R = factors()
    pattern = r"no 8633 or more elements .* 97 x 89 .* aten.mm.* \(97, 89\): work with the factors"
    with pytest.raises(DenseMaterializationError, match=pattern), forbid_dense(SHAPE):
        L @ R.mT


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2.0, 3), (1, 2, 3)])
def test_shape_is_checked(shape) -> None:
    with pytest.raises(ShapeError, match="two positive integers"), forbid_dense(shape):
        pass
