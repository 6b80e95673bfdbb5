"""
Rank against radius
===================

Two ways to keep a completion simple: few columns, or a bound on the nuclear norm. Held-out error over both, at fits whose status
says what was reached.
"""

import matplotlib.pyplot as plt
import torch

import lowrank_opt as lo

generator = torch.Generator().manual_seed(0)
# Singular values that decay: no rank is the right one.
left, right = (torch.randn(side, 12, generator=generator).double() for side in (90, 70))
truth = left * 0.7 ** torch.arange(12) @ right.T
noisy = truth + 0.3 * torch.randn(90, 70, generator=generator)
seen = torch.rand(90, 70, generator=generator) < 0.4
train, held_out = lo.Observations.from_dense(noisy.where(seen, torch.nan)).split(
    0.2, generator=generator
)

ranks, radii = [2, 4, 8, 16], [100, 160, 220, 280, 340, 420]
errors = {}
for rank in ranks:
    for radius in radii:
        ball = lo.HomogeneousBall(
            train.shape,
            rank,
            radius=radius,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(1),
        )
        fit = lo.complete(train, ball, bias=None)
        residuals = fit.predict(held_out.rows, held_out.cols) - held_out.values
        errors[rank, radius] = float(residuals.square().mean().sqrt())
        print(rank, radius, f"{errors[rank, radius]:.3f}", fit.status.name)

for rank in ranks:
    plt.plot(radii, [errors[rank, radius] for radius in radii], "o-", label=f"rank {rank}")
plt.xlabel("bound on the nuclear norm")
plt.ylabel("held-out RMSE")
plt.legend(title="at most")
plt.show()
