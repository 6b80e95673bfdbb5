"""
Coming from geotorch or torch's parametrizations
================================================

.. index:: ! geotorch, ! parametrize

A constraint on a weight, as you know it: the same steps, side by side. geotorch's lines are shown, not run; those of torch and
of this library run here. What is said of geotorch was measured with its version 0.4.0.
"""

# %%
# Constrain a weight
# ------------------
# ::
#
#     geotorch.low_rank(layer, "weight", rank=4)
#
# Here the constraint is an object that says which set it fills, and it is registered by torch's own ``parametrize``:

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import lowrank_opt as lo
from lowrank_opt.nn import LowRankLinear, adapt, merge, register_dense

torch.manual_seed(0)
layer = nn.Linear(256, 512)
weight = layer.weight.detach().clone()
register_dense(layer, "weight", lo.NBLoRA((512, 256), rank=4, radius=1.0))

print("parametrized:", parametrize.is_parametrized(layer, "weight"))
with torch.no_grad():
    print("rank", int(torch.linalg.matrix_rank(layer.weight)))
    print("spectral norm", float(torch.linalg.matrix_norm(layer.weight, 2)))

# %%
# The layer starts at the member of the set that is nearest to the weight it had: its four leading singular values, none above
# 1. geotorch starts from a random sample instead, and the weight is lost.

U, S, Vh = torch.linalg.svd(weight)
nearest = U[:, :4] * S[:4].clamp(max=1.0) @ Vh[:4]
print("distance from the nearest member:", float((layer.weight - nearest).detach().norm()))

# %%
# Assignment takes the nearest member too. To be told about a matrix outside the set, ask the parameterization itself.

layer.weight = weight  # any matrix
parameterization = layer.parametrizations.weight[0].parameterization
try:
    parameterization.assign(weight)
except lo.errors.NotInSetError as error:
    print(type(error).__name__, "-", error)

# %%
# Count what is stored
# --------------------
# ==================  ==========================  ========================  =====================
# 512 x 256, rank 4   numbers to train            in the state dict         forward and backward
# ==================  ==========================  ========================  =====================
# geotorch            131,072, m n                458,752, square bases      SVDs of m x n
# here                3,072, (m + n) r            the same 3,072            QRs of m x r and n x r
# ==================  ==========================  ========================  =====================

free = lo.Factored((512, 256), rank=4)
print("Factored", sum(p.numel() for p in free.parameters()), "numbers")
print("NBLoRA", sum(p.numel() for p in parameterization.parameters()), "numbers")

# %%
# A module that is parametrized forms its weight at each access; ``parametrize.cached()`` works as ever. If the layer is linear,
# ``LowRankLinear`` never forms it: it multiplies by the factors.

update = lo.NBLoRA((512, 256), rank=4, radius=1.0)
update.assign(layer.weight.detach(), project=True)
thin = LowRankLinear(update, bias=False)
x = torch.randn(10, 256)
print("same answers:", torch.allclose(thin(x), layer(x) - layer.bias, atol=1e-5))

# %%
# A cap is not a division
# -----------------------
# torch's ``spectral_norm`` divides by an estimate of the largest singular value: the norm is always 1, also where a smaller
# weight would do. A ball lets it be anything up to its radius. We fit a map of norm 0.5 from few noisy examples: freely, with
# the norm divided out, and inside a ball.

truth = 0.5 * torch.linalg.qr(torch.randn(30, 3)).Q @ torch.linalg.qr(torch.randn(20, 3)).Q.T
inputs = torch.randn(30, 20)
outputs = inputs @ truth.T + 0.1 * torch.randn(30, 30)


def run(layer: nn.Module, steps: int = 300) -> tuple[list[float], list[float]]:
    """Return the spectral norm and the relative error after each step."""
    norms, errors = [], []
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(inputs) - outputs).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            norms.append(float(torch.linalg.matrix_norm(layer.weight, 2)))
            errors.append(float((layer.weight - truth).norm() / truth.norm()))
    return norms, errors


layers = {name: nn.Linear(20, 30, bias=False) for name in ("free", "spectral_norm", "ball")}
parametrizations.spectral_norm(layers["spectral_norm"])
register_dense(layers["ball"], "weight", lo.NBLoRA((30, 20), rank=4, radius=0.6))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, one in layers.items():
    norms, errors = run(one)
    axes[0].plot(norms, label=name)
    axes[1].plot(errors)
    print(f"{name:14s} spectral norm {norms[-1]:.3f}   relative error {errors[-1]:.2f}")
axes[0].axhline(0.5, color="black", linewidth=0.8, linestyle=":")
axes[0].set(xlabel="step", ylabel="largest singular value")
axes[0].legend()
axes[1].set(xlabel="step", ylabel="relative error", yscale="log")
plt.show()

# %%
# Orthogonal weights
# ------------------
# For a weight that is orthogonal itself, torch's ``orthogonal`` is what to use, and this library has nothing to add. Give it a
# map other than Householder's if the optimizer decays weights: there one step of AdamW makes the weight zero.

for name in ("householder", "cayley"):
    square = parametrizations.orthogonal(nn.Linear(8, 4, bias=False), orthogonal_map=name)
    optimizer = torch.optim.AdamW(square.parameters(), lr=1e-2, weight_decay=0.01)
    square(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        defect = torch.linalg.matrix_norm(square.weight @ square.weight.T - torch.eye(4), 2)
        largest = square.weight.abs().max()
    print(
        f"{name:12s} largest entry {float(largest):.2f}, distance from orthogonal {float(defect):.1e}"
    )

# %%
# What is here is the *rotation of a weight* that is given, as in OFT, BOFT or HRA: ``lo.oft``, ``lo.boft``, ``lo.hra`` and
# ``lo.psoft`` make updates that leave singular values as they are.

base = torch.randn(12, 8)
turned = lo.oft(base, blocks=2)
with torch.no_grad():
    for parameter in turned.parameters():
        parameter.normal_(std=1e3)
print(
    "singular values kept to",
    float(
        (torch.linalg.svdvals(base + turned().to_dense()) - torch.linalg.svdvals(base)).abs().max()
    ),
)

# %%
# Constrain the change, not the weight
# ------------------------------------
# For fine-tuning, the weight stays and its *update* is in the set. This is ``adapt``: nothing is written to the weight, the
# start is the model as it was, to the last bit, and every update can be merged, switched and saved.

model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
x = torch.randn(6, 16)
before = model(x)
adapt(model, lambda shape: lo.HomogeneousBall(shape, rank=4, radius=0.5), targets="all-linear")
print("unchanged at the start:", torch.equal(before, model(x)))
merge(model)

# %%
# Your own parametrization
# ------------------------
# A module for ``register_parametrization`` has ``forward(original)`` and ``right_inverse(weight)``, and nobody checks them.
# A :py:class:`~lowrank_opt.Parameterization` holds its parameters, returns thin factors, and names its set. Then the laws
# look for the parameters that break it.

from lowrank_opt.testing import check_parameterization


class UnitRankOne(lo.Parameterization):
    """Matrices of rank one and norm at most one."""

    def __init__(self, shape: tuple[int, int], rank: int = 1) -> None:
        super().__init__(shape, rank=1)
        self.angle = nn.Parameter(torch.zeros(1))
        self.left = nn.Parameter(torch.randn(shape[0], 1))
        self.right = nn.Parameter(torch.randn(shape[1], 1))

    @property
    def feasible_set(self) -> lo.SchattenBall:
        return lo.SchattenBall(p=float("inf"), radius=1.0, rank=1)

    def factors(self) -> lo.LowRankOperator:
        left, right = (x / x.norm() for x in (self.left, self.right))
        return lo.LowRankOperator(left, self.angle.sin(), right)


try:
    check_parameterization(UnitRankOne, profile="quick")
except AssertionError as error:
    print(str(error).splitlines()[0])

# %%
# A column of zeros has no direction, and one of tiny numbers loses it when they are squared: the formula was right on paper only.
# How to mend it is in :doc:`t4_write_and_verify`.
