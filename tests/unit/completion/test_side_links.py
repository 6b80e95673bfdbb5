"""Links of features, against ridge regressions and singular values of dense matrices."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from lowrank_opt.completion.model import side
from lowrank_opt.completion.model.implicit import implicit_features
from lowrank_opt.completion.model.side import FeatureLink
from lowrank_opt.errors import ObservationError
from lowrank_opt.observations import Observations


def test_link_draws_have_the_posterior_of_the_link_matrix():
    # One factor: y = X b + e with b ~ N(0, 1/(tau lam)), e ~ N(0, 1/lam), a ridge regression.
    rng, tau, lam = np.random.default_rng(0), 0.7, 2.5
    X = rng.standard_normal((5, 3))
    X *= (5 / np.sum(X**2)) ** 0.5
    y = rng.standard_normal((5, 1))
    inner = np.linalg.inv(X.T @ X + tau * np.eye(3))
    mean, covariance = X @ inner @ X.T @ y[:, 0], X @ inner @ X.T / lam
    link, root = FeatureLink.of(X), np.array([[lam**-0.5]])
    draws = np.array([link.apply(link.draw(y, tau, root, rng))[:, 0] for _ in range(40_000)])
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / len(draws))).all()
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.03 * covariance.max())


class Ones:
    """Noise that is one."""

    def standard_normal(self, shape, dtype):
        return np.ones(shape, dtype)


def test_noise_of_draws_has_the_covariance_of_the_root():
    link, root = FeatureLink.of(np.eye(3, 2)), np.array([[2.0, 5.0], [0.0, 1.0]])
    found = link.draw(np.zeros((3, 2)), 1.0, root, Ones())
    scales = 1 / np.sqrt(1.0 + link.spread**2)
    np.testing.assert_allclose(found, scales[:, None] * [[7.0, 1.0]], rtol=1e-14)


@pytest.mark.parametrize("make", [np.asarray, csr_array, lambda X: 1e-3 * X])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
def test_link_reproduces_the_gram_matrix_of_scaled_features(shape, make):
    X = np.random.default_rng(0).standard_normal(shape)
    link = FeatureLink.of(make(X))
    expected = X @ X.T * shape[0] / np.sum(X**2)
    np.testing.assert_allclose(link.basis * link.spread**2 @ link.basis.T, expected, atol=1e-12)


@pytest.mark.parametrize("sparse", [True, False])
def test_long_features_are_projected_onto_a_leading_subspace(monkeypatch, sparse):
    monkeypatch.setattr(side, "_COMPLETE_UP_TO", 10)
    monkeypatch.setattr(side, "_LEADING", 8)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 40))
    X += 1e-2 * rng.standard_normal((60, 40))
    link = FeatureLink.of(csr_array(X) if sparse else X)
    np.testing.assert_allclose(link.basis.T @ link.basis, np.eye(8), atol=1e-5)
    values = np.linalg.svd(X, compute_uv=False)
    best = np.sum(values[:8] ** 2) / np.sum(values**2)
    assert 0.999 * best < link.explained <= best * (1 + 1e-6)
    scale = 60 / np.sum(X**2)
    gram = link.basis * link.spread**2 @ link.basis.T
    assert np.linalg.norm(gram - X @ X.T * scale, 2) < 1.5 * scale * values[5] ** 2


def test_implicit_features_are_normalised_patterns():
    obs = Observations([0, 0, 2], [1, 2, 1], [5.0, 1.0, 2.0], (3, 3))
    rows, cols = implicit_features(obs)
    h = 0.5**0.5
    np.testing.assert_allclose(rows.toarray(), [[0, h, h], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(cols.toarray(), [[0, 0, 0], [h, 0, h], [1, 0, 0]])


@pytest.mark.parametrize("features", [torch.zeros(4, 2), torch.full((4, 2), math.nan)])
def test_features_without_information_raise(features):
    with pytest.raises(ObservationError, match="finite and not all zero"):
        FeatureLink.of(features)
