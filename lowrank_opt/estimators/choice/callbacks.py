"""Callbacks of scikit-learn 1.9: what a fit tells them, and when.

The tree of tasks is: the fit; in it a fit for each setting that is tried; in that its iterations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lowrank_opt.errors import OptionError

if TYPE_CHECKING:
    from lowrank_opt.completion import Iteration
    from lowrank_opt.completion.solvers.traits import AnyResult

F = TypeVar("F", bound=Callable[..., Any])


class _WithoutCallbacks:
    """Says that callbacks need a later scikit-learn."""

    def set_callbacks(self, *callbacks: object) -> Self:
        """Take callbacks.

        Raises
        ------
        OptionError
            If there are any.
        """
        if callbacks:
            raise OptionError(
                f"callbacks need scikit-learn 1.9; got {len(callbacks)} and an earlier one: "
                "install scikit-learn>=1.9"
            )
        return self


def _unchanged(method: F) -> F:
    return method


if TYPE_CHECKING:

    class CallbackSupportMixin(_WithoutCallbacks):
        """Takes callbacks."""

    def with_callbacks(method: F) -> F:
        """Let a method tell its callbacks."""
        ...

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:
        CallbackSupportMixin, with_callbacks = _WithoutCallbacks, _unchanged


@dataclass
class Watch:
    """Tells the callbacks of an estimator how far its fit is.

    Parameters
    ----------
    estimator : estimator
    context : CallbackContext
        Of the fit.
    data : dict
        ``X``, ``y`` and, as ``metadata``, weights.
    fitted : callable, optional
        From a result and a setting to the attributes of the estimator that would have them.

    Attributes
    ----------
    stopped : bool
        Whether a callback asked to try no further settings.
    """

    estimator: object
    context: Any
    data: dict[str, Any]
    fitted: Callable[[AnyResult, Mapping[str, float]], dict[str, object]] | None = None
    stopped: bool = field(default=False, init=False)

    @contextmanager
    def fitting(
        self, setting: Mapping[str, float]
    ) -> Generator[tuple[Callable[[Iteration], None], Callable[[AnyResult], None]]]:
        """Yield what is to be called with each iteration, and with the result."""
        task = self.context.subcontext("setting", max_subtasks=None)
        task.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        found = list[Any]()

        def report(iteration: Iteration) -> None:
            step = task.subcontext("iteration")
            step.call_on_fit_task_begin(estimator=self.estimator)
            # No estimator could be scored, so that these are no arguments of a scorer.
            numbers = {"objective": iteration.objective, "seconds": iteration.seconds}
            if iteration.validation_rmse == iteration.validation_rmse:
                numbers["validation_rmse"] = iteration.validation_rmse
            step.call_on_fit_task_end(estimator=self.estimator, metadata=numbers)

        yield report, found.append
        make = self.fitted
        attributes = None if make is None or not found else lambda: make(found[-1], setting)
        stop = task.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=attributes, **self.data
        )
        self.stopped = self.stopped or bool(stop)

    def without_estimators(self) -> Watch:
        """Return a watch that makes no fitted estimators: its results are in another unit."""
        return Watch(self.estimator, self.context, self.data)


@contextmanager
def watched(
    estimator: object,
    data: dict[str, Any],
    fitted: Callable[[AnyResult, Mapping[str, float]], dict[str, object]] | None = None,
) -> Generator[Watch | None]:
    """Yield a watch for the callbacks of an estimator; None if it has none."""
    given: Any = estimator
    if not (hasattr(given, "_skl_callbacks") or hasattr(given, "_parent_callback_ctx")):
        yield None
        return
    context = given._init_callback_context(max_subtasks=None)
    context.call_on_fit_task_begin(estimator=estimator, **data)
    yield Watch(estimator, context, data, fitted)
    context.call_on_fit_task_end(
        estimator=estimator, reconstruction_attributes=lambda: fitted_attributes(given), **data
    )


def fitted_attributes(estimator: object) -> dict[str, object]:
    """Return what a fit has left in an estimator."""
    kept = vars(estimator).items()
    return {name: copy.copy(x) for name, x in kept if name.endswith("_") or name in _PRIVATE}


# What a fit leaves beside attributes that end with an underscore.
_PRIVATE = ("_known", "_intervals", "_spread", "_described", "_side", "_bounds")
