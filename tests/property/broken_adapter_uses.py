"""Ways of adapting that are right at first, and wrong in another batch, mode, order or gradient."""

import contextlib
from dataclasses import replace

import torch

from lowrank_opt.nn import adapt, disabled, merge, unmerge
from lowrank_opt.testing.cases.adapter_method import METHOD
from tests.property.broken import Product


def adapted(model, make):
    return adapt(model, make, targets=".*")


def hooked(hook):
    """Return a way of adapting whose models have a forward hook."""

    def adapt_with_hook(model, make):
        found = adapted(model, make)
        found.register_forward_hook(hook)
        return found

    return replace(METHOD, adapt=adapt_with_hook)


def wrong_alone(_module, inputs, y):
    return 1.1 * y if len(inputs[0]) == 1 else y


def wrong_in_large_batches(_module, inputs, y):
    return 1.1 * y if len(inputs[0]) > 6 else y


def wrong_at_zero(_module, inputs, y):
    return y + 1.0 if inputs[0].is_floating_point() and not inputs[0].any() else y


def wrong_where_strided(_module, inputs, y):
    return y if inputs[0].is_contiguous() else 1.1 * y


def wrong_without_gradients(module, _inputs, y):
    """Remembers that it was called without gradients."""
    module.quiet = getattr(module, "quiet", False) or not torch.is_grad_enabled()
    return y.detach() + 0.5 * (y - y.detach()) if module.quiet else y


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)


def with_inputs(change):
    """Return a way of adapting whose models change their floating inputs."""

    def adapt_with_inputs(model, make):
        found = adapted(model, make)
        found.register_forward_pre_hook(
            lambda _module, xs: tuple(change(x) if x.is_floating_point() else x for x in xs)
        )
        return found

    return replace(METHOD, adapt=adapt_with_inputs)


def merge_and_grow(model):
    """A second merge changes the weights."""
    if getattr(model, "merged_before", False):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
    merge(model)
    model.merged_before = True


def unmerge_and_grow(model):
    unmerge(model)
    if not getattr(model, "merged_before", True):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
    model.merged_before = False


@contextlib.contextmanager
def disabled_until_an_error(model):
    context = disabled(model)
    # Held: a context that is forgotten is closed, and enables.
    model.__dict__["held"] = context
    context.__enter__()
    yield
    context.__exit__(None, None, None)


def adapt_training(model, make):
    return adapted(model, make).train()


def adapt_deaf_to_train(model, make):
    found = adapted(model, make)
    last = list(found.modules())[-1]
    last.train = lambda mode=True: last
    return found


# (parameterization, method, law that must notice)
BROKEN_ADAPTER_USES = [
    (Product, hooked(wrong_alone), "batches"),
    (Product, hooked(wrong_in_large_batches), "batches"),
    (Product, hooked(wrong_at_zero), "batches"),
    (Product, hooked(wrong_where_strided), "batches"),
    (Product, hooked(wrong_without_gradients), "calls"),
    (Product, with_inputs(_Cut.apply), "inputs"),
    (Product, with_inputs(torch.Tensor.detach), "inputs"),
    (Product, replace(METHOD, merge=merge_and_grow), "repeated"),
    (Product, replace(METHOD, unmerge=unmerge_and_grow), "repeated"),
    (Product, replace(METHOD, disabled=disabled_until_an_error), "repeated"),
    (Product, replace(METHOD, adapt=adapt_training), "modes"),
    (Product, replace(METHOD, adapt=adapt_deaf_to_train), "modes"),
]
