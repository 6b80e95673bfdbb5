"""Fit one method on one fold, with settings chosen on training entries only."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import lowrank_opt as lo
from experiments.movielens_methods import CompletionMethod, Setting
from lowrank_opt.completion.model.bias import fit_additive_bias
from problems import movielens
from problems.metrics import mae, rmse
from problems.splits import validation_split

RATING_RANGE = (1.0, 5.0)
BIAS_PENALTY = 2.0
TOLERANCE = 1e-4
HELD_OUT = 0.1


@dataclass(frozen=True)
class Outcome:
    """One method on one fold."""

    method: str
    fold: int
    setting: dict[str, float]
    rmse: float
    mae: float
    seconds: float
    iterations: int
    status: str
    nuclear_norm: float
    rank: int
    holds: bool
    singular_values: list[float]


@dataclass(frozen=True)
class Fit:
    """What a method made of the training entries."""

    predict: Callable[[Tensor, Tensor], Tensor]
    result: lo.CompletionResult | None = None
    parameterization: lo.Parameterization | None = None


def fit(method: CompletionMethod, setting: Setting, train: lo.Observations, seed: int) -> Fit:
    """Fit one method with one setting."""
    if method.build is None:
        return Fit(fit_additive_bias(train, penalty=setting["bias_penalty"]).predict)
    parameterization = method.build(train, setting, torch.Generator().manual_seed(seed))
    return fit_parameterization(parameterization, train, penalty=setting.get("penalty", 0.0))


def fit_parameterization(
    parameterization: lo.Parameterization,
    train: lo.Observations,
    *,
    penalty: float = 0.0,
    gap: float | None = None,
) -> Fit:
    """Fit a parameterization and additive biases with the settings common to all methods.

    The methods are compared as fits of a rank: their optimum over the ball of every rank is proved,
    which takes several times longer, only where `gap` asks for it.
    """
    result = lo.complete(
        train,
        parameterization,
        bias="additive",
        bias_penalty=BIAS_PENALTY,
        penalty=penalty,
        solver=lo.solvers.LBFGS(tolerance=TOLERANCE, gap=gap),
    )
    return Fit(result.predict, result, parameterization)


def choose(method: CompletionMethod, train: lo.Observations, seed: int) -> Setting:
    """Return the setting with the smallest error on held-out training entries."""
    if len(method.grid) == 1:
        return method.grid[0]
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = validation_split(train, validation_fraction=HELD_OUT, generator=generator)
    fits = (fit(method, setting, kept, seed) for setting in method.grid)
    errors = [rmse(clipped(fitted, held_out), held_out.values) for fitted in fits]
    return method.grid[errors.index(min(errors))]


def clipped(fitted: Fit, test: lo.Observations) -> Tensor:
    """Return predictions within the rating range."""
    return fitted.predict(test.rows, test.cols).clamp(*RATING_RANGE)


def evaluate(method: CompletionMethod, fold: int, path: str | None, seed: int) -> Outcome:
    """Choose a setting, fit the whole training fold, look at the test fold once."""
    train, test = movielens.fold("ml-100k", fold, path=path)
    setting = choose(method, train, seed)
    start = time.perf_counter()
    fitted = fit(method, setting, train, seed)
    seconds = time.perf_counter() - start
    predicted = clipped(fitted, test)
    result, trained = fitted.result, fitted.parameterization
    values = [] if result is None else result.operator.singular_values().tolist()
    return Outcome(
        method=method.name,
        fold=fold,
        setting=dict(setting),
        rmse=rmse(predicted, test.values),
        mae=mae(predicted, test.values),
        seconds=seconds,
        iterations=0 if result is None else len(result.history) - 1,
        status="CLOSED_FORM" if result is None else result.status.name,
        nuclear_norm=sum(values),
        rank=0 if trained is None else trained.rank,
        holds=trained is None or trained.certify().holds,
        singular_values=values,
    )
