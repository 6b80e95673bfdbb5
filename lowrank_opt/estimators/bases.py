"""What estimators derive from in scikit-learn, with the types that it does not declare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray
    from sklearn.utils import Tags

    class BaseEstimator:
        """Parameters, tags and a representation."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the parameters by name."""
            ...

        def set_params(self, **params: object) -> Self:
            """Set parameters by name."""
            ...

        def __sklearn_tags__(self) -> Tags: ...

    class RegressorMixin:
        """What all regressors have."""

        def score(self, X: object, y: object, sample_weight: ArrayLike | None = None) -> float:
            """Return the coefficient of determination of a prediction."""
            ...

    class TransformerMixin:
        """What all transformers have."""

        def fit_transform(self, X: ArrayLike, y: object = None) -> NDArray[Any]:
            """Fit, and return the data transformed."""
            ...

        def set_output(self, *, transform: str | None = None) -> Self:
            """Choose what `transform` returns."""
            ...

    class OneToOneFeatureMixin:
        """Output features are the input features."""

        def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
            """Return the names of the output features."""
            ...

else:
    from sklearn.base import (
        BaseEstimator,
        OneToOneFeatureMixin,
        RegressorMixin,
        TransformerMixin,
    )

__all__ = ["BaseEstimator", "OneToOneFeatureMixin", "RegressorMixin", "TransformerMixin"]
