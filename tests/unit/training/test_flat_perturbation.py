"""Flat-LoRA's noise: regenerated, never written, with the gradients of a dense copy."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import lowrank_opt as lo
from lowrank_opt.errors import LowRankError, ShapeError
from lowrank_opt.nn import adapt
from lowrank_opt.training import FlatPerturbation, cosine_increase
from lowrank_opt.training.perturbation.row_scale import filter_scale, merged_row_norms
from lowrank_opt.training.perturbation.seeded_noise import mix_seed


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank update beside its weight."""

    def __init__(self, n, m, g, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, generator=g, dtype=dtype) / n**0.5, False)
        self.update = lo.Factored((m, n), 2, dtype=dtype, generator=g)
        nn.init.normal_(self.update.left, std=0.3, generator=g)

    def forward(self, x):
        return x @ self.weight.T + self.update().linear(x)


def network(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return nn.Sequential(
        Adapted(6, 8, g, dtype),
        nn.Tanh(),
        Adapted(8, 8, g, dtype),
        nn.Tanh(),
        Adapted(8, 3, g, dtype),
    )


def data(dtype=torch.float64):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def full_noise(_):
    return 1.0


def dense_noise(model, sigma, step, seed=0):
    """The same draw by the formula: eq. (7), on dense merged weights."""
    noisy = {}
    for name in ("0", "2", "4"):
        layer = model[int(name)]
        W = layer.weight + layer.update().to_dense().detach()
        g = torch.Generator().manual_seed(mix_seed(seed, step, f"{name}.weight"))
        std = sigma * W.norm(dim=1, keepdim=True) / math.sqrt(W.shape[1])
        noise = torch.randn(W.shape, generator=g, dtype=W.dtype)
        noisy[f"{name}.weight"] = layer.weight + std * noise
    return noisy


def gradients(model):
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def test_gradients_equal_those_of_a_dense_perturbed_copy():
    model, x = network(), data()
    functional_call(model, dense_noise(model, 0.3, 0), (x,)).square().sum().backward()
    expected = gradients(model)
    flat = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
    with flat.perturbed():
        model(x).square().sum().backward()
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-12)


def test_backward_after_the_block_sees_the_same_noise():
    model, x = network(), data()
    flat = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
    functional_call(model, dense_noise(model, 0.3, 0), (x,)).square().sum().backward()
    expected = gradients(model)
    with flat.perturbed():
        loss = model(x).square().sum()
    loss.backward()
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-12)


def test_gradients_through_checkpoints_and_repeated_layers():
    model, x = network(), data()

    def run(net, call):
        h = net[0](x)
        return net[4](call(lambda y: net[2](torch.tanh(net[2](y))), h)).square().sum()

    flat = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
    with flat.perturbed():
        run(model, lambda f, y: f(y)).backward()
    expected = gradients(model)
    again = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
    with again.perturbed():
        run(model, lambda f, y: checkpoint(f, y, use_reentrant=False)).backward()
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_never_written(dtype):
    model = network(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    flat = FlatPerturbation(model, sigma=0.5, total_steps=5, schedule=full_noise)
    for _ in range(20):
        with flat.perturbed():
            model(data(dtype)).square().sum().backward()
    assert versions == [p._version for p in model.parameters()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_no_perturbed_weight_is_kept_for_backward():
    layer = nn.Linear(300, 200, bias=False, dtype=torch.float64)
    layer.weight.requires_grad_(False)
    flat = FlatPerturbation(layer, sigma=0.3, total_steps=5, schedule=full_noise)
    x = torch.randn(2, 300, dtype=torch.float64, requires_grad=True)
    with flat.perturbed():
        y = layer(x)
    alive = [
        t
        for t in (y.grad_fn._saved_mat2, y.grad_fn._saved_mat2)
        if t.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
    ]
    assert [] == alive
    # The saved tensor is made anew at each access: nothing holds it.
    first, second = y.grad_fn._saved_mat2, y.grad_fn._saved_mat2
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)


@pytest.mark.parametrize(("sigma", "schedule"), [(0.0, full_noise), (0.3, cosine_increase)])
def test_without_strength_the_model_is_untouched(sigma, schedule):
    model, x = network(), data()
    expected = model(x)
    state = torch.get_rng_state()
    with FlatPerturbation(model, sigma=sigma, total_steps=5, schedule=schedule).perturbed():
        assert torch.equal(expected, model(x))
        assert "forward" not in vars(model[0])
    assert torch.equal(state, torch.get_rng_state())


def test_global_generator_is_untouched():
    model, x = network(), data()
    state = torch.get_rng_state()
    with FlatPerturbation(model, sigma=1.0, total_steps=5, schedule=full_noise).perturbed():
        model(x).sum().backward()
    assert torch.equal(state, torch.get_rng_state())


def test_draws_differ_between_steps_and_repeat_between_runs():
    model, x = network(), data()

    def outputs():
        flat = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
        for _ in range(2):
            with flat.perturbed():
                pair = model(x), model(x)
                assert torch.equal(*pair)
                yield pair[0]

    first, second = list(outputs()), list(outputs())
    assert not torch.equal(*first)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_forward_that_fails_leaves_the_model_as_it_was():
    model = network()
    flat = FlatPerturbation(model, sigma=0.3, total_steps=5, schedule=full_noise)
    with pytest.raises(RuntimeError), flat.perturbed():
        model(torch.ones(1, 5, dtype=torch.float64))
    assert isinstance(model[0].weight, nn.Parameter)
    assert "forward" not in vars(model[0])


def test_weight_changed_before_backward_is_noticed():
    layer = nn.Linear(3, 2)
    x = torch.ones(1, 3, requires_grad=True)
    with FlatPerturbation(layer, sigma=0.3, total_steps=5, schedule=full_noise).perturbed():
        loss = layer(x).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="call backward before the optimizer's step"):
        loss.backward()


@pytest.mark.parametrize("n", [32, 512])
def test_noise_has_the_size_of_sigma_at_every_width(n):
    layer = nn.Linear(n, 64, bias=False, dtype=torch.float64)
    flat = FlatPerturbation(layer, sigma=0.1, total_steps=1, schedule=full_noise)
    eye = torch.eye(n, dtype=torch.float64)
    ratios = []
    for _ in range(50):
        with flat.perturbed(), torch.no_grad():
            ratios.append(
                (layer(eye).T - layer.weight).norm().square() / layer.weight.norm().square()
            )
    # Relative standard deviation of one draw is about sqrt(2 / (64 n)).
    assert 0.01 == pytest.approx(float(sum(ratios) / 50), rel=4 * math.sqrt(2 / (64 * n) / 50))


def quadratic(detach_scale, draws):
    """Mean gradient of a squared loss under noise, minus the gradient without it."""
    g = torch.Generator().manual_seed(3)
    layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    layer.weight.data = torch.randn(4, 5, generator=g, dtype=torch.float64)
    x, y = torch.randn(7, 5, generator=g).double(), torch.randn(7, 4, generator=g).double()

    def gradient(model):
        (0.5 * (model(x) - y).square().sum()).backward()
        found = layer.weight.grad.clone()
        layer.zero_grad()
        return found

    flat = FlatPerturbation(
        layer, sigma=0.3, total_steps=1, schedule=full_noise, detach_scale=detach_scale
    )
    noisy = torch.zeros(draws, 4, 5, dtype=torch.float64)
    for k in range(draws):
        with flat.perturbed():
            noisy[k] = gradient(layer)
    plain = gradient(layer)
    ridge = 0.3**2 / 5 * x.square().sum() * layer.weight.detach()
    return noisy.mean(0) - plain, noisy.std(0) / math.sqrt(draws), ridge


def test_noise_is_a_no_op_in_expectation_for_quadratic_losses():
    bias, error, ridge = quadratic(detach_scale=True, draws=1200)
    assert float((bias / error).abs().max()) < 4.5
    assert float(ridge.norm()) > 10 * float(bias.norm())


def test_noise_with_attached_scale_is_ridge_for_quadratic_losses():
    bias, error, ridge = quadratic(detach_scale=False, draws=1200)
    assert float(((bias - ridge) / error).abs().max()) < 4.5


def test_merged_row_norms_equal_the_dense_ones():
    layer = network()[2]
    dense = (layer.weight + layer.update().to_dense()).norm(dim=1)
    torch.testing.assert_close(
        merged_row_norms(layer.weight, layer.update()), dense, rtol=1e-13, atol=0
    )


def test_filters_of_a_transposed_convolution_are_its_output_channels():
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    scale = filter_scale(conv, conv.weight.detach())
    w = conv.weight.detach().reshape(2, 2, 3, 3, 3)
    expected = w.square().sum(dim=(1, 3, 4)).sqrt() / math.sqrt(18)
    everywhere = scale.expand_as(conv.weight).reshape(2, 2, 3, 3, 3)
    torch.testing.assert_close(everywhere[:, 1, :, 0, 0], expected)


def test_weights_of_convolutions_and_embeddings_are_perturbed():
    model = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.Embedding(5, 4), nn.LayerNorm(4)])
    flat = FlatPerturbation(model, sigma=0.3, total_steps=1, schedule=full_noise)
    assert ["0.weight", "1.weight"] == flat.names
    plain = model[0](torch.ones(1, 2, 4, 4)), model[1](torch.tensor([1]))
    with flat.perturbed():
        noisy = model[0](torch.ones(1, 2, 4, 4)), model[1](torch.tensor([1]))
        (noisy[0].sum() + noisy[1].sum()).backward()
    assert not torch.equal(plain[0], noisy[0])
    assert not torch.equal(plain[1], noisy[1])
    assert isinstance(model[0].weight.grad, torch.Tensor)


def test_tied_weights_share_their_noise():
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    flat = FlatPerturbation(nn.ModuleList([a, b]), sigma=0.3, total_steps=1, schedule=full_noise)
    with flat.perturbed():
        assert torch.equal(a(torch.eye(4)), b(torch.eye(4)))
    assert a.weight is b.weight


def test_weight_that_nobody_reads_is_an_error():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    flat = FlatPerturbation(
        model, sigma=1.0, total_steps=1, targets="a.weight", schedule=full_noise
    )
    with pytest.raises(LowRankError, match=r"none of \['a.weight'\] was"), flat.perturbed():
        model["b"](torch.ones(1, 2))


def test_targets_that_name_nothing_are_refused():
    with pytest.raises(ShapeError, match="targets must name weights of the model; got targets='q'"):
        FlatPerturbation(nn.Linear(2, 2), total_steps=1, targets="q")


def test_negative_sigma_is_refused():
    with pytest.raises(ValueError, match=r"got sigma=-1.0, total_steps=1"):
        FlatPerturbation(nn.Linear(2, 2), sigma=-1.0, total_steps=1)


def train(sigma, steps=300):
    """Sharpness after fitting random labels with updates of rank 2."""
    g = torch.Generator().manual_seed(2)
    layers = [Adapted(n, m, g, torch.float32) for n, m in ((6, 24), (24, 24), (24, 3))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    x, y = torch.randn(48, 6, generator=g), torch.randint(0, 3, (48,), generator=g)
    flat = FlatPerturbation(model, sigma=sigma, total_steps=steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        with flat.perturbed():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return flat.sharpness(lambda: nn.functional.cross_entropy(model(x), y), sigma=0.3, draws=40)


def test_sharpness_falls_with_sigma():
    measured = [train(sigma) for sigma in (0.0, 0.2, 0.5)]
    assert measured[0] > 2 * measured[1] > 4 * measured[2]


def test_order_of_parameters_survives():
    layer = nn.Linear(3, 2)
    with FlatPerturbation(layer, sigma=1.0, total_steps=1, schedule=full_noise).perturbed():
        layer(torch.ones(1, 3))
    assert ["weight", "bias"] == [name for name, _ in layer.named_parameters()]


@pytest.mark.parametrize("layer", [nn.Linear(4, 4, bias=False), nn.Conv1d(4, 4, 1, bias=False)])
def test_noise_of_adapted_layers_scales_with_the_merged_weight(layer):
    nn.init.zeros_(layer.weight)
    model = adapt(nn.Sequential(layer), lambda s: lo.Factored(s, 1), targets="0")
    part = next(x for x in model.modules() if isinstance(x, lo.Factored))
    nn.init.ones_(part.left)
    flat = FlatPerturbation(model, sigma=1.0, total_steps=1, schedule=full_noise)
    assert ["0.weight"] == flat.names
    x = torch.eye(4).reshape(4, 4, *[1] * (layer.weight.ndim - 2))
    with flat.perturbed():
        noise = model(x) - part().to_dense().T.reshape(x.shape)
    assert 0.3 < float(noise.detach().norm() / part().to_dense().detach().norm()) < 2.0


def test_adapted_attention_keeps_its_update_under_noise():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 1, batch_first=True)})
    adapt(model, lambda s: lo.Factored(s, 1), targets="a.in_proj_weight")
    part = next(x for x in model.modules() if isinstance(x, lo.Factored))
    flat = FlatPerturbation(
        model, sigma=1e-6, total_steps=1, targets=".*in_proj_weight", schedule=full_noise
    )
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    nn.init.ones_(part.left)
    expected = model["a"](x, x, x)[0]
    with flat.perturbed():
        got = model["a"](x, x, x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(got, expected)
