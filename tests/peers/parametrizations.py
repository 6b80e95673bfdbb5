"""Maps of other packages as parameterizations: the weight they compute, and the set they name."""

import math

import geotorch
import torch
from peft import DeloraConfig, inject_adapter_in_model
from torch import nn

import lowrank_opt as lo


class FromWeight(lo.Parameterization):
    """The weight of a linear layer on which another package has put its constraint."""

    def __init__(self, shape, rank, layer, feasible_set):
        super().__init__(shape, rank)
        self.layer, self._set = layer, feasible_set

    @property
    def feasible_set(self):
        return self._set

    def factors(self):
        W = self.weight()
        m, n = self.shape
        if m <= n:
            return lo.LowRankOperator(torch.eye(m).to(W), torch.ones(m).to(W), W.mT)
        return lo.LowRankOperator(W, torch.ones(n).to(W), torch.eye(n).to(W))

    def weight(self):
        return self.layer.weight


class Registered(FromWeight):
    """With the right inverse of `torch.nn.utils.parametrize`."""

    def right_inverse(self, target):
        W = self.operator_of(target).to_dense()
        chain = self.layer.parametrizations.weight
        with torch.no_grad():
            for parametrization in reversed(chain):
                W = parametrization.right_inverse(W)
        return {"layer.parametrizations.weight.original": W}


def linear(shape, dtype):
    return nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)


def orthogonal(shape, rank, *, dtype, orthogonal_map):
    """torch.nn.utils.parametrizations.orthogonal: all singular values are 1, whatever the rank."""
    rank = min(shape)
    layer = linear(shape, dtype)
    nn.utils.parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map)
    return Registered(shape, rank, layer, lo.SchattenBall(math.inf, 1.0, rank))


def low_rank(shape, rank, *, dtype):
    """geotorch.low_rank: rank at most r."""
    layer = linear(shape, dtype)
    geotorch.low_rank(layer, "weight", rank)
    return Registered(shape, rank, layer, lo.RankAtMost(rank))


def fixed_rank(shape, rank, *, dtype):
    """geotorch.fixed_rank: rank r."""
    layer = linear(shape, dtype)
    geotorch.fixed_rank(layer, "weight", rank)
    return Registered(shape, rank, layer, lo.RankAtMost(rank))


class PeftDeLoRA(FromWeight):
    """DeLoRA of PEFT, in the Frobenius ball that its option ``delora_lambda`` is said to bound."""

    def weight(self):
        return self.layer[0].get_delta_weight("default")

    def zero_(self, *, generator=None):
        with torch.no_grad():
            self.layer[0].delora_B["default"].zero_()
            self.layer[0].delora_A["default"].normal_(generator=generator)
        return self


def delora(shape, rank, *, dtype):
    """The update of one adapted linear layer, lambda = 3."""
    model = nn.Sequential(linear(shape, dtype))
    config = DeloraConfig(r=rank, target_modules=["0"], delora_lambda=3)
    model = inject_adapter_in_model(config, model)
    return PeftDeLoRA(shape, rank, model.to(dtype), lo.SchattenBall(2, 3.0, rank))
