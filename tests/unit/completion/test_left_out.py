"""Leverages against leaving each entry out, one after the other."""

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import bayesian, conformal, residual_scale
from lowrank_opt.completion.after.fold_in import FactorPrior, fold_in_rows
from lowrank_opt.completion.after.left_out import left_out_residuals, leverages
from lowrank_opt.observations import Observations


def planted(seed: int = 0, m: int = 60, n: int = 40, share: float = 0.35) -> Observations:
    rng = np.random.default_rng(seed)
    W = 3 + rng.normal(size=(m, 1)) + rng.normal(size=(m, 2)) @ rng.normal(size=(2, n))
    seen = rng.random((m, n)) < share * rng.beta(1, 1, size=(m, 1)) * 2
    seen[rng.integers(0, m, n), np.arange(n)] = True
    return Observations.from_dense(np.where(seen, W + 0.5 * rng.normal(size=(m, n)), np.nan))


@pytest.mark.parametrize("weighted", [False, True])
def test_leverages_are_those_of_leaving_out(weighted: bool):
    observed = planted(m=8, n=12)
    if weighted:
        weights = torch.linspace(0.5, 2.0, len(observed), dtype=torch.float64)
        parts = (observed.rows, observed.cols, observed.values)
        observed = Observations(*parts, observed.shape, weights)
    result = lo.complete(observed, 2, solver="als", penalty=1.0)
    prior = FactorPrior.ridge(2, penalty=1.3, bias_penalty=0.7)
    right = result.operator.to(dtype=torch.float64)
    root = right.scale.abs().sqrt()
    features = torch.cat((right.right * root, torch.ones(12, 1, dtype=torch.float64)), 1)
    found = leverages(features, observed, prior.precision)
    rows = fold_in_rows(result, observed, prior)
    fitted = observed.values - rows.predict(observed.rows, observed.cols)
    for k in range(len(observed)):
        rest = observed.take(torch.arange(len(observed)) != k)
        without = fold_in_rows(result, rest, prior)
        left = observed.values[k] - without.predict(observed.rows[k], observed.cols[k])
        assert float(left) == pytest.approx(float(fitted[k] / (1 - found[k])), rel=1e-6)


def test_residuals_left_out_are_as_large_as_new_ones():
    observed = planted(share=0.5)
    fitted, new = observed.split(0.3, generator=torch.Generator().manual_seed(0))
    result = lo.complete(
        fitted, 4, solver="variational", generator=torch.Generator().manual_seed(0)
    )
    errors = float((new.values - result.predict(new.rows, new.cols)).square().mean().sqrt())
    inside = fitted.values - result.predict(fitted.rows, fitted.cols)
    left = float(left_out_residuals(result, fitted).square().mean().sqrt())
    assert float(inside.square().mean().sqrt()) < 0.7 * errors
    assert left == pytest.approx(errors, rel=0.2)


def test_draws_have_residuals_left_out_too():
    observed = planted()
    draws = bayesian(observed, 2, samples=20, generator=torch.Generator().manual_seed(0))
    inside = (observed.values - draws.predict(observed.rows, observed.cols)).abs()
    assert (left_out_residuals(draws, observed).abs() >= inside * (1 - 1e-9)).all()


def test_short_rows_are_covered_with_residual_scales():
    """In-sample residuals of short rows are small, because they were followed."""
    inside, count = {"left out": 0.0, "in sample": 0.0, "equal": 0.0}, 0
    for seed in range(6):
        observed = planted(seed, m=150, n=60)
        fitted, rest = observed.split(0.4, generator=torch.Generator().manual_seed(1))
        calibration, new = rest.split(0.5, generator=torch.Generator().manual_seed(2))
        result = lo.complete(
            fitted, 6, solver="variational", generator=torch.Generator().manual_seed(0)
        )
        short = fitted.row_counts[new.rows] < 8

        class Blind:
            """Hides what the result is: the planted defect takes residuals as they are."""

            shape, predict = result.shape, result.predict

        scales = {
            "left out": residual_scale(result, fitted, shrinkage=1.0),
            "in sample": residual_scale(Blind, fitted, shrinkage=1.0),
            "equal": None,
        }
        for name, scale in scales.items():
            intervals = conformal(result, calibration, scale=scale)
            low, high = intervals.interval(new.rows, new.cols)
            inside[name] += float(((low <= new.values) & (new.values <= high))[short].sum())
        count += int(short.sum())
    # Of 90 % asked for on all rows: fitted residuals are worse than one width for all.
    assert inside["left out"] / count > 0.82
    assert inside["in sample"] < inside["left out"] - 0.08 * count
    assert inside["equal"] < inside["left out"] - 0.02 * count
