"""Whatever a map does, and whatever happens before the backward pass: as for single layers."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lowrank_opt as lo
from lowrank_opt.nn.surgery.passes import unwatch
from tests.oracles import normal
from tests.unit.nn.test_together import Towers, X, adapted, assert_close, members


class Sine(lo.Parameterization):
    """A map with an attribute, two factors of one size, and a buffer."""

    factor = 1.0

    def __init__(self, shape):
        super().__init__(shape, 2)
        self.left = nn.Parameter(torch.zeros(shape[0], 2, dtype=torch.float64))
        self.right = nn.Parameter(normal(shape[1], 2))
        self.register_buffer("seen", torch.ones(2, dtype=torch.float64))
        self.factor = 1.0

    def factors(self):
        left = (self.left * self.factor).sin()
        return lo.LowRankOperator(left, self.seen, self.right.tanh())


class Counts(Sine):
    def factors(self):
        self.factor += 1.0
        return super().factors()


class Writes(Sine):
    def factors(self):
        with torch.no_grad():
            self.seen.mul_(0.5).add_(self.right[0])
        op = super().factors()
        return lo.LowRankOperator(op.left, self.seen.clone(), op.right)


class Assigns(Sine):
    def factors(self):
        self.seen = self.seen * 0.5 + self.right.detach()[0]
        return super().factors()


class WantsParameters(Sine):
    def factors(self):
        if not isinstance(self.left, nn.Parameter):
            raise TypeError("parameters only")
        return super().factors()


def state(model):
    return [*model.buffers(), *(torch.tensor(x.factor) for x in members(model))]


def step(model):
    for p in model.parameters():
        p.grad = None
    y = model(X)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters() if p.grad is not None)]


def both(make, ask):
    """Return the answers of a model whose layers are evaluated together, and of one without."""
    together, single = make(), make()
    unwatch(single)
    return ask(together), ask(single)


@pytest.mark.parametrize("make", [Sine, Counts, Writes, Assigns, WantsParameters])
def test_a_map_does_to_its_layer_what_it_does_alone(make):
    def ask(model):
        return [x for _ in range(3) for x in (*step(model), *state(model))]

    assert_close(*both(lambda: adapted(make), ask))


@pytest.mark.parametrize("which", [0, 2])
def test_a_tensor_that_stands_twice_in_one_layer_is_followed(which):
    def make():
        model = adapted(Sine)
        members(model)[which].right = members(model)[which].left
        return model

    assert_close(*both(make, step))


def test_backward_hooks_of_an_update_are_called():
    seen = []

    def hook(*_):
        seen.append(len(seen))

    def ask(model):
        for handle in (
            members(model)[2].register_full_backward_hook(hook),
            nn.modules.module.register_module_forward_hook(hook),
        ):
            step(model)
            handle.remove()
        calls = len(seen)
        seen.clear()
        return calls

    together, single = both(lambda: adapted(Sine), ask)
    assert together == single


def test_gradients_of_layers_have_no_memory_in_common():
    model = adapted(Sine)
    step(model)
    own = [{p.grad.untyped_storage().data_ptr() for p in x.parameters()} for x in members(model)]
    assert len(set.union(*own)) == sum(map(len, own))


def test_tensors_without_memory_are_followed():
    model = adapted(Sine)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.ones(3, 6, dtype=torch.float64)).shape == (3, 6)
    assert_close(*both(lambda: model, step))


def towers(dtype=torch.float64, make=Sine):
    torch.manual_seed(0)
    model = Towers([nn.Linear(6, 6) for _ in range(4)])
    lo.nn.adapt(model, make, targets=".*")
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(normal(*p.shape, seed=k), alpha=0.3)
    return model.to(dtype)


def change_attributes(model):
    for x in members(model):
        x.factor = 3.0


def freeze(model):
    members(model)[1].left.requires_grad_(False)


def evaluate(model):
    model.eval()


def of_one_after_the_other(model, losses):
    for k in (2, 0, 3, 1):
        losses[k].backward()
    return [p.grad for p in model.parameters()]


def of_all(model, losses):
    sum(losses).backward()
    return [p.grad for p in model.parameters()]


def twice(model, losses):
    free = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(sum(losses), free, create_graph=True)
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), free)]


@pytest.mark.parametrize("differentiate", [of_one_after_the_other, of_all, twice])
@pytest.mark.parametrize("change", [change_attributes, freeze, evaluate])
def test_what_is_set_after_the_forward_pass_leaves_its_gradients(change, differentiate):
    def ask(model):
        losses = [y.square().sum() for y in model(X)]
        change(model)
        return [g for g in differentiate(model, losses) if g is not None]

    assert_close(*both(towers, ask))


class Product(Sine):
    """Is three times as long under autocast."""

    def factors(self):
        left = self.left @ (self.right.mT @ self.right)
        factor = 3.0 if left.dtype is torch.bfloat16 else 1.0
        return lo.LowRankOperator(left, left.new_ones(2), factor * left)


@pytest.mark.parametrize("differentiate", [of_one_after_the_other, twice])
def test_autocast_of_the_forward_pass_is_that_of_its_repetitions(differentiate):
    def ask(model):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(X.float())
        return differentiate(model, [y.float().square().sum() for y in outputs])

    one, other = both(lambda: towers(torch.float32, Product), ask)
    for x, y in zip(one, other, strict=True):
        assert (x is None) == (y is None)
        assert x is None or (x - y).norm() <= 0.03 * y.norm()
