"""
Balls of two by two matrices
============================

Singular values of random members of each set, and of the matrices that a parameterization makes of random parameters. Nothing is
outside, the boundary included: that is the whole idea.
"""

import matplotlib.pyplot as plt
import torch

import lowrank_opt as lo

torch.manual_seed(0)
maps = {
    "NBLoRA, spectral": lambda: lo.NBLoRA((2, 2), 2, radius=1.0),
    "NBLoRA, p = 2": lambda: lo.NBLoRA((2, 2), 2, radius=1.0, p=2),
    "HomogeneousBall, nuclear": lambda: lo.HomogeneousBall((2, 2), 2, radius=1.0),
    "DeLoRA, nuclear": lambda: lo.DeLoRA((2, 2), 2, radius=1.0),
}

figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharex=True, sharey=True, layout="constrained")
for axis, (name, make) in zip(axes, maps.items(), strict=True):
    points = []
    for _ in range(600):
        parameterization = make()
        with torch.no_grad():
            for parameter in parameterization.parameters():
                parameter.normal_(std=float(10 ** torch.empty(()).uniform_(-1, 1)))
            points.append(parameterization().singular_values())
    values = torch.stack(points)
    axis.scatter(values[:, 0], values[:, 1], s=4)
    s = torch.linspace(0, 1, 100)
    match name.split(", ")[1]:
        case "spectral":
            axis.plot([1, 1, 0], [0, 1, 1], color="black", linewidth=1)
        case "p = 2":
            axis.plot(s, (1 - s**2).sqrt(), color="black", linewidth=1)
        case _:
            axis.plot(s, 1 - s, color="black", linewidth=1)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("largest singular value")
axes[0].set_ylabel("smallest singular value")
plt.show()
