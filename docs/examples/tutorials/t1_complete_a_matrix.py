"""
Complete a matrix, and know how good it is
==========================================

.. index:: ! complete, ! matrix completion

A table of numbers has gaps. We fill them with a matrix of low rank, and then ask three questions that
a completion is rarely asked: is the fit optimal, does it keep the bound that we declared, and how wide
must an interval around a prediction be?
"""

# %%
# A matrix with gaps
# ------------------
# The truth is a 120 x 80 matrix of rank 3. We see a third of its entries, with noise.

import matplotlib.pyplot as plt
import torch

import lowrank_opt as lo

generator = torch.Generator().manual_seed(0)
truth = torch.randn(120, 3, generator=generator) @ torch.randn(3, 80, generator=generator)
noisy = truth + 0.3 * torch.randn(120, 80, generator=generator)
seen = torch.rand(120, 80, generator=generator) < 0.33

observations = lo.Observations.from_dense(noisy.double().where(seen, torch.nan))
train, held_out = observations.split(0.2, generator=generator)
print(observations.shape, len(train), "entries to fit,", len(held_out), "held out")

# %%
# One door
# --------
# ``complete`` takes the entries and a *model*: here every matrix whose nuclear norm (the sum of its
# singular values) is at most ``radius`` and whose rank is at most 30. The parameterization maps free
# numbers into that set, so that no step of the solver can leave it.

radius = 160.0
ball = lo.HomogeneousBall(train.shape, rank=30, radius=radius, dtype=torch.float64)
result = lo.complete(train, ball, bias=None)

print(result.status.value)
print("nuclear norm", float(result.operator.schatten_norm(1)), "at most", radius)

# %%
# Is it optimal?
# --------------
# A certificate bounds from below what *any* matrix of the ball can achieve, of any rank: not an estimate,
# but a proof for the numbers that are stored.

certificate = result.certificate()
print(f"objective {certificate.objective:.4f}")
print(f"nobody in the ball does better than {certificate.objective - certificate.gap:.4f}")

# %%
# Which radius?
# -------------
# The bound is the regulariser. Fit a few, and look at entries that the fits did not see.


def error(fit: lo.CompletionResult, entries: lo.Observations) -> float:
    """Return the root mean squared error on entries."""
    return float((fit.predict(entries.rows, entries.cols) - entries.values).square().mean().sqrt())


radii = [80, 120, 160, 200, 240, 280, 320, 400]
fits = [
    lo.complete(
        train, lo.HomogeneousBall(train.shape, rank=30, radius=r, dtype=torch.float64), bias=None
    )
    for r in radii
]
plt.plot(radii, [error(fit, train) for fit in fits], "o-", label="fitted entries")
plt.plot(radii, [error(fit, held_out) for fit in fits], "s-", label="held-out entries")
plt.axhline(0.3, color="gray", linestyle=":", label="noise")
plt.xlabel("bound on the nuclear norm")
plt.ylabel("RMSE")
plt.legend()
plt.show()

# %%
# How wide must an interval be?
# -----------------------------
# Entries that were held out at random say how far predictions are off. From them come intervals that
# cover new entries as often as asked, whatever the model.

from lowrank_opt.completion import conformal

best = min(fits, key=lambda fit: error(fit, held_out))
calibration, new = held_out.split(0.5, generator=generator)
intervals = conformal(best, calibration)
lower, upper = intervals.interval(new.rows[:5], new.cols[:5], coverage=0.9)
for value, low, high in zip(new.values[:5], lower, upper, strict=True):
    print(f"{float(value):6.2f} in [{float(low):6.2f}, {float(high):6.2f}]")
print(f"covered: {100 * intervals.coverage(new):.0f} % of {len(new)} entries, 90 % asked")

# %%
# Keep it
# -------
# Saving writes two files, nothing is pickled, and what is read back predicts the same numbers.

import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    best.save(Path(folder) / "model")
    again = lo.CompletionResult.load(Path(folder) / "model")
print(torch.equal(again.predict([0, 1], [2, 3]), best.predict([0, 1], [2, 3])))

# %%
# Next: the same from a file of ratings in :doc:`t2_your_ratings`, and what a certificate proves in
# :doc:`../how-to/certify-a-completion`.
