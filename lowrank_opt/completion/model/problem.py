"""What is to be completed: entries, where the matrix may be, and what is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal, TypeAlias

from lowrank_opt.completion.model.box import InRange
from lowrank_opt.completion.model.checks import (
    check_amounts,
    check_choices,
    check_counts,
    check_parameterization_fits,
)
from lowrank_opt.completion.model.losses import EntryLoss, Loss, entry_loss
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import together
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet

if TYPE_CHECKING:
    from lowrank_opt.completion.model.side import Features

Model: TypeAlias = Parameterization | FeasibleSet | int | None
Bias: TypeAlias = Literal["additive"] | None


@dataclass(frozen=True, eq=False)
class CompletionProblem:
    r"""Entries of a matrix, where the matrix may be, and what is minimised; validated once.

    :math:`\sum_k w_k\, \rho(W_{ij} + \mu + a_i + b_j - v_k) + \text{penalty term}
    + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)` over W and the biases. Which solvers take which
    problems is in their traits.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        Converted to the dtype of a parameterization.
    model : Parameterization, FeasibleSet, int or None
        Where W is: where a parameterization reaches, which is trained in place, from where it is,
        in float32 or float64; in a set; anywhere, of at most this rank; or of a rank that the
        solver chooses.
    loss : {"squared", "absolute", "huber", "logistic", "ordered_probit", "poisson"} or callable
        :math:`\rho(e) = e^2/2`, :math:`|e|`, or :math:`e^2/2` up to 1 and :math:`|e| - 1/2`
        beyond; or the negative log-likelihood of two values, of ordered levels or of counts,
        whose score is the sum above and whose predictions are means; an `EntryLoss` of your own.
        A callable maps a tensor of residuals to losses, entry by entry.
    prediction_range : pair of float, optional
        Every prediction is in it, and so must be the values; scores beyond an end cost nothing
        for a value at that end (see `InRange`). For losses of residuals.
    bias : {"additive"} or None
        Fit a constant for each row and column besides the weighted mean of the values; or none.
    bias_penalty : float
        :math:`\lambda_b \ge 0`, in units of entries: a row with that many entries gets about half
        of its mean deviation.
    penalty : float
        :math:`\lambda \ge 0`, of :math:`\tfrac12 \lambda \|\theta\|^2` for the free parameters
        :math:`\theta` of a parameterization; for a rank, those are two factors, and the term is
        :math:`\lambda \|W\|_*`.
    row_features, col_features : sequence of Tensor, array or sparse matrix, shapes (m, f), (n, f)
        Side information, a line for each row or column.
    implicit : bool
        Use as side information, both ways, which entries were observed.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit, or there is nothing to train.
    ObservationError
        If values overflow in the dtype of the parameterization, or the loss is not defined at
        them.
    OptionError
        If a setting is outside its domain.

    Examples
    --------
    >>> observed = Observations([0, 1, 2], [0, 1, 1], [3.0, 1.0, 2.0], shape=(3, 2))
    >>> problem = CompletionProblem(observed, 1, bias=None)
    >>> problem.rank, problem.shape, problem.feasible_set
    (1, (3, 2), None)
    """

    observations: Observations
    model: Model = None
    _: KW_ONLY
    loss: Loss = "squared"
    prediction_range: tuple[float, float] | None = None
    bias: Bias = "additive"
    bias_penalty: float = 1.0
    penalty: float = 0.0
    row_features: Sequence[Features] = ()
    col_features: Sequence[Features] = ()
    implicit: bool = False

    def __post_init__(self) -> None:
        check_choices(bias=self.bias)
        check_amounts(bias_penalty=self.bias_penalty, penalty=self.penalty)
        object.__setattr__(self, "observations", self._converted())
        with together(self.observations.part):
            self.entry_loss.check(self.observations)
        self._check_features()

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.observations.shape

    @property
    def entry_loss(self) -> EntryLoss:
        """The loss as an object, the range of predictions in it."""
        if self.prediction_range is None:
            return entry_loss(self.loss)
        return InRange(*self.prediction_range, loss=self.loss)

    @property
    def feasible_set(self) -> FeasibleSet | None:
        """The set that bounds more than the rank; None if there is none."""
        model = self.model
        found = model.feasible_set if isinstance(model, Parameterization) else model
        return found if isinstance(found, FeasibleSet) and not found.only_rank else None

    @property
    def rank(self) -> int | None:
        """The largest rank of W; None if the solver is to choose it."""
        return self.model.rank if isinstance(self.model, _RANKED) else self.model

    @property
    def fixed_rank(self) -> int:
        """The largest rank of W, where there is one.

        Raises
        ------
        OptionError
        """
        if self.rank is None:
            raise OptionError(
                "this solver needs a rank; got none: pass one, as in complete(obs, 5)"
            )
        return self.rank

    @property
    def bias_rate(self) -> float | None:
        """The penalty of biases; None if there are none."""
        return None if self.bias is None else self.bias_penalty

    def _converted(self) -> Observations:
        observations, model = self.observations, self.model
        if isinstance(model, Parameterization):
            return observations.to(dtype=check_parameterization_fits(model, observations))
        if isinstance(model, Integral) and not isinstance(model, bool):
            check_counts(rank=int(model))
            object.__setattr__(self, "model", int(model))
        elif not (model is None or isinstance(model, FeasibleSet)):
            raise OptionError(
                "model must be a parameterization, a set, a rank or None; got "
                f"{type(model).__name__}"
            )
        return observations

    def _check_features(self) -> None:
        for name, size in zip(("row_features", "col_features"), self.shape, strict=True):
            for matrix in getattr(self, name):
                if matrix.shape[0] != size:
                    raise ShapeError(
                        f"{name} must have {size} lines, one for each; got {tuple(matrix.shape)}"
                    )


_RANKED = (Parameterization, FeasibleSet)
