"""``F(x; W0 + dW)`` on modules of every kind, the dense weight written by the test itself."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, disabled, merge, unmerge
from lowrank_opt.testing import forbid_dense


class Conv1D(nn.Module):
    """The layer of GPT-2, registered by the name of the class that it stands for here."""

    __module__, __qualname__ = "transformers.pytorch_utils", "Conv1D"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """Fused weights of a mixture of experts, bare parameters of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 5))
        self.bias = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eij->bej", x, self.up) + self.bias


class Tied(nn.Module):
    """An embedding whose table is the weight of the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.head.weight = self.emb.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.emb(indices).tanh())


def encoder(layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, layers)


INDICES = torch.tensor([[1, 2, 0], [8, 0, 2]])
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor | tuple[int, ...], ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), ((3, 2, 5),)),
    "linear_vector": (lambda: nn.Linear(5, 1), ((5,),)),
    "conv1d_of_gpt2": (lambda: Conv1D(7, 5), ((3, 5),)),
    "embedding": (lambda: nn.Embedding(9, 6, padding_idx=2), (INDICES,)),
    "conv1d": (
        lambda: nn.Conv1d(4, 6, 3, groups=2, padding="same", padding_mode="reflect"),
        ((2, 4, 9),),
    ),
    "conv1d_depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), ((4, 9),)),
    "conv2d": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)),
        ((2, 4, 9, 9),),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2, groups=4), ((4, 5, 5, 5),)),
    "transposed1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2),
        ((2, 4, 9),),
    ),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), ((4, 5, 5),)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), ((1, 2, 3, 3, 3),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2), ((2, 3, 8),) * 3),
    "attention_kdim": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        ((2, 3, 8), (2, 5, 6), (2, 5, 4)),
    ),
    "lstm": (lambda: nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3), ((4, 2, 5),)),
    "gru": (lambda: nn.GRU(5, 6, batch_first=True), ((4, 2, 5),)),
    "gru_cell": (lambda: nn.GRUCell(5, 6), ((4, 5),)),
    "bilinear": (lambda: nn.Bilinear(4, 5, 6), ((2, 4), (2, 5))),
    "experts": (Experts, ((2, 4),)),
    "tied": (Tied, (INDICES,)),
    "encoder": (lambda: encoder(2), ((2, 3, 8),)),
}
MODULES = pytest.mark.parametrize("case", CASES)


def made(case: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a module in float64 and its inputs."""
    torch.manual_seed(seed)
    build, shapes = CASES[case]
    inputs = (x if isinstance(x, Tensor) else torch.randn(*x).double() for x in shapes)
    return build().double(), tuple(inputs)


def ball(shape: tuple[int, int], rank: int = 2) -> lo.Parameterization:
    return lo.NBLoRA(shape, rank=min(rank, *shape), radius=0.7)


def shake(model: nn.Module) -> None:
    """Move every trainable parameter away from its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) if parameter.requires_grad else 0.0)


def with_dense_weights(base: nn.Module, adapted: nn.Module) -> nn.Module:
    """Return a copy of `base` into whose weights the updates are written, one by one."""
    oracle = copy.deepcopy(base)
    for found in adapted_weights(adapted):
        dense = torch.stack([member().to_dense() for member in found.updates])
        target = dict(oracle.named_parameters(remove_duplicate=False))[found.name]
        own = found.slot.parameter
        target.data = own.detach() + dense.detach().reshape(target.shape)
    return oracle


def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    y = model(*inputs)
    return y[0] if isinstance(y, tuple) else y


@MODULES
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_start_is_the_base_bit_for_bit(case: str, training: bool, grad: bool) -> None:
    base, inputs = made(case)
    base.train(training)
    adapted = adapt(copy.deepcopy(base), ball, targets=".*")
    with torch.set_grad_enabled(grad):
        assert torch.equal(output(base, inputs), output(adapted, inputs))


@MODULES
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_forward_equals_dense_weights(case: str, training: bool, grad: bool) -> None:
    base, inputs = made(case)
    base.train(training)
    adapted = adapt(copy.deepcopy(base), ball, targets=".*")
    shake(adapted)
    oracle = with_dense_weights(base, adapted)
    with torch.set_grad_enabled(grad):
        expected = output(oracle, inputs)
        assert not torch.allclose(output(base, inputs), expected)
        torch.testing.assert_close(output(adapted, inputs), expected)


@MODULES
def test_gradient_equals_the_one_through_dense_weights(case: str) -> None:
    base, inputs = made(case)
    adapted = adapt(copy.deepcopy(base), ball, targets=".*")
    shake(adapted)
    oracle = with_dense_weights(base, adapted)
    for model in (adapted, oracle):
        output(model, inputs).square().sum().backward()
    truth = dict(oracle.named_parameters(remove_duplicate=False))
    for found in adapted_weights(adapted):
        gradient = truth[found.name].grad
        parameters = [p for member in found.updates for p in member.parameters()]
        mine = [p.grad for p in parameters]
        dense = torch.stack([member().to_dense() for member in found.updates])
        chained = torch.autograd.grad(dense, parameters, gradient.reshape(dense.shape))
        torch.testing.assert_close(mine, list(chained))


@MODULES
def test_base_survives_training_merging_and_unmerging_bit_for_bit(case: str) -> None:
    base, inputs = made(case)
    weights = copy.deepcopy(base.state_dict())
    adapted = adapt(base, ball, targets=".*")
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output(adapted, inputs).square().sum().backward()
        optimizer.step()
    expected = output(adapted, inputs)
    merge(adapted)
    torch.testing.assert_close(output(adapted, inputs), expected)
    unmerge(adapted)
    assert torch.equal(expected, output(adapted, inputs))
    with disabled(adapted):
        now = adapted.state_dict()
        assert all(torch.equal(w, now[k]) for k, w in weights.items())


@MODULES
def test_disabled_is_the_base_even_when_merged(case: str) -> None:
    base, inputs = made(case)
    adapted = adapt(copy.deepcopy(base), ball, targets=".*")
    shake(adapted)
    # Freezing alone changes the last bits of some kernels: torch folds inputs by requires_grad.
    base.requires_grad_(False)
    with disabled(adapted):
        assert torch.equal(output(base, inputs), output(adapted, inputs))
    merge(adapted)
    with disabled(adapted):
        assert torch.equal(output(base, inputs), output(adapted, inputs))


@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 9),
    rank=st.integers(1, 3),
    batch=st.lists(st.integers(0, 3), max_size=2),
    seed=st.integers(0, 99),
)
def test_linear_of_any_shape(
    outputs: int, inputs: int, rank: int, batch: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    base = nn.Linear(inputs, outputs).double()
    adapted = adapt(copy.deepcopy(base), lambda shape: ball(shape, rank), targets=".*")
    shake(adapted)
    x = torch.randn(*batch, inputs).double()
    torch.testing.assert_close(adapted(x), with_dense_weights(base, adapted)(x))


@pytest.mark.parametrize(
    ("base", "x"),
    [
        (nn.Linear(89, 97), (3, 89)),
        (nn.Embedding(97, 89), torch.tensor([3, 96])),
        (nn.Conv1d(30, 97, 3), (1, 30, 4)),
        (nn.Conv1d(60, 96, 3, groups=2), (1, 60, 4)),
        (nn.ConvTranspose1d(97, 30, 3), (1, 97, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_dense_update_in_forward_or_backward(base: nn.Module, x: Tensor | tuple) -> None:
    adapted = adapt(base, ball, targets=".*")
    shake(adapted)
    inputs = x if isinstance(x, Tensor) else torch.randn(*x)
    with forbid_dense(base.weight.flatten(1).shape):
        adapted(inputs).sum().backward()


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (0, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (0, 4, 5, 5)),
        (nn.Linear(4, 6), (0, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_empty_batch(base: nn.Module, shape: tuple[int, ...]) -> None:
    expected = base(torch.zeros(*shape)).shape
    assert expected == adapt(base, ball, targets=".*")(torch.zeros(*shape)).shape
