"""Intruder dimensions against dense singular value decompositions and planted cases."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError, ShapeError, TargetError
from lowrank_opt.merging import (
    ModelSpectralReport,
    SingularBasis,
    SpectralReport,
    SpectralWarning,
    add_updates,
    intruder_free_radius,
    model_updates,
    rescale_intruders,
    shrunk_to_norm_of,
    singular_bases,
    spectral_report,
)
from lowrank_opt.merging.spectra import singular_basis as module
from lowrank_opt.merging.spectra.chance import chance_below, chance_quantile
from lowrank_opt.nn import AdapterStateError, adapt, merge, switch
from lowrank_opt.testing import forbid_dense
from tests.adapted import base_weight


def orthonormal(m: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, count, generator=generator, dtype=torch.float64)).Q


def with_values(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    k = len(values)
    return orthonormal(m, k, seed) * values.double() @ orthonormal(n, k, seed + 1).mT


def rank_one(m: int, n: int, size: float, seed: int) -> lo.LowRankOperator:
    scale = torch.tensor([size], dtype=torch.float64)
    return lo.LowRankOperator(orthonormal(m, 1, seed), scale, orthonormal(n, 1, seed + 1))


def report_of(
    base: Tensor | SingularBasis, update: lo.LowRankOperator | Tensor, **options: object
) -> SpectralReport:
    """Return the report, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)
        return spectral_report(base, update, **options)  # pyright: ignore


def dense_cosines(W0: Tensor, W: Tensor, side: str, k: int) -> list[float]:
    """Return the paper's numbers by NumPy: absolute products of thin singular vectors."""
    index = 0 if side == "left" else 2
    before, after = (np.linalg.svd(x.numpy(), full_matrices=False)[index] for x in (W0, W))
    if side == "right":
        before, after = before.T, after.T
    return np.abs(before.T @ after).max(axis=0)[:k].tolist()


STEPS = 0.9 ** torch.arange(64)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_cosines_are_those_of_dense_svds(side: str) -> None:
    W0, op = with_values(80, 64, STEPS), rank_one(80, 64, 0.9, 7) + rank_one(80, 64, 0.4, 8)
    report = report_of(W0, op, side=side)
    W, sides = W0 + op.to_dense(), ("left", "right") if side == "both" else (side,)
    expected = np.max([dense_cosines(W0, W, s, 10) for s in sides], axis=0)
    np.testing.assert_allclose(expected, report.cosines.numpy(), rtol=1e-10)
    np.testing.assert_allclose(torch.linalg.svdvals(W)[:10], report.values, rtol=1e-12)
    assert bool((report.span_cosines >= report.cosines - 1e-12).all())


def test_no_update_makes_no_intruder() -> None:
    report = spectral_report(with_values(70, 64, STEPS), torch.zeros(70, 64))
    torch.testing.assert_close(torch.ones(10).double(), report.cosines)
    assert (0, (), 0.0) == (report.count, report.positions, report.energy_share)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_planted_directions_are_counted(count: int) -> None:
    frame = orthonormal(80, 64 + count, 0)
    W0 = frame[:, :64] * STEPS @ orthonormal(64, 64, 1)
    scale = torch.tensor([3.0, 2.5, 2.0][:count], dtype=torch.float64)
    op = lo.LowRankOperator(frame[:, 64:], scale, orthonormal(64, max(count, 1), 2)[:, :count])
    report = report_of(W0, op)
    assert tuple(range(1, count + 1)) == report.positions
    values = torch.linalg.svdvals(W0 + op.to_dense())[:10]
    share = float(values[:count].square().sum() / values.square().sum())
    assert report.energy_share == pytest.approx(share)


def test_counts_do_not_depend_on_rotations_and_common_scale() -> None:
    W0, op = with_values(70, 64, STEPS), rank_one(70, 64, 0.9, 7)
    P, Q = orthonormal(70, 70, 11), orthonormal(64, 64, 12)
    turned = 1e-3 * lo.LowRankOperator(P @ op.left, op.scale, Q @ op.right)
    same = report_of(1e-3 * P @ W0 @ Q.mT, turned)
    torch.testing.assert_close(report_of(W0, op).cosines, same.cosines)


def test_counts_grow_with_threshold_and_k() -> None:
    basis = SingularBasis.of(with_values(70, 64, STEPS))
    op = sum((rank_one(70, 64, 0.5, 20 + i) for i in range(3)), start=rank_one(70, 64, 0.8, 7))
    by_threshold = [report_of(basis, op, threshold=t).count for t in (0.3, 0.5, 0.7, 0.9, 1.0)]
    by_k = [report_of(basis, op, k=k, threshold=0.7).count for k in (1, 5, 20, 64)]
    assert sorted(by_threshold) == by_threshold
    assert sorted(by_k) == by_k
    assert by_threshold[0] < by_threshold[-1]


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.5])
def test_intervention_changes_one_singular_value(factor: float) -> None:
    W0 = with_values(80, 64, STEPS)
    op = rank_one(80, 64, 3.0, 7) + rank_one(80, 64, 2.0, 8)
    report = report_of(W0, op)
    assert report.count >= 1
    before = torch.linalg.svdvals(W0 + op.to_dense())
    before[report.positions[0] - 1] *= factor
    after = rescale_intruders(op, report, factor=factor)
    expected = before.sort(descending=True).values
    torch.testing.assert_close(
        expected, torch.linalg.svdvals(W0 + after.to_dense()), atol=1e-12, rtol=0
    )
    control = shrunk_to_norm_of(op, after)
    torch.testing.assert_close(after.schatten_norm(2), control.schatten_norm(2))


@pytest.mark.parametrize(
    ("n", "base", "warned"),
    [
        (48, torch.linspace(2, 1, 48), "at least 64 rows and columns; got 1 smaller of 1"),
        (64, torch.ones(64), "separate singular values; 10 vectors of 1 matrices"),
    ],
)
def test_what_cannot_be_told_is_warned_of(n: int, base: Tensor, warned: str) -> None:
    noise = 1e-3 * torch.randn(n, n, generator=torch.Generator().manual_seed(0)).double()
    with pytest.warns(SpectralWarning, match=warned):
        spectral_report(with_values(n, n, base), noise)


def test_equal_singular_values_have_no_directions_of_their_own() -> None:
    noise = 1e-3 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).double()
    report = report_of(with_values(128, 128, torch.ones(128)), noise)
    assert (10, 0) == (report.count, report.span_count)


@pytest.mark.parametrize(("size", "count"), [(0.25, 0), (0.5, 0), (1.5, 1), (3.0, 1)])
def test_strong_spike_on_a_gaussian_base_is_one_intruder(size: float, count: int) -> None:
    W0 = torch.randn(128, 128, generator=torch.Generator().manual_seed(3)).double()
    spike = rank_one(128, 128, size * float(torch.linalg.svdvals(W0)[0]), 5)
    assert count == report_of(W0, spike).count


def test_spike_as_strong_as_the_leading_value_is_missed_and_undetermined() -> None:
    W0 = with_values(256, 256, torch.arange(1, 257) ** -0.7)
    report = report_of(W0, rank_one(256, 256, 1.0, 5))
    assert (0, (1, 2)) == (report.count, report.undetermined()[:2])


def test_null_space_of_the_base_is_new() -> None:
    W0 = torch.diag(torch.cat((torch.linspace(2, 1, 60), torch.zeros(20)))).double()
    new = torch.zeros(80, 80).double()
    new[70, 70] = 1.5
    report = spectral_report(W0, new, k=40, closeness=0.001)
    assert (1, 1) == (report.count, report.span_count)
    nothing = report_of(torch.zeros(64, 64), rank_one(64, 64, 1.0, 1))
    assert (1, 1, math.inf) == (nothing.count, len(nothing.cosines), nothing.relative_size)
    assert 0 == len(report_of(torch.zeros(64, 64), torch.zeros(64, 64)).cosines)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (5, 1), (3, 3)])
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e150])
def test_small_and_extreme_matrices(m: int, n: int, size: float) -> None:
    W0 = size * torch.randn(m, n, generator=torch.Generator().manual_seed(0)).double()
    report = report_of(W0, lo.LowRankOperator.from_dense(0.5 * W0), threshold=None)
    torch.testing.assert_close(torch.ones(len(report.cosines)).double(), report.cosines)
    assert 0 == report.count


def test_lanczos_agrees_with_the_dense_svd_without_a_dense_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SMALL", 100)
    W0, op = with_values(260, 240, 0.95 ** torch.arange(240)), rank_one(260, 240, 0.7, 4)
    basis = SingularBasis.of(W0)
    with forbid_dense((260, 240)):
        found = basis.updated_svd(op, 6)
    U, sigma, Vh = torch.linalg.svd(W0 + op.to_dense())
    torch.testing.assert_close(sigma[:6], found.scale)
    torch.testing.assert_close(torch.ones(6).double(), (U[:, :6] * found.left).sum(0).abs())
    torch.testing.assert_close(torch.ones(6).double(), (Vh.mT[:, :6] * found.right).sum(0).abs())


def test_lanczos_sees_what_takes_the_place_of_removed_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SMALL", 100)
    W0 = torch.diag(0.9 ** torch.arange(240)).double()
    removed = lo.LowRankOperator.from_dense(W0, 12)
    found = SingularBasis.of(W0).updated_svd(-0.99 * removed, 8)
    torch.testing.assert_close(0.9 ** torch.arange(12, 20).double(), found.scale)


def test_lanczos_gives_way_on_exhausted_and_flat_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALL", 10)
    low = with_values(90, 80, torch.ones(2))
    op = rank_one(90, 80, 1.0, 9)
    torch.testing.assert_close(
        torch.linalg.svdvals(low + op.to_dense())[:3],
        SingularBasis.of(low).updated_svd(op, 6).scale,
    )
    flat = torch.randn(90, 80, generator=torch.Generator().manual_seed(0)).double()
    found = SingularBasis.of(flat).updated_svd(op, 6)
    torch.testing.assert_close(torch.linalg.svdvals(flat + op.to_dense())[:6], found.scale)


@pytest.mark.parametrize("t", [0.75, 0.9])
def test_chance_in_the_plane_has_a_closed_form(t: float) -> None:
    assert chance_below(t, 2, 2) == pytest.approx(1 - 4 * math.acos(t) / math.pi, abs=0.012)
    assert chance_below(t, 3, 1) == pytest.approx(t, abs=0.012)


def test_chance_is_continued_beyond_small_dimensions() -> None:
    y = torch.randn(4000, 300, generator=torch.Generator().manual_seed(1))
    largest = (y / torch.linalg.vector_norm(y, dim=1, keepdim=True)).abs().amax(dim=1)
    for t in (0.15, 0.17, 0.2):
        expected = float((largest < t).double().mean())
        assert chance_below(t, 300, 300) == pytest.approx(expected, abs=0.03)
    assert chance_below(chance_quantile(0.7, 300, 300), 300, 300) == pytest.approx(0.7)
    assert chance_below(chance_quantile(0.7, 30, 30), 30, 30) == pytest.approx(0.7, abs=1e-3)


def test_radius_without_intruders_is_attained_by_gaps() -> None:
    values = torch.tensor([5.0, 4.0, 2.5, 2.4])
    c = math.sqrt(0.375) / (1 + math.sqrt(0.375))
    assert c == pytest.approx(intruder_free_radius(torch.diag(values), k=1))
    assert 0.1 * c == pytest.approx(intruder_free_radius(torch.diag(values), k=3), rel=1e-5)
    assert 0.0 == intruder_free_radius(torch.eye(3)[:, :2], k=3)
    assert 2.4 * c == pytest.approx(intruder_free_radius(torch.tensor([[2.4], [0.0]]), k=1))
    assert math.inf == intruder_free_radius(torch.tensor([[2.4]]))


@pytest.fixture
def model() -> nn.Module:
    """A linear layer, a stack of matrices and a convolution, adapted away from zero."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"fc": nn.Linear(6, 5), "stack": nn.ParameterList([torch.randn(2, 4, 3)])})
    net["conv"] = nn.Conv2d(2, 4, 2)
    net["tied"] = nn.Linear(6, 5)
    net["tied"].weight = net["fc"].weight
    adapt(net, lambda shape: lo.Factored(shape, 1), targets=".*", name="a")
    for parameter in (p for p in net.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return net


def test_model_report_is_that_of_its_matrices(model: nn.Module) -> None:
    base, updates = dict(singular_bases(model)), model_updates(model)
    assert {"fc.weight", "stack.0/0", "stack.0/1", "conv.weight"} == set(base) == set(updates)
    with pytest.warns(SpectralWarning, match="got 4 smaller of 4"):
        report = spectral_report(model, k=3)
    assert isinstance(report, ModelSpectralReport)
    W0 = base_weight(model["conv"]).detach().flatten(1).double()
    W = W0 + updates["conv.weight"].to_dense().double()
    expected = dense_cosines(W0, W, "left", 3)
    np.testing.assert_allclose(expected, report["conv.weight"].cosines, rtol=1e-5)
    assert sum(x.count for x in report.values()) == report.count
    assert 12 == report.looked_at


def test_merged_model_and_cached_bases_give_the_same_report(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)
        expected, bases = spectral_report(model), singular_bases(model)
        merge(model)
        found = [spectral_report(model), spectral_report(bases, model)]
    for report in found:
        for name in expected:
            torch.testing.assert_close(expected[name].cosines, report[name].cosines)


def test_changed_updates_go_back_into_the_model(model: nn.Module) -> None:
    x = torch.randn(3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)
        report = spectral_report(model, threshold=1.0)
    changed = rescale_intruders(model_updates(model), report, factor=0.0, most=None)
    add_updates(model, changed, name="rescaled")
    layer = model["fc"]
    W = base_weight(layer) + changed["fc.weight"].to_dense()
    for name in ("fc", "tied"):
        expected = nn.functional.linear(x, W, model[name].bias)
        torch.testing.assert_close(expected, model[name](x))
    switch(model, "a")
    assert 1 == model_updates(model)["fc.weight"].rank


def test_reports_are_tables() -> None:
    report = spectral_report({"w": with_values(70, 64, STEPS)}, {"w": rank_one(70, 64, 3.0, 2)})
    lines = str(report).splitlines()
    assert ["w", "70", "x", "64", "1", "of", "10"] == lines[1].split()[:7]
    assert lines[-1].startswith("total")
    html = report._repr_html_()
    assert "<td" in html
    assert "1 of 10" in html
    assert "SpectralReport(70 x 64, 1 of 10 intruders, threshold=0.5)" == repr(report["w"])


W64 = with_values(64, 64, STEPS)
OP64 = rank_one(64, 64, 1.0, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectral_report(W64, OP64, k=0), RankError, "k must be at least 1; got k=0"),
        (lambda: spectral_report(W64, OP64, threshold=0.0), OptionError, r"in \(0, 1\]; got 0.0"),
        (lambda: spectral_report(W64, OP64, side="top"), OptionError, "got 'top'"),
        (lambda: spectral_report(W64, OP64, closeness=1.0), OptionError, r"got 1.0"),
        (lambda: spectral_report(W64, OP64.to_dense()[:3]), ShapeError, r"\(64, 64\); got \(3, 64"),
        (lambda: spectral_report(W64[0], OP64), ShapeError, r"got shape \(64,\)"),
        (lambda: spectral_report(W64 * math.nan, OP64), TargetError, "base weight must be finite"),
        (lambda: spectral_report(W64, OP64 * math.inf), TargetError, "update must be finite"),
        (lambda: spectral_report(W64, None), TargetError, "got NoneType"),
        (lambda: spectral_report({"a": W64}, {"b": OP64}), TargetError, r"none for \['b'\]"),
        (lambda: spectral_report({"a": W64}), TargetError, "must be a mapping"),
        (lambda: spectral_report(nn.Linear(3, 3)), AdapterStateError, "adapt"),
        (
            lambda: rescale_intruders(OP64, report_of(W64, OP64), factor=-1.0),
            OptionError,
            "nonnegative; got -1.0",
        ),
        (
            lambda: rescale_intruders(rank_one(3, 3, 1.0, 1), report_of(W64, OP64)),
            TargetError,
            "same matrix",
        ),
        (lambda: rescale_intruders({}, report_of(W64, OP64)), TargetError, "same matrices"),
        (
            lambda: add_updates(nn.Linear(3, 3), {"bias": OP64}, name="x"),
            TargetError,
            r"got \['bias'\]",
        ),
        (
            lambda: add_updates(nn.Linear(3, 3), {"weight": OP64}, name="x"),
            ShapeError,
            r"weight is \(3, 3\)",
        ),
    ],
)
def test_refusals(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # pyright: ignore


def test_stable_rank_is_that_of_the_update() -> None:
    base = torch.diag(torch.linspace(2, 1, 64, dtype=torch.float64))
    update = torch.diag(torch.tensor([2.0, 1.0, 1.0] + [0.0] * 61, dtype=torch.float64))
    report = spectral_report(base, lo.LowRankOperator.from_dense(update, 3))
    assert 1.5 == pytest.approx(report.stable_rank, rel=1e-12)
    assert "1.50" in str(report)
    assert 0.0 == spectral_report(base, 0 * update).stable_rank
