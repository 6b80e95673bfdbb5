"""Draws of a completed matrix: their mean, their spread, and a file of them."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.loop.history import History
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.results import storage
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.errors import ObservationError, OptionError
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_opt.completion.results.result import Positions

_BLOCK = 1 << 15
_TENSORS = ("row_factors", "col_factors", "row_bias", "col_bias", "noise_precision")
_OPTIONAL = ("row_precision", "col_precision", "thresholds", "levels")


@dataclass(frozen=True, eq=False, repr=False)
class BayesianResult:
    """Draws ``row_factors[s] col_factors[s]^T + mean + row_bias[s] + col_bias[s]``.

    Parameters
    ----------
    row_factors : Tensor, shape (S, m, r)
    col_factors : Tensor, shape (S, n, r)
    row_bias : Tensor, shape (S, m)
    col_bias : Tensor, shape (S, n)
    mean : float
    noise_precision : Tensor, shape (S,)
        One over the variance of a value of weight one around the matrix, in an ordinary row and
        column.
    status : CompletionStatus
    history : History
        All sweeps, those left out too.
    row_precision, col_precision : Tensor, shapes (S, m) and (S, n), optional
        Noise precisions of rows and columns relative to `noise_precision`; ones by default.
    thresholds : Tensor, shape (S, L - 1), optional
        If values are ordered levels: between which of them matrix and noise are the level.
    levels : Tensor, shape (L,), optional
        The values of these levels.

    Examples
    --------
    >>> U, V = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[1.0]]])
    >>> zero, status = torch.zeros(2, 1), CompletionStatus.CONVERGED
    >>> draws = BayesianResult(U, V, zero, zero, 3.0, torch.ones(2), status, History())
    >>> draws.predict(0, 0)
    tensor(4.5000)
    """

    row_factors: Tensor
    col_factors: Tensor
    row_bias: Tensor
    col_bias: Tensor
    mean: float
    noise_precision: Tensor
    status: CompletionStatus
    history: History
    row_precision: Tensor | None = None
    col_precision: Tensor | None = None
    thresholds: Tensor | None = None
    levels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.row_factors.shape[1], self.col_factors.shape[1]

    def __len__(self) -> int:
        return len(self.row_factors)

    def __repr__(self) -> str:
        m, n = self.shape
        return f"BayesianResult({len(self)} draws of {m} x {n}, rank {self.row_factors.shape[2]})"

    @overload
    def predict(
        self,
        rows: Positions,
        cols: Positions,
        *,
        return_std: Literal[False] = False,
        clip: tuple[float, float] | None = None,
    ) -> Tensor: ...

    @overload
    def predict(
        self,
        rows: Positions,
        cols: Positions,
        *,
        return_std: Literal[True],
        clip: tuple[float, float] | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def predict(
        self,
        rows: Positions,
        cols: Positions,
        *,
        return_std: bool = False,
        clip: tuple[float, float] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict entries by the mean of the draws; of levels, by their mean over draws and noise.

        Parameters
        ----------
        rows, cols : Tensor, array, sequence of int or int
            Zero-based, of shapes that broadcast.
        return_std : bool
            Also return the standard deviation of a new value of weight one: the spread of the
            draws and the noise together.
        clip : pair of float, optional
            Smallest and largest prediction; applied to the mean.

        Raises
        ------
        ObservationError
            If an index is not an integer in range, or `clip` is not ascending.
        """
        if clip is not None and not clip[0] <= clip[1]:
            raise ObservationError(f"clip must be (smallest, largest); got clip={clip!r}")
        m, n = self.shape
        device = self.row_factors.device
        i, j = torch.broadcast_tensors(
            _indices(rows, m, "rows", device), _indices(cols, n, "cols", device)
        )
        blocks = zip(i.reshape(-1).split(_BLOCK), j.reshape(-1).split(_BLOCK), strict=True)
        mean, variance = map(torch.cat, zip(*(self._moments(*ij) for ij in blocks), strict=True))
        mean = mean.reshape(i.shape) if clip is None else mean.reshape(i.shape).clamp(*clip)
        if not return_std:
            return mean
        if self.levels is None:
            variance = variance + self._noise_variance(i.reshape(-1), j.reshape(-1))
        return mean, variance.sqrt().to(mean.dtype).reshape(i.shape)

    def to_completion(self) -> CompletionResult:
        """Return the posterior mean as a result of rank S r: the draws side by side.

        Raises
        ------
        OptionError
            If values are ordered levels: each draw has thresholds and noise of its own.
        """
        if self.levels is not None:
            raise OptionError(
                "draws of ordered levels have thresholds and noise of their own each, and no "
                "matrix is their mean; got levels: use predict, or fit with loss='squared'"
            )
        S, _, r = self.row_factors.shape
        left, right = (
            x.permute(1, 0, 2).reshape(-1, S * r) for x in (self.row_factors, self.col_factors)
        )
        operator = LowRankOperator(left, left.new_full((S * r,), 1 / S), right)
        bias = AdditiveBias(self.mean, self.row_bias.mean(0), self.col_bias.mean(0))
        return CompletionResult(operator, bias, self.status, self.history)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a folder of all draws; a result that it held is replaced whole, or stays.

        Raises
        ------
        DataError
            If the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        for name in _OPTIONAL:
            known = getattr(self, name)
            tensors |= {} if known is None else {name: known}
        tensors["mean"] = torch.tensor(self.mean, dtype=torch.float64)
        header: storage.JsonObject = {"status": self.status.name, "shape": list(self.shape)}
        storage.write(path, "BayesianResult", header, tensors, self.history)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> BayesianResult:
        """Read a folder that `save` wrote.

        Raises
        ------
        DataError
            If a file is missing, damaged, foreign, or of a later version.
        """
        with storage.reading(path, "BayesianResult") as (header, tensors, history):
            U, V, a, c, precision = (tensors[name] for name in _TENSORS)
            status = CompletionStatus[str(header["status"])]
            optional = (tensors.get(name) for name in _OPTIONAL)
            mean = float(tensors["mean"])
            return cls(U, V, a, c, mean, precision, status, history, *optional)

    def _noise_variance(self, i: Tensor, j: Tensor) -> Tensor:
        """Return the expected variance of the noise of a value of weight one, in float64."""
        S = len(self)
        total = torch.zeros(len(i), dtype=torch.float64, device=i.device)
        for s in range(S):
            total += 1 / self._precision(s, i, j)
        return total / S

    def _precision(self, s: int, i: Tensor, j: Tensor) -> Tensor:
        """Return the noise precisions of a draw, in float64."""
        precision = self.noise_precision[s].double()
        for relative, index in ((self.row_precision, i), (self.col_precision, j)):
            precision = precision if relative is None else precision * relative[s].double()[index]
        return precision

    def _scores(self, i: Tensor, j: Tensor) -> Iterator[Tensor]:
        """Yield the entries of the matrix of each draw, without the mean."""
        draws = zip(self.row_factors, self.col_factors, self.row_bias, self.col_bias, strict=True)
        for U, V, a, c in draws:
            yield (U[i] * V[j]).sum(1) + a[i] + c[j]

    def _moments(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance over the draws, of levels over noise too; Welford's update."""
        if self.levels is not None and self.thresholds is not None:
            return self._level_moments(i, j, self.levels, self.thresholds)
        mean = self.row_factors.new_zeros(len(i))
        squares = torch.zeros_like(mean)
        for s, value in enumerate(self._scores(i, j), start=1):
            deviation = value - mean
            mean = mean + deviation / s
            squares = squares + deviation * (value - mean)
        return mean + self.mean, squares / max(len(self) - 1, 1)

    def _level_moments(
        self, i: Tensor, j: Tensor, levels: Tensor, thresholds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of the level over draws and noise, and its variance."""
        above = torch.zeros(len(levels) - 1, len(i), dtype=torch.float64, device=i.device)
        for s, score in enumerate(self._scores(i, j)):
            root = self._precision(s, i, j).sqrt()
            distance = score.double() + self.mean - thresholds[s].unsqueeze(1)
            above += torch.special.ndtr(root * distance)
        above /= len(self)
        # Levels from the lowest one: their squares do not cancel.
        height = levels - levels[0]
        mean, square = height.diff() @ above, height.square().diff() @ above
        variance = (square - mean.square()).clamp_min(0.0)
        return (mean + levels[0]).to(self.row_factors.dtype), variance


def _indices(index: Positions, size: int, name: str, device: torch.device) -> Tensor:
    data = index if isinstance(index, Tensor) else torch.as_tensor(np.asarray(index))
    data = data.long() if data.numel() == 0 else data
    if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise ObservationError(f"{name} must be integers; got dtype {data.dtype}")
    bad = (data < 0) | (data >= size)
    if bool(bad.any()):
        raise ObservationError(
            f"{name} must be in 0..{size - 1}; got {int(bad.sum())} outside: unknown rows and "
            "columns need a larger shape"
        )
    return data.to(device, torch.int64)
