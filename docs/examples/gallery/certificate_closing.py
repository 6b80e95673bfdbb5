"""
A certificate that closes
=========================

The objective comes down, the proved lower bound comes up: the distance between them is what is not known about the optimum.
"""

import matplotlib.pyplot as plt
import torch

import lowrank_opt as lo

generator = torch.Generator().manual_seed(0)
truth = (torch.randn(80, 3, generator=generator) @ torch.randn(3, 60, generator=generator)).double()
noisy = truth + 0.5 * torch.randn(80, 60, generator=generator)
seen = torch.rand(80, 60, generator=generator) < 0.4
observations = lo.Observations.from_dense(noisy.where(seen, torch.nan))

steps, objectives, bounds = [1, 2, 4, 8, 16, 32, 64], [], []
for most in steps:
    ball = lo.HomogeneousBall(
        (80, 60), 20, radius=120.0, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    fit = lo.complete(
        observations, ball, bias=None, solver=lo.solvers.LBFGS(max_iterations=most, gap=None)
    )
    certificate = fit.certificate()
    objectives.append(certificate.objective)
    bounds.append(certificate.lower_bound)
    print(f"{most:3d} iterations: between {bounds[-1]:9.3f} and {objectives[-1]:9.3f}")

plt.plot(steps, objectives, "o-", label="objective")
plt.plot(steps, bounds, "s-", label="proved lower bound")
plt.fill_between(steps, bounds, objectives, alpha=0.2)
plt.xscale("log")
plt.yscale("symlog")
plt.xlabel("iterations")
plt.legend()
plt.show()
