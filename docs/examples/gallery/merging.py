"""
Merging adapters
================

Two updates of one weight, each trained for a task of its own, become one. They share half of their output directions, so that they
disturb each other. Left: the singular values that come out, beside the bound of the ball that both come from. Right: how much
of each update is left in the result, 1 where nothing was lost.
"""

import matplotlib.pyplot as plt
import torch

import lowrank_opt as lo
from lowrank_opt.merging import combine

generator = torch.Generator().manual_seed(0)


def orthonormal(rows: int, cols: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator)).Q


outputs, inputs = orthonormal(40, 6), orthonormal(30, 8)
scale = torch.tensor([1.0, 0.8, 0.6, 0.4])
first = lo.LowRankOperator(outputs[:, :4], scale, inputs[:, :4])
second = lo.LowRankOperator(outputs[:, 2:], scale, inputs[:, 4:] @ orthonormal(4, 4))
ball = lo.SchattenBall(p=float("inf"), radius=1.0, rank=4)
assert ball.contains(first)
assert ball.contains(second)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
rules = {"average": {}, "sum": {}, "svd": {"rank": 4}, "knots": {"density": 0.3}, "tsv": {}}
for place, (method, options) in enumerate(rules.items()):
    merged = combine([first, second], method=method, feasible_set=ball, **options)
    values = merged.operator.singular_values()
    left = []
    for update in (first, second):
        dense = update.to_dense()
        left.append(float((merged.operator.to_dense() * dense).sum() / dense.square().sum()))
    axes[0].plot(range(1, len(values) + 1), values, "o-", markersize=4, label=method)
    axes[1].bar([place - 0.2, place + 0.2], left, width=0.35, color=["C0", "C1"])
    print(f"{method:8s} kept {left[0]:.2f} and {left[1]:.2f}, proved: {merged.feasible_set}")
axes[0].axhline(1.0, color="black", linewidth=0.8, linestyle=":")
axes[0].set(xlabel="number", ylabel="singular value")
axes[0].legend()
axes[1].set_xticks(range(len(rules)), rules)
axes[1].set_ylabel("what is left of each update")
plt.show()
