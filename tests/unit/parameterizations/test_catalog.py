"""The table of methods: what it says is true of an instance, and the page shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, TargetError
from lowrank_opt.parameterizations.catalog import examples, markdown, row_of
from lowrank_opt.parameterizations.example import Example

ROOT = Path(__file__).resolve().parents[3]
RANK = 3
NORMS = {
    "nuclear": lambda s: s.sum(),
    "Frobenius": np.linalg.norm,
    "spectral": lambda s: s[0],
    "Schatten p": lambda s: (s**3).sum() ** (1 / 3),
    "Ky Fan": lambda s: s[:2].sum(),
}
METHODS = [e for e in examples() if e.listed]
TRIPLES = [m for m in METHODS if not m.name.startswith("WeightDecomposed")]
every_method = pytest.mark.parametrize("method", TRIPLES, ids=lambda m: m.name)


def filled(method: Example, seed: int = 1) -> lo.Parameterization:
    generator = torch.Generator().manual_seed(seed)
    module = method.make((14, 13), RANK, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def dense_values(module: lo.Parameterization) -> np.ndarray:
    return np.linalg.svd(module().to_dense().detach().numpy())[1]


def ranks(said: str) -> int:
    """Return the rank that a cell of the table means for the example."""
    return {"r": RANK, "any": 13}.get(said) or RANK * int(said.removesuffix(" r"))


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/methods.md"])
def test_the_page_shows_the_table(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert markdown() in text, "run: python docs/tables.py"


@every_method
def test_rank_column_is_attained_and_not_exceeded(method: Example) -> None:
    values = dense_values(filled(method))
    attained = int((values > 1e-10 * values[0]).sum())
    # Of 13 inputs, a rotation leaves one direction as it is.
    assert attained == (12 if row_of(method).rank == "any" else ranks(row_of(method).rank))


@every_method
def test_norm_column_bounds_what_large_parameters_give(method: Example) -> None:
    said, values = row_of(method).norm, dense_values(filled(method))
    radius = getattr(filled(method).feasible_set, "radius", 1.0)
    if said in NORMS:
        assert NORMS[said](values) <= radius * (1 + 1e-12)
    assert ("none" == said) == isinstance(_innermost(filled(method).feasible_set), lo.RankAtMost)


def _innermost(feasible_set: lo.FeasibleSet) -> lo.FeasibleSet:
    inner = getattr(feasible_set, "inner", None)
    return feasible_set if inner is None else _innermost(inner)


@every_method
def test_zero_start_column_is_what_zero_does(method: Example) -> None:
    module = filled(method)
    try:
        exact = not module.zero_()().to_dense().any()
    except NotImplementedError:
        exact = False
    assert exact == (row_of(method).zero_start == "exact")


@every_method
def test_onto_column_is_what_assign_reaches(method: Example) -> None:
    module, generator = filled(method), torch.Generator().manual_seed(2)
    target = module.feasible_set.sample((14, 13), generator=generator, dtype=torch.float64)
    if row_of(method).onto == "yes":
        reached = module.assign(target)().to_dense()
        assert torch.allclose(target.to_dense(), reached, atol=1e-10)
        return
    # A member of full rank: some maps reach all members of a smaller one; and half turns.
    full = torch.randn(14, 13, generator=generator, dtype=torch.float64)
    turned = -2 * getattr(module, "weight", full)
    with pytest.raises((TargetError, NoRightInverseError)):
        [module.assign(lo.LowRankOperator.from_dense(x), project=True) for x in (full, turned)]


@every_method
def test_export_column_is_the_rank_of_a_plain_product(method: Example) -> None:
    row, module = row_of(method), filled(method)
    exported = module().detach().truncate(ranks(row.export_rank))
    assert torch.allclose(exported.to_dense(), module().to_dense(), atol=1e-10)


def test_weight_decomposed_has_no_rank() -> None:
    (method,) = (m for m in METHODS if m not in TRIPLES)
    module = method.make((14, 13), RANK, dtype=torch.float64)
    weight = torch.randn(14, 13, dtype=torch.float64)
    torch.nn.init.normal_(module.inner.left)
    change = module.merged_dense(weight) - weight
    assert 13 == np.linalg.matrix_rank(change.detach().numpy())
    assert ("none", "none") == (row_of(method).rank, row_of(method).export_rank)
