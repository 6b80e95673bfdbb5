"""
Intervals that cover
====================

A prediction with an interval around it: the share of entries that is asked for must be inside, though some rows have few entries and
some are noisy. A fifth of the entries is held out to count.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lowrank_opt.estimators import MatrixCompletion

rng = np.random.default_rng(0)
left, right = rng.normal(size=(150, 2)), rng.normal(size=(60, 2))
# Rows differ in how many entries they have, and in how noisy these are.
share, noise = rng.uniform(0.1, 0.6, size=150), rng.uniform(0.2, 0.8, size=150)
rows, cols = np.nonzero(rng.random((150, 60)) < share[:, None])
values = (left @ right.T)[rows, cols] + noise[rows] * rng.normal(size=len(rows))
table = pd.DataFrame({"row": rows, "col": cols, "value": values})
test = rng.random(len(table)) < 0.2
train, held_out = table[~test], table[test]

model = MatrixCompletion(random_state=0).fit(train)
pairs = held_out[["row", "col"]]
wanted, reached, widths = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], [], []
for coverage in wanted:
    lower, upper = model.predict_interval(pairs, coverage=coverage)
    inside = (lower <= held_out["value"]) & (held_out["value"] <= upper)
    reached.append(float(inside.mean()))
    widths.append(float(np.median(upper - lower)))
    print(f"asked for {coverage:.2f}: {reached[-1]:.3f} inside, median width {widths[-1]:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
axes[0].plot(wanted, reached, "o-")
axes[0].plot([0.5, 1], [0.5, 1], color="black", linewidth=0.8)
axes[0].set(xlabel="coverage asked for", ylabel="share of held-out entries inside")
some = held_out["value"].to_numpy()[:60].argsort()
lower, upper = model.predict_interval(pairs.head(60), coverage=0.9)
axes[1].vlines(range(60), lower[some], upper[some], alpha=0.5)
axes[1].plot(held_out["value"].to_numpy()[:60][some], ".", color="black")
axes[1].set(xlabel="held-out entries, by value", ylabel="value, and interval for 0.9")
plt.show()
