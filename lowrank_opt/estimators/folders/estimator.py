"""An estimator that is written into a folder and made again from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Self

from sklearn.utils.validation import check_is_fitted

from lowrank_opt.estimators.bases import BaseEstimator
from lowrank_opt.estimators.folders import saving

if TYPE_CHECKING:
    from os import PathLike


_OUTPUT = "_sklearn_output_config"


class SavedEstimator(BaseEstimator):
    """Saves and loads what a fit leaves: a description, and tensors."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write a folder from which `load` makes this estimator again; nothing is pickled.

        A generator of random numbers among the settings is left out.

        Raises
        ------
        NotFittedError
            If there is nothing to save yet.
        DataError
            If the folder cannot be written, or settings or ids have no form in files.
        """
        check_is_fitted(self)
        facts, tensors = self.parts()
        # What `set_output` chose.
        facts["output"] = getattr(self, _OUTPUT, None)
        saving.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a folder that `save` wrote.

        Raises
        ------
        DataError
            If it is missing, damaged, foreign, or of another estimator.
        """
        return saving.read(path, cls.__name__, cls._restored)

    @classmethod
    def _restored(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        made = cls.of_parts(facts, tensors)
        if facts.get("output") is not None:
            setattr(made, _OUTPUT, facts["output"])
        return made

    @abstractmethod
    def parts(self) -> tuple[dict[str, Any], saving.Tensors]:
        """Return what a folder holds: a description that JSON can tell, and tensors."""

    @classmethod
    @abstractmethod
    def of_parts(cls, facts: dict[str, Any], tensors: saving.Tensors) -> Self:
        """Return the estimator that `parts` was called on."""
