"""Starts: the matrix is the published one, the set is kept, and the model computes what it did."""

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn import adapt, adapter_report
from lowrank_opt.training import start

PRESERVING = ["pissa", "milora", "eva", "corda", "lora_ga"]
X = np.random.default_rng(0).standard_normal((40, 7)) * np.geomspace(0.1, 3, 7)
Y = np.random.default_rng(1).standard_normal((40, 5))


def linear(make):
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=False).double()
    W0 = layer.weight.detach().numpy().copy()
    return adapt(nn.Sequential(layer), make, targets="0"), W0


def loss_of(model):
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    return lambda: 0.5 * (model(x) - y).square().sum() / 40


def leading(M, r=2):
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    return (U[:, :r] * s[:r]) @ Vt[:r]


def published(method, W0):
    C = X.T @ X / 40
    G = (X @ W0.T - Y).T @ X / 40
    U, s, Vt = np.linalg.svd(W0, full_matrices=False)
    V = np.linalg.eigh(C)[1][:, -2:]
    return {
        "pissa": leading(W0),
        "milora": (U[:, -2:] * s[-2:]) @ Vt[-2:],
        "eva": W0 @ V @ V.T,
        "corda": leading(W0 @ C) @ np.linalg.inv(C),
        "lora_ga": leading(G),
        "lora_one": -leading(G),
        "residual": leading(0.1 * Y.T @ X),
    }[method]


def begin(model, method, **options):
    residuals = {"0.weight": torch.from_numpy(0.1 * Y.T @ X)}
    return start(model, method, loss=loss_of(model), residuals=residuals, **options)


@pytest.mark.parametrize("method", [*PRESERVING, "lora_one", "residual"])
def test_start_is_the_published_matrix(method):
    model, W0 = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    update = next(x for x in model.modules() if isinstance(x, lo.Factored))
    left = begin(model, method)
    got = update().detach().to_dense().numpy()
    np.testing.assert_allclose(got, published(method, W0), atol=1e-9)
    assert left["0.weight"] < 1e-12


def test_corda_needs_no_inverse():
    """Inputs of one direction, whose moment is singular: T C is still the leading part of W0 C."""
    model, W0 = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    x = np.outer(np.arange(1.0, 41.0), X[0])
    start(model, "corda", loss=lambda: model(torch.from_numpy(x)).square().sum())
    T = next(q for q in model.modules() if isinstance(q, lo.Factored))().detach().to_dense().numpy()
    C = x.T @ x / 40
    np.testing.assert_allclose(T @ C, leading(W0 @ C), rtol=1e-9, atol=1e-9 * np.abs(C).max())
    assert np.linalg.norm(T, 2) <= np.linalg.norm(W0, 2) * (1 + 1e-12)


@pytest.mark.parametrize("method", PRESERVING)
@pytest.mark.parametrize("radius", [0.01, 100.0])
def test_model_computes_what_it_did_and_bounds_hold(method, radius):
    model, W0 = linear(lambda s: lo.NBLoRA(s, 2, radius=radius, dtype=torch.float64))
    update = next(x for x in model.modules() if isinstance(x, lo.NBLoRA))
    begin(model, method)
    np.testing.assert_allclose(model(torch.from_numpy(X)).detach().numpy(), X @ W0.T, atol=1e-11)
    assert update.certify().holds
    assert float(update().detach().schatten_norm(2)) > 0


@pytest.mark.parametrize("method", ["lora_one", "residual"])
def test_the_others_move_inside_their_ball(method):
    model, W0 = linear(lambda s: lo.NBLoRA(s, 2, radius=0.05, dtype=torch.float64))
    left = begin(model, method)
    assert left["0.weight"] > 0
    assert all(site.holds for site in adapter_report(model))
    moved = model(torch.eye(7).double()).detach().numpy().T - W0
    assert np.linalg.norm(moved, 2) == pytest.approx(0.05, rel=1e-6)


def test_one_step_of_descent_lowers_the_loss():
    model, _ = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    before = float(loss_of(model)())
    begin(model, "lora_one", size=0.05)
    assert float(loss_of(model)()) < before


def test_size_scales_the_target():
    model, W0 = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    update = next(x for x in model.modules() if isinstance(x, lo.Factored))
    begin(model, "pissa", size=0.3)
    expected = leading(W0) * 0.3 / np.linalg.norm(W0, 2)
    np.testing.assert_allclose(update().detach().to_dense().numpy(), expected, atol=1e-12)


def test_base_weights_and_their_flags_are_untouched():
    model, W0 = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    parameter = dict(model.named_parameters())["0.weight"]
    begin(model, "lora_ga")
    assert not parameter.requires_grad
    assert parameter.grad is None
    np.testing.assert_array_equal(parameter.detach().numpy(), W0)


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("eva", {}, OptionError, "eva reads the model on data; got no loss"),
        ("residual", {}, OptionError, "needs one for each weight; got none"),
        ("residual", {"residuals": {}}, OptionError, r"got none for \['0.weight'\]"),
        ("svd", {}, OptionError, "method must be one of"),
    ],
)
def test_missing_evidence_is_refused(method, options, error, message):
    model, _ = linear(lambda s: lo.Factored(s, 2, dtype=torch.float64))
    with pytest.raises(error, match=message):
        start(model, method, **options)


def test_inputs_of_other_layers_are_refused():
    model = adapt(nn.Sequential(nn.Conv1d(2, 3, 3)), lambda s: lo.Factored(s, 1), targets="0")
    with pytest.raises(TargetError, match="inputs tell a start of linear layers only"):
        start(model, "eva", loss=lambda: model(torch.ones(1, 2, 5)).sum())
