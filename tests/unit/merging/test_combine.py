"""Combined updates against dense computations, closed forms and their declared sets."""

import math

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import (
    NotInSetError,
    OptionError,
    RankError,
    ShapeError,
    TargetError,
)
from lowrank_opt.linalg.entrywise import keep_largest
from lowrank_opt.merging import add_updates, combine
from lowrank_opt.nn import adapt
from lowrank_opt.nn import combine as combine_adapters
from lowrank_opt.testing import forbid_dense
from tests import adapted as parts_of

THIN = ["sum", "average", "svd", "knots", "tsv", "drop_components"]
DENSE = ["ties_dense", "dare_dense", "magnitude_dense"]
WEIGHTS = [1.5, -0.5, 0.25]


def updates_of(
    m: int = 12, n: int = 9, ranks: tuple[int, ...] = (2, 1, 3), seed: int = 0
) -> list[lo.LowRankOperator]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [lo.LowRankOperator(normal(m, r), normal(r), normal(n, r)) for r in ranks]


def dense_sum(ops: list[lo.LowRankOperator], weights: list[float]) -> Tensor:
    return sum(w * op.to_dense() for w, op in zip(weights, ops, strict=True))


def dense_ties(terms: list[Tensor], density: float) -> Tensor:
    """Return TIES entry by entry, in plain Python."""
    trimmed = []
    for x in terms:
        order = x.abs().flatten().sort(descending=True).values
        limit = order[max(1, round(density * x.numel())) - 1]
        trimmed.append(torch.where(x.abs() >= limit, x, 0.0))
    out = torch.zeros_like(terms[0])
    for index in range(out.numel()):
        values = [float(x.flatten()[index]) for x in trimmed]
        chosen = [v for v in values if v * sum(values) > 0]
        out.view(-1)[index] = sum(chosen) / len(chosen) if chosen else 0.0
    return out


def best(matrix: Tensor, rank: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vh[:rank]


def test_sum_is_exact_and_keeps_factors() -> None:
    ops = [op.to(dtype=torch.float32) for op in updates_of()]
    found = combine(ops, WEIGHTS, "sum").operator
    assert torch.equal(torch.cat([op.left for op in ops], dim=1), found.left)
    torch.testing.assert_close(dense_sum(ops, WEIGHTS), found.to_dense())


def test_average_divides_by_the_sum_of_weights() -> None:
    ops = updates_of()
    torch.testing.assert_close(dense_sum(ops, [1 / 3] * 3), combine(ops).operator.to_dense())
    found = combine(ops, [2.0, 1.0, 1.0])
    torch.testing.assert_close(dense_sum(ops, [0.5, 0.25, 0.25]), found.operator.to_dense())
    assert (0.5, 0.25, 0.25) == found.weights


@pytest.mark.parametrize("rank", [None, 1, 2, 9])
def test_svd_is_the_best_approximation(rank: int | None) -> None:
    ops, kept = updates_of(), 3 if rank is None else rank
    found, total = combine(ops, WEIGHTS, "svd", rank=rank), dense_sum(ops, WEIGHTS)
    torch.testing.assert_close(best(total, kept), found.operator.to_dense())
    values = torch.linalg.svdvals(total)
    assert float(values[kept:].norm() / values.norm()) == pytest.approx(found.lost, abs=1e-12)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_knots_is_ties_on_the_concatenation(density: float) -> None:
    ops = updates_of()
    terms = [w * op.to_dense() for w, op in zip(WEIGHTS, ops, strict=True)]
    U, s, Vh = torch.linalg.svd(torch.cat(terms, dim=1), full_matrices=False)
    used = s > 1e-10
    parts = (s[used].unsqueeze(1) * Vh[used]).split(9, dim=1)
    expected = U[:, used] @ dense_ties(list(parts), density)
    found = combine(ops, WEIGHTS, "knots", density=density)
    torch.testing.assert_close(expected, found.operator.to_dense())
    assert 6 == found.operator.rank


def test_tsv_is_procrustes_on_all_singular_vectors() -> None:
    ops = updates_of()
    svds = [torch.linalg.svd(w * op.to_dense()) for w, op in zip(WEIGHTS, ops, strict=True)]
    ranks = (2, 1, 3)
    U = torch.cat([s[0][:, :r] for s, r in zip(svds, ranks, strict=True)], dim=1)
    V = torch.cat([s[2].mT[:, :r] for s, r in zip(svds, ranks, strict=True)], dim=1)
    sigma = torch.cat([s[1][:r] for s, r in zip(svds, ranks, strict=True)])
    # The polar factor by another formula: X (X^T X)^{-1/2}.
    frames = []
    for x in (U, V):
        values, vectors = torch.linalg.eigh(x.mT @ x)
        frames.append(x @ vectors / values.sqrt() @ vectors.mT)
    expected = frames[0] * sigma @ frames[1].mT
    found = combine(ops, WEIGHTS, "tsv").operator
    torch.testing.assert_close(expected, found.to_dense())
    torch.testing.assert_close(sigma.sort(descending=True).values, found.singular_values())


def test_tsv_keeps_equal_numbers_of_leading_components() -> None:
    ops = updates_of(ranks=(4, 4, 4))
    leading = [op.truncate(3) for op in ops]
    found = combine(ops, method="tsv").operator
    torch.testing.assert_close(combine(leading, method="tsv").operator.to_dense(), found.to_dense())
    assert 6 == combine(ops, method="tsv", rank=7).operator.rank


@pytest.mark.parametrize("method", ["average", "svd", "knots", "tsv", "ties_dense"])
def test_equal_updates_give_that_update(method: str) -> None:
    op = updates_of(ranks=(3,))[0]
    found = combine([op] * 3, None if method != "svd" else [1 / 3] * 3, method, density=1.0)
    torch.testing.assert_close(op.to_dense(), found.operator.to_dense())


@pytest.mark.parametrize("method", ["sum", "svd", "knots", "tsv"])
def test_orthogonal_updates_are_added(method: str) -> None:
    eye = torch.eye(8, dtype=torch.float64)
    ops = [lo.LowRankOperator.from_dense(torch.diag(eye[i]) * (i + 1.0), 1) for i in range(3)]
    found = combine(ops, method=method, density=1.0, rank=3 if method == "svd" else None)
    expected = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0, 0, 0, 0, 0])).double()
    torch.testing.assert_close(expected, found.operator.to_dense())
    torch.testing.assert_close(torch.ones(3).double(), found.interference.kept)
    assert 0 == found.interference.singular


@pytest.mark.parametrize("method", DENSE)
def test_entrywise_methods_truncate_the_dense_result(method: str) -> None:
    ops = updates_of()
    terms = [w * op.to_dense() for w, op in zip(WEIGHTS, ops, strict=True)]
    seeded = torch.Generator().manual_seed(5)
    masks = [torch.rand(12, 9, generator=seeded) < 0.3 for _ in terms]
    expected = {
        "ties_dense": dense_ties(terms, 0.3),
        "dare_dense": sum(x * mask / 0.3 for x, mask in zip(terms, masks, strict=True)),
        "magnitude_dense": sum(keep_largest(x, 0.3) for x in terms),
    }[method]
    generator = torch.Generator().manual_seed(5) if method == "dare_dense" else None
    whole = combine(ops, WEIGHTS, method, density=0.3, rank=9, generator=generator)
    torch.testing.assert_close(expected, whole.operator.to_dense())
    if generator is not None:
        generator.manual_seed(5)
    found = combine(ops, WEIGHTS, method, density=0.3, generator=generator)
    torch.testing.assert_close(best(expected, 3), found.operator.to_dense())


def test_dropped_components_are_singular_ones() -> None:
    ops, seeded = updates_of(), torch.Generator().manual_seed(4)
    expected = torch.zeros(12, 9).double()
    for w, op, r in zip(WEIGHTS, ops, (2, 1, 3), strict=True):
        U, s, Vh = torch.linalg.svd(w * op.to_dense(), full_matrices=False)
        kept = torch.rand(r, generator=seeded) < 0.5
        expected += U[:, :r] * (s[:r] * kept / 0.5) @ Vh[:r]
    generator = torch.Generator().manual_seed(4)
    found = combine(ops, WEIGHTS, "drop_components", generator=generator)
    torch.testing.assert_close(expected, found.operator.to_dense())


@pytest.mark.parametrize("method", THIN)
def test_thin_methods_form_no_dense_matrix(method: str) -> None:
    ops = updates_of(97, 89, (1, 2))
    with forbid_dense((97, 89)):
        combine(ops, method=method)


SETS = {
    "spectral": lo.SchattenBall(math.inf, 1.5, 2),
    "nuclear": lo.SchattenBall(1, 1.5, 2),
    "fan": lo.KyFanBall(2, 1.5, 3),
    "box": lo.SingularValueBox([1.5, 0.5]),
    "weighted": lo.WeightedSet(lo.SchattenBall(1, 1.0, 2), None, torch.linspace(1, 2, 9)),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", THIN + DENSE)
def test_result_is_in_its_declared_set(method: str, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        members = [
            SETS[name].sample((12, 9), generator=generator, dtype=torch.float64) for _ in "123"
        ]
        weights = [1.0, 0.5, 2.0] if method == "average" else WEIGHTS
        found = combine(members, weights, method, feasible_set=SETS[name])
        assert found.feasible_set.contains(found.operator)
        assert 9 >= found.feasible_set.rank


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("average", None, lo.SchattenBall(math.inf, 2.0, 4)),
        ("average", [1.0, 3.0], lo.SchattenBall(math.inf, 2.5, 4)),
        ("sum", [2.0, -1.0], lo.SchattenBall(math.inf, 5.0, 4)),
        ("svd", [2.0, -1.0], lo.SchattenBall(math.inf, 5.0, 2)),
        ("tsv", [2.0, -1.0], lo.SchattenBall(math.inf, 3.0, 4)),
    ],
)
def test_bound_follows_from_parameterizations(
    method: str, weights: list[float] | None, expected: lo.SchattenBall
) -> None:
    generator = torch.Generator().manual_seed(0)
    members = [lo.NBLoRA((12, 9), 2, radius=x, generator=generator) for x in (1.0, 3.0)]
    for member in members:
        for parameter in member.parameters():
            nn.init.normal_(parameter, generator=generator)
    found = combine(members, weights, method)
    assert expected == found.feasible_set
    assert found.feasible_set.contains(found.operator)


def test_interference_is_that_of_dense_matrices() -> None:
    ops = updates_of()
    found = combine(ops, WEIGHTS, "svd", rank=2)
    terms = torch.stack([w * op.to_dense() for w, op in zip(WEIGHTS, ops, strict=True)]).flatten(1)
    norms, W = terms.norm(dim=1), found.operator.to_dense().flatten()
    torch.testing.assert_close(terms @ terms.mT / norms.outer(norms), found.interference.cosines)
    torch.testing.assert_close(terms @ W / norms**2, found.interference.kept)
    lost = combine([ops[0], 0.0 * ops[0]], method="sum").interference
    assert [1.0, 0.0] == lost.cosines.diagonal().round(decimals=9).tolist()
    assert bool(lost.kept.isnan()[1])


def test_singular_interference_is_the_papers_formula() -> None:
    ops = updates_of(ranks=(1, 1))
    svds = [torch.linalg.svd(op.to_dense()) for op in ops]
    u, v = (float(svds[0][i].select(d, 0) @ svds[1][i].select(d, 0)) for i, d in ((0, 1), (2, 0)))
    # Off-diagonal Gram matrices of two vectors: the product is diag(u s2 v, u s1 v).
    expected = abs(u * v) * float(svds[0][1][0] + svds[1][1][0])
    assert expected == pytest.approx(combine(ops).interference.singular * 2, rel=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e120])
@pytest.mark.parametrize("method", THIN + DENSE)
def test_extreme_sizes_only_scale(method: str, size: float) -> None:
    ops, seeds = updates_of(), [torch.Generator().manual_seed(3) for _ in range(2)]
    random = method in ("dare_dense", "drop_components")
    one, other = (
        combine(x, method=method, generator=seed if random else None).operator.to_dense()
        for x, seed in zip((ops, [size * op for op in ops]), seeds, strict=True)
    )
    torch.testing.assert_close(one, other / size)


@pytest.mark.parametrize("method", THIN + DENSE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3)])
def test_small_zero_and_full_rank_updates(method: str, shape: tuple[int, int]) -> None:
    m, n = shape
    full = lo.LowRankOperator.from_dense(torch.ones(m, n) + torch.eye(m, n))
    found = combine([full, 0.0 * full][: min(shape)], method=method, density=1.0)
    expected = full.to_dense() / (2 if method == "average" and min(shape) > 1 else 1)
    torch.testing.assert_close(expected, found.operator.to_dense())
    nothing = combine([0.0 * full], method=method, density=1.0)
    assert 0 == float(nothing.operator.to_dense().abs().sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_in_the_dtype_of_the_updates(dtype: torch.dtype) -> None:
    ops = [op.to(dtype=dtype) for op in updates_of()]
    for method in THIN + DENSE:
        assert dtype == combine(ops, method=method).operator.dtype
    mixed = combine([ops[0], updates_of()[1]])
    assert torch.float64 == mixed.operator.dtype


def adapted(seed: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    adapt(model, lambda shape: lo.NBLoRA(shape, 2, radius=1.0), targets="all-linear")
    torch.manual_seed(seed)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model


def test_models_are_combined_by_the_names_of_weights() -> None:
    models = [adapted(1), adapted(2)]
    found = combine(models, [0.5, 2.0], "sum")
    assert ["0.weight", "2.weight"] == list(found)
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    base.load_state_dict(
        {f"{i}.{x}": dict(models[0][i].named_parameters())[x] for i in (0, 2) for x in PARTS}
    )
    merged = add_updates(base, {name: x.operator for name, x in found.items()}, name="both")
    W = parts_of.base_weight(models[0][2]) + sum(
        w * parts_of.member(model[2])().to_dense()
        for w, model in zip((0.5, 2.0), models, strict=True)
    )
    h = torch.randn(3, 5).double()
    torch.testing.assert_close(nn.functional.linear(h, W, merged[2].bias), merged[2](h))
    assert lo.SchattenBall(math.inf, 2.5, 3) == found["2.weight"].feasible_set


PARTS = ("weight", "bias")


@pytest.mark.parametrize("method", ["ties", "svd"])
def test_adapters_of_one_model_are_combined_alike(method: str) -> None:
    model = adapted(1)
    adapt(model, lambda shape: lo.Factored(shape, 2), targets="all-linear", name="b")
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    ops = [parts_of.member(model[0], name)() for name in ("default", "b")]
    combine_adapters(model, {"default": 1.0, "b": 0.5}, name="c", method=method, density=0.5)
    ours = combine(ops, [1.0, 0.5], "ties_dense" if method == "ties" else method, density=0.5)
    expected = parts_of.member(model[0], "c")().to_dense()
    torch.testing.assert_close(expected, ours.operator.to_dense())


A, B, _ = updates_of()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([],), {}, OptionError, "at least one update"),
        (([A, B],), {"method": "linear"}, OptionError, "method must be one of"),
        (([A, B],), {"method": "knots", "density": 0.0}, OptionError, r"\(0, 1\]; got 0.0"),
        (([A, B], [1.0]), {}, OptionError, "each of 2 updates"),
        (([A, B], [1.0, math.nan]), {}, OptionError, "finite number"),
        (([A, B], [1.0, -1.0]), {}, OptionError, "use 'sum' to subtract"),
        (([A, B],), {"rank": 10, "method": "svd"}, RankError, r"1..9 for a 12 x 9"),
        (([A, B],), {"rank": 1, "method": "tsv"}, RankError, "2 updates for rank=1"),
        (([A, B],), {"generator": torch.Generator()}, OptionError, "drop at random"),
        (([A, B.mT],), {}, ShapeError, "one m x n matrix"),
        (([A, B * math.inf],), {}, TargetError, "finite"),
        (([A, {"w": B}],), {}, TargetError, "some of each"),
        (([A],), {"feasible_set": lo.SchattenBall(2, 1e-3, 2)}, NotInSetError, "exceeds"),
    ],
)
def test_refusals(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        combine(*arguments, **options)  # pyright: ignore
