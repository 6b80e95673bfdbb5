"""Examples of the maps that compose others: what they are put around is an instance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from lowrank_opt.linalg import orthonormal_columns
from lowrank_opt.parameterizations.balls.homogeneous import HomogeneousBall
from lowrank_opt.parameterizations.balls.nb_lora import NBLoRA
from lowrank_opt.parameterizations.composed.complement import Complement
from lowrank_opt.parameterizations.composed.inductive import Inductive
from lowrank_opt.parameterizations.composed.nested_svd import NestedSVD
from lowrank_opt.parameterizations.composed.offset import Offset
from lowrank_opt.parameterizations.composed.weight_decomposed import WeightDecomposed
from lowrank_opt.parameterizations.composed.weighted import Weighted
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.free.factored import Factored

Shape = tuple[int, int]
_FEATURES = "two products with the features", "arXiv 1306.0626"


def examples() -> Iterator[Example]:
    """Yield an example of each composition.

    Examples
    --------
    >>> [example.name for example in examples()][:2]
    ['NestedSVD(outer, inner)', 'Weighted(inner, rows, cols)']
    """
    yield Example("NestedSVD(outer, inner)", _nested, "one thin product", "arXiv 2408.10280")
    yield Example("Weighted(inner, rows, cols)", _weighted, reference="NIPS 2010, equation 3")
    yield Example("Inductive(inner, features)", _inductive, *_FEATURES)
    orthonormal = partial(_inductive, orthonormal=True)
    yield Example("Inductive(inner, features, orthonormal)", orthonormal, *_FEATURES)
    yield Example("Complement(inner, left, right)", _complement, "projections", "arXiv 2510.13003")
    yield Example("Offset(inner)", _offset, "twice the inner columns", "arXiv 2404.02948")
    image = "D W0 + X without vanishing rows, D diagonal, rank X <= r"
    cost, source = "r products with the weight", "arXiv 2402.09353"
    yield Example("WeightDecomposed(inner, weight)", _decomposed, cost, source, image)


def _nested(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> NestedSVD:
    sides = [min(2 * rank, size) for size in shape]
    k, weight = min(sides), example_tensor(*shape)
    inner = NBLoRA((k, k), rank, radius=1.0, dtype=dtype)
    U, V = (orthonormal_columns(w[:, :k], k).to(dtype) for w in (weight, weight.mT))
    return NestedSVD((U, V), inner)


def _weighted(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Weighted:
    inner = HomogeneousBall(shape, rank, radius=1.0, dtype=dtype)
    return Weighted(inner, torch.linspace(0.5, 1.0, shape[0], dtype=dtype))


def _inductive(
    shape: Shape, rank: int, *, orthonormal: bool = False, dtype: torch.dtype = torch.float64
) -> Inductive:
    (m, n), k = shape, min(2 * rank, *shape)
    inner = HomogeneousBall((k, k), rank, radius=1.0, dtype=dtype)
    features = (example_tensor(size, k, dtype=dtype) for size in (m, n))
    return Inductive(inner, *features, orthonormal=orthonormal)


def _complement(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Complement:
    # As many protected directions as leave room for the rank, two at most.
    kept = [min(2, size - rank) for size in shape]
    pairs = zip(shape, kept, strict=True)
    Q, P = (example_tensor(size, k, dtype=dtype) if k else None for size, k in pairs)
    return Complement(HomogeneousBall(shape, rank, radius=1.0, dtype=dtype), Q, P)


def _offset(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> Offset:
    inner = NBLoRA(shape, rank, radius=1.0, dtype=dtype)
    return Offset(inner.assign(example_tensor(*shape, dtype=dtype), project=True))


def _decomposed(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> WeightDecomposed:
    return WeightDecomposed(Factored(shape, rank, dtype=dtype), example_tensor(*shape, dtype=dtype))
