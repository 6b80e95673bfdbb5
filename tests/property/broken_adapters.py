"""Adapters with one defect each, in the map or in the way they are merged, and who must notice."""

import contextlib
from dataclasses import replace

import torch

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, disabled, merge, unmerge
from lowrank_opt.nn.adapters.present import (
    record_of,
)
from lowrank_opt.testing.cases.adapter_method import METHOD
from tests.adapted import base_weight
from tests.property.broken import DetachedFactor, MergesTwice, Product


class StartsElsewhere(Product):
    def zero_(self, *, generator=None):
        return self


class LinearWithoutScale(lo.LowRankOperator):
    def linear(self, x):
        return 1.01 * super().linear(x)


class OnePercentForward(Product):
    def operator(self, left, right):
        return LinearWithoutScale(left, left.new_ones(left.shape[1]), right)


class ScaledWhenEvaluating(Product):
    def forward(self):
        return self.factors() * (1.0 if self.training else 0.9)


class ForgetsOnSaving(Product):
    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        found = super().state_dict(*args, destination=destination, prefix=prefix)
        found[f"{prefix}left"] = torch.zeros_like(self.left)
        return found


def sums_of(model):
    """Return the merged weights of a model, which are read instead of the base weights."""
    return {
        (slot.layer.module, slot.weight): getattr(slot.layer.module, slot.weight)
        for slot in (found.slot for found in adapted_weights(model))
    }


def merge_twice(model):
    """W + 2 dW."""
    merge(model)
    with torch.no_grad():
        for (module, name), total in sums_of(model).items():
            total.add_(total - base_weight(module, name))


def unmerge_by_subtraction(model):
    """W + dW - dW: not the bits of W."""
    merged = {key: x.detach().clone() for key, x in sums_of(model).items()}
    unmerge(model)
    with torch.no_grad():
        for found in adapted_weights(model):
            module, name = found.slot.layer.module, found.slot.weight
            dense = torch.stack([member().to_dense() for member in found.updates])
            total = merged[module, name]
            base_weight(module, name).copy_(total - dense.reshape_as(total))


def unmerge_nothing(model):
    """Leave the merged weights, and add the adapter to them."""
    merged = {key: x.detach().clone() for key, x in sums_of(model).items()}
    unmerge(model)
    with torch.no_grad():
        for (module, name), total in merged.items():
            base_weight(module, name).copy_(total)


def adapt_without_freezing(model, make):
    return adapt(model, make, targets=".*").requires_grad_(True)


def adapt_with_initial_shift(model, make):
    """Change the base weight at the start, as some initialisations do."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.001)
    return adapt(model, make, targets=".*")


@contextlib.contextmanager
def disabled_for_ever(model):
    with disabled(model):
        yield
    record_of(model).set(disabled=1)


@contextlib.contextmanager
def disabled_not_at_all(model):
    yield


SOUND = (Product, METHOD)
# (parameterization, method, law that must notice)
BROKEN_ADAPTERS = [
    (Product, replace(METHOD, adapt=adapt_with_initial_shift), "start"),
    (OnePercentForward, METHOD, "forward"),
    (ScaledWhenEvaluating, METHOD, "forward"),
    (MergesTwice, METHOD, "merging"),
    (DetachedFactor, METHOD, "gradients"),
    (Product, replace(METHOD, adapt=adapt_without_freezing), "gradients"),
    (Product, replace(METHOD, adapt=adapt_without_freezing), "frozen"),
    (Product, replace(METHOD, merge=merge_twice), "merging"),
    (Product, replace(METHOD, unmerge=unmerge_by_subtraction), "merging"),
    (Product, replace(METHOD, unmerge=unmerge_nothing), "merging"),
    (Product, replace(METHOD, disabled=disabled_for_ever), "disabling"),
    (Product, replace(METHOD, disabled=disabled_not_at_all), "disabling"),
    (ForgetsOnSaving, METHOD, "state"),
]
