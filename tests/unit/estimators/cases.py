"""Ratings and a cheap estimator for the tests of the estimators."""

import numpy as np

from lowrank_opt.estimators import MatrixCompletion

SHAPE = (40, 30)


def ratings(seed: int = 0, count: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and noisy values of a biased matrix of rank 2."""
    rng = np.random.default_rng(seed)
    m, n = SHAPE
    W = rng.normal(size=(m, 2)) @ rng.normal(size=(2, n)) + 3 + rng.normal(size=(m, 1))
    cells = rng.permutation(m * n)[:count]
    pairs = np.stack((cells // n, cells % n), axis=1)
    return pairs, W[pairs[:, 0], pairs[:, 1]] + 0.1 * rng.normal(size=count)


def quick(**options: object) -> MatrixCompletion:
    """One cheap fit: everything given."""
    settings = {"rank": 2, "penalty": 0.5, "bias_penalty": 1.0, "random_state": 0} | options
    return MatrixCompletion(**settings)
