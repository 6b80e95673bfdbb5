"""What is timed at every revision: names that the library has had from the start.

Run by `experiments.benchmarks`, in a process that finds the library of a revision first. CPU
seconds are divided by those of a fixed piece of NumPy and Python, which runs before and after every
turn: what the machine does besides falls on both.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

Work = Callable[[], object]


def _map(name: str) -> Work:
    import lowrank_opt as lo

    module = getattr(lo, name)((1024, 768), rank=16, radius=1.0)

    def step() -> None:
        left, scale, right = module()
        (left.sum() + scale.sum() + right.sum()).backward()

    return step


def _adapted() -> Work:
    import lowrank_opt as lo
    from lowrank_opt.nn import adapt

    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
    adapt(model, partial(lo.NBLoRA, rank=8, radius=0.5), targets=[str(k) for k in range(4)])
    x = torch.ones(8, 256)
    return lambda: model(x).sum().backward()


def _completion() -> Work:
    import lowrank_opt as lo

    rng = np.random.default_rng(0)
    rows, cols = (torch.from_numpy(rng.integers(n, size=20_000)) for n in (400, 300))
    values = torch.from_numpy(rng.normal(size=20_000)).float()
    obs = lo.Observations(rows, cols, values, (400, 300), duplicates="mean")

    def fit() -> None:
        torch.manual_seed(0)  # the same start: a fit trains the map that it is given
        ball = lo.HomogeneousBall(obs.shape, rank=8, radius=200.0)
        lo.complete(obs, ball, bias="additive", max_iterations=20)

    return fit


def _certificate() -> Work:
    import lowrank_opt as lo

    module = lo.NBLoRA((1024, 768), rank=16, radius=1.0)
    return module.certify


def _law() -> Work:
    import lowrank_opt as lo
    from lowrank_opt.testing import check_membership

    return lambda: check_membership(partial(lo.NBLoRA, radius=1.0), profile="quick")


CASES: dict[str, Callable[[], Work]] = {
    "NBLoRA, factors and gradients": partial(_map, "NBLoRA"),
    "HomogeneousBall, factors and gradients": partial(_map, "HomogeneousBall"),
    "DeLoRA, factors and gradients": partial(_map, "DeLoRA"),
    "adapted model, a training step": _adapted,
    "completion, 20 iterations": _completion,
    "certificate of an update": _certificate,
    "law of membership, quick": _law,
}


def yardstick() -> float:
    """CPU seconds of a fixed piece of work: products of matrices, and a loop of Python."""
    start = time.process_time()
    a = np.full((192, 192), 0.01)
    for _ in range(20):
        a = a @ a
        a /= a[0, 0]
    total = 0
    for k in range(60_000):
        total += k & 3
    return time.process_time() - start


def measured(make: Callable[[], Work], turns: int, seconds: float) -> list[float]:
    """Return quartiles of the time of one call in yardsticks, over some turns."""
    work = make()
    work()  # compiles, and fills caches
    start = time.process_time()
    work()
    calls = max(1, round(seconds / max(time.process_time() - start, 1e-6)))
    ratios = []
    for _ in range(turns):
        before = yardstick()
        start = time.process_time()
        for _ in range(calls):
            work()
        spent = (time.process_time() - start) / calls
        ratios.append(2 * spent / (before + yardstick()))
    return [round(x, 4) for x in statistics.quantiles(ratios, n=4, method="inclusive")]


def main() -> None:
    """Print the figures of the library that is found, as JSON: null where a case does not run."""
    turns, seconds = int(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import lowrank_opt

    found: dict[str, object] = {}
    for name, make in CASES.items():
        try:
            found[name] = measured(make, turns, seconds)
        except Exception as error:  # an old revision may lack anything
            found[name] = None
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    print(json.dumps({"file": lowrank_opt.__file__, "found": found}))


if __name__ == "__main__":
    main()
