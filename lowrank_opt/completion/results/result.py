"""What a completion returns: the matrix, the biases, and how it went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.loop.history import History
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.ids import Ids, check_ids, from_tensors, to_tensors
from lowrank_opt.completion.model.links import IDENTITY, Link, link_of
from lowrank_opt.completion.results import storage
from lowrank_opt.completion.results.html import to_html
from lowrank_opt.errors import CertificateError, ConvergenceError, ObservationError, ShapeError
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowrank_opt.completion.certificates.certificate import ConvexProblem, OptimalityCertificate

    Positions: TypeAlias = Tensor | NDArray[np.integer] | Sequence[int] | int


@dataclass(frozen=True, eq=False, repr=False)
class CompletionResult:
    """A completed matrix: ``operator + mean + row bias + column bias``, through a link.

    Parameters
    ----------
    operator : LowRankOperator, shape (m, n)
        Detached; zero in rows and columns that had no entry, unless the parameterization is
        inductive.
    bias : AdditiveBias
        Zero if none was fitted.
    status : CompletionStatus
        Why the iteration stopped; its value is a sentence.
    history : History
    problem : ConvexProblem, optional
        What was minimised, where a certificate can be given; not saved.
    row_ids, col_ids : sequence, optional
        Distinct names of the rows and columns: text, numbers, dates, tuples of them; kept in files
        with their types.
    link : Link
        From the sum above to predictions; the identity, except after losses with another scale.
    proved : OptimalityCertificate, optional
        The one by which the iteration was stopped, or was not; not saved.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(3, 1))
    >>> bias = AdditiveBias(3.0, torch.zeros(2), torch.tensor([0.0, 0.5, 0.0]))
    >>> result = CompletionResult(op, bias, CompletionStatus.CONVERGED, History())
    >>> result.predict([0, 1], [1, 2]), result.predict(0, 1, clip=(1.0, 4.0))
    (tensor([4.5000, 4.0000]), tensor(4.))
    """

    operator: LowRankOperator
    bias: AdditiveBias
    status: CompletionStatus
    history: History
    problem: ConvexProblem | None = None
    row_ids: Ids | None = None
    col_ids: Ids | None = None
    link: Link = IDENTITY
    proved: OptimalityCertificate | None = None

    def __post_init__(self) -> None:
        names = ("row_ids", "col_ids")
        for name, ids, size in zip(names, (self.row_ids, self.col_ids), self.shape, strict=True):
            if ids is not None:
                check_ids(ids, size, name)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.operator.shape

    def predict(
        self, rows: Positions, cols: Positions, *, clip: tuple[float, float] | None = None
    ) -> Tensor:
        """Predict entries; those of rows and columns never seen come from the biases.

        Parameters
        ----------
        rows, cols : Tensor, array, sequence of int or int
            Zero-based, of shapes that broadcast.
        clip : pair of float, optional
            Smallest and largest prediction.

        Returns
        -------
        Tensor
            In the broadcast shape of `rows` and `cols`, the dtype and device of the operator.

        Raises
        ------
        ObservationError
            If an index is not an integer in range, or `clip` is not ascending.
        ShapeError
            If shapes do not broadcast.
        """
        if clip is not None and not clip[0] <= clip[1]:
            raise ObservationError(f"clip must be (smallest, largest); got clip={clip!r}")
        m, n = self.shape
        i, j = self._broadcast(self._indices(rows, m, "rows"), self._indices(cols, n, "cols"))
        entries = self.operator.entries(i.reshape(-1), j.reshape(-1)).reshape(i.shape)
        predictions = self.link.mean(entries + self.bias.predict(i, j))
        return predictions if clip is None else predictions.clamp(*clip)

    def to_dense(self) -> Tensor:
        """Return all predictions, shape (m, n)."""
        bias = self.bias
        scores = self.operator.to_dense() + (bias.mean + bias.rows).unsqueeze(1) + bias.cols
        return self.link.mean(scores)

    def certificate(self, *, exact: bool = False) -> OptimalityCertificate:
        """Bound how far the objective is from its optimum over the whole convex set.

        Parameters
        ----------
        exact : bool
            Prove it in rational arithmetic: ``certificate(exact=True).save(path)`` writes the
            ratings, the factors and a witness that anyone can check.

        Returns
        -------
        OptimalityCertificate
            Valid whatever the solver did; see `certify_completion`.

        Raises
        ------
        CertificateError
            If what was minimised is not convex in the matrix, or the result comes from a file.
        """
        from lowrank_opt.completion.certificates.certificate import certify_completion

        if self.problem is None:
            raise CertificateError(
                "a certificate needs a convex problem: the squared loss over a norm ball or with "
                "a nuclear penalty; got a result that knows of none: name it with "
                "certify_completion(ConvexProblem(...), result.operator, result.bias)"
            )
        return certify_completion(self.problem, self.operator, self.bias, exact=exact)

    def raise_if_failed(self) -> None:
        """Raise unless the iteration ended by one of its own criteria.

        Raises
        ------
        ConvergenceError
        """
        if not self.status.succeeded:
            raise ConvergenceError(
                f"the iteration must end by its tolerance; got, after {len(self.history)} "
                f"evaluations: {self.status.value} "
                "Raise max_iterations or tolerance, or use float64"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write a folder: factors, biases, history and ids in safetensors, the rest in JSON.

        A result that the folder held is replaced whole, or stays. Nothing is pickled.

        Raises
        ------
        DataError
            If the folder cannot be written; `check_writable` tells before a long computation. Or
            if ids are of a type that has no form in files.
        """
        header, tensors = self.contents()
        for name, ids in (("row_ids", self.row_ids), ("col_ids", self.col_ids)):
            tensors |= {} if ids is None else to_tensors(ids, name)
        storage.write(path, "CompletionResult", header, tensors, self.history)

    def contents(self) -> tuple[storage.JsonObject, dict[str, Tensor]]:
        """Return what files hold of it, besides history and ids."""
        bias = self.bias
        tensors = dict(zip(("left", "scale", "right"), self.operator, strict=True))
        tensors |= {"row_bias": bias.rows, "col_bias": bias.cols}
        tensors["mean"] = torch.tensor(bias.mean, dtype=torch.float64)
        header: storage.JsonObject = {"status": self.status.name, "shape": list(self.shape)}
        header["link"] = self.link.name
        if self.link.numbers:
            tensors["link"] = torch.tensor(self.link.numbers, dtype=torch.float64)
        return header, tensors

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CompletionResult:
        """Read a folder that `save` wrote, onto the CPU.

        Raises
        ------
        DataError
            If a file is missing, damaged, foreign, or of a later version.
        """
        with storage.reading(path, "CompletionResult") as (header, tensors, history):
            operator = LowRankOperator(*(tensors[name] for name in ("left", "scale", "right")))
            bias = AdditiveBias(float(tensors["mean"]), tensors["row_bias"], tensors["col_bias"])
            storage.check((len(bias.rows), len(bias.cols)) == operator.shape, "biases do not fit")
            status = CompletionStatus[str(header["status"])]
            row_ids, col_ids = (from_tensors(tensors, name) for name in ("row_ids", "col_ids"))
            numbers = tensors["link"].tolist() if "link" in tensors else ()
            link = link_of(str(header.get("link", "identity")), tuple(numbers))
            return cls(operator, bias, status, history, row_ids=row_ids, col_ids=col_ids, link=link)

    def summary(
        self,
        *,
        rows: int | None = None,
        cols: int | None = None,
        nuclear_norm: float | None = None,
    ) -> str:
        """Return a few lines on the matrix and on how the iteration went.

        Parameters
        ----------
        rows, cols : int, optional
            Of the whole matrix, where these are some of its rows or columns.
        nuclear_norm : float, optional
            Of the whole matrix.
        """
        (m, n), history = self.shape, self.history
        norm = float(self.operator.schatten_norm(1)) if nuclear_norm is None else nuclear_norm
        lines = [
            f"{rows or m} x {cols or n}, rank <= {self.operator.rank}, {self.operator.dtype}",
            f"nuclear norm {norm:.6g}, mean {self.bias.mean:.6g}",
            self.status.value,
        ]
        if len(history) > 0:
            first, last = history.objective[0], history.objective[-1]
            seconds, steps = history.seconds[-1], len(history) - 1
            lines.append(f"objective {first:.6g} -> {last:.6g}, {steps} steps in {seconds:.2f} s")
        if self.proved is not None:
            share = self.proved.gap / (self.proved.objective or 1.0)
            lines.append(f"at most {self.proved.gap:.3g} above the optimum ({share:.1e} of it)")
            if self.proved.price_of_rank:
                lines[-1] += f", of which the rank costs at most {self.proved.price_of_rank:.3g}"
        errors = [x for x in history.validation_rmse if not math.isnan(x)]
        return "\n".join(lines + ([f"validation RMSE {min(errors):.4f}"] if errors else []))

    def __repr__(self) -> str:
        m, n = self.shape
        rank, name = self.operator.rank, self.status.name
        return f"CompletionResult({m} x {n}, rank <= {rank}, {name}, {len(self.history)} iterates)"

    def _repr_html_(self) -> str:
        return to_html(self)

    def _indices(self, index: Positions, size: int, name: str) -> Tensor:
        data = index if isinstance(index, Tensor) else torch.as_tensor(np.asarray(index))
        if data.numel() == 0:
            data = data.long()
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise ObservationError(f"{name} must be integers; got dtype {data.dtype}")
        data = data.to(self.operator.device, torch.int64)
        bad = (data < 0) | (data >= size)
        if bool(bad.any()):
            raise ObservationError(
                f"{name} must be in 0..{size - 1}; got {int(bad.sum())} of {data.numel()} outside, "
                f"the first {int(data[bad][0])}: unknown rows and columns need a larger shape"
            )
        return data

    def _broadcast(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        try:
            rows, cols = torch.broadcast_tensors(i, j)
        except RuntimeError as error:
            raise ShapeError(
                "rows and cols must have shapes that broadcast; "
                f"got {tuple(i.shape)} and {tuple(j.shape)}"
            ) from error
        return rows, cols
