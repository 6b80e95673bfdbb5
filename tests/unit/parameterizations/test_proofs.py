"""Proofs that others can check: against fifty digits, against tampering, and on their own."""

import ast
import copy
import json
import math
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import lowrank_opt as lo
import lowrank_opt.check_certificate as checker
from lowrank_opt.errors import CertificateError
from lowrank_opt.parameterizations.certificate import certify
from tests.oracles import normal
from tests.unit.parameterizations.test_certificate import exact_singular_values

D, INF = torch.float64, math.inf
SETS = {
    "spectral": lo.SchattenBall(INF, 0.7, 3),
    "Frobenius": lo.SchattenBall(2, 0.7, 3),
    "nuclear": lo.SchattenBall(1, 0.7, 3),
    "Schatten 3": lo.SchattenBall(3, 0.7, 3),
    "Schatten 3/2": lo.SchattenBall(1.5, 0.7, 3),
    "Ky Fan": lo.KyFanBall(2, 0.7, 3),
    "box": lo.SingularValueBox([0.7, 0.3, 0.1]),
}
every_set = pytest.mark.parametrize("feasible", SETS.values(), ids=SETS)


def member(feasible, dtype=torch.float32, push=10.0, seed=0):
    op = lo.LowRankOperator(
        normal(6, 3, seed=seed), torch.ones(3, dtype=D), normal(5, 3, seed=seed + 1)
    )
    return feasible.project(push * op).to(dtype=dtype)


def norm_of(feasible, values):
    """The excess of exact singular values, in fifty digits."""
    if isinstance(feasible, lo.SingularValueBox):
        return max(v - b for v, b in zip(values, feasible.bounds, strict=False))
    if isinstance(feasible, lo.KyFanBall):
        return sum(values[: feasible.k]) - feasible.radius
    if math.isinf(feasible.p):
        return values[0] - feasible.radius
    return sum(v**feasible.p for v in values) ** (1 / feasible.p) - feasible.radius


@every_set
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D], ids=str)
@pytest.mark.parametrize("push", [1e-3, 10.0])
def test_proved_bounds_are_above_the_truth_and_near(feasible, dtype, push):
    op = member(feasible, dtype, push)
    certificate, values = certify(op, feasible, exact=True), exact_singular_values(op)
    noise = mpmath.mpf(10) ** -45
    assert all(a >= b - noise for a, b in zip(certificate.singular_values, values, strict=False))
    assert (
        0
        <= certificate.excess - norm_of(feasible, values)
        <= 1e-13 + 0.7 * (push < 1) * (isinstance(feasible, lo.SingularValueBox))
    )


@every_set
def test_membership_is_proved_of_members_only(feasible):
    inside, outside = member(feasible) * (1 - 1e-6), member(feasible) * (1 + 1e-6)
    assert certify(inside, feasible, exact=True).exact
    assert not certify(outside, feasible, exact=True).exact


def test_a_bound_that_is_attained_is_proved_without_a_margin():
    eye = torch.eye(4, 2, dtype=D)
    op = lo.LowRankOperator(eye, torch.tensor([0.7, 0.3], dtype=D), eye)
    for feasible in (SETS["spectral"], lo.SchattenBall(2, 0.8, 2), lo.SingularValueBox([0.7, 0.3])):
        assert certify(op, feasible, exact=True).exact


def test_rank_is_proved_where_columns_exceed_it():
    left, right = normal(6, 2), normal(5, 2)
    twice = lo.LowRankOperator(
        torch.cat((left, left), 1), torch.full((4,), 0.01, dtype=D), torch.cat((right, right), 1)
    )
    assert certify(twice, lo.SchattenBall(INF, 1.0, 2), exact=True).exact
    assert not certify(twice, lo.SchattenBall(INF, 1.0, 1), exact=True).exact


def test_weights_are_part_of_the_proof():
    rows, cols = torch.linspace(0.3, 2, 6, dtype=D), torch.linspace(3, 1, 5, dtype=D)
    feasible = lo.WeightedSchattenBall(p=1, radius=0.7, rank=3, row_weights=rows, col_weights=cols)
    op = feasible.project(lo.LowRankOperator.from_dense(10 * normal(6, 5), 3)).to(
        dtype=torch.float32
    )
    certificate = certify(op, feasible, exact=True)
    truth = sum(exact_singular_values(op, rows, cols)) - 0.7
    assert 0 <= certificate.excess - truth <= 1e-13


def test_layers_are_certified_through_their_own_method(tmp_path):
    layer = lo.NBLoRA((6, 4), 2, radius=0.7).assign(10 * normal(6, 4).float(), project=True)
    layer.certify(exact=True).save(tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    checker.check(document)
    assert exact_singular_values(layer())[0] <= float.fromhex(document["claim"]["bound"])


@pytest.mark.parametrize("triple", [(1e-310, 1e300, 1e10), (1e300, 1e-300, 1e-10)])
def test_extreme_factors_are_exact(triple):
    op = lo.LowRankOperator(
        *(torch.tensor(x, dtype=D) for x in ([[triple[0]]], [triple[1]], [[triple[2]]]))
    )
    exact = Fraction(triple[0]) * Fraction(triple[1]) * Fraction(triple[2])
    found = certify(op, lo.SchattenBall(INF, 1.0, 1), exact=True).singular_values[0]
    assert exact <= Fraction(found) <= exact * Fraction(1 + 1e-12)


REFUSED = {
    "another kind": (lo.RankAtMost(3), "exact proofs are for"),
    "order": (lo.SchattenBall(1.1, 1.0, 3), "fractions with a denominator"),
}


@pytest.mark.parametrize(("feasible", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_proved_is_refused(feasible, message):
    with pytest.raises(CertificateError, match=message):
        certify(member(SETS["spectral"]), feasible, exact=True)


def test_too_many_columns_are_refused():
    op = lo.LowRankOperator(normal(120, 100), torch.ones(100, dtype=D), normal(110, 100))
    with pytest.raises(CertificateError, match="at most 96 columns; got 100"):
        certify(op, lo.SchattenBall(INF, 1.0, 100), exact=True)


def test_a_certificate_without_a_proof_is_not_saved(tmp_path):
    with pytest.raises(CertificateError, match=r"certify\(exact=True\)"):
        certify(member(SETS["spectral"]), SETS["spectral"]).save(tmp_path / "c.json")


def symmetric(kind, size, seed):
    rng = np.random.default_rng(seed)
    A = rng.integers(-5, 6, (size, size))
    A = A + A.T
    if kind == "hollow":
        np.fill_diagonal(A, 0)
    if kind == "singular":
        B = rng.integers(-3, 4, (size, max(1, size // 2)))
        A = B @ np.diag(rng.choice([-1, 1], B.shape[1])) @ B.T
    return A


@pytest.mark.parametrize("kind", ["any", "hollow", "singular"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(6))
def test_inertia_is_that_of_the_eigenvalues(kind, size, seed):
    A = symmetric(kind, size, seed)
    expected = int((np.linalg.eigvalsh(A) < -1e-9).sum())
    assert expected == checker.negatives([[Fraction(int(x)) for x in row] for row in A])


def fitted(model, bias=None, **options):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(7, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    index = torch.randperm(42, generator=generator)[:30]
    observations = lo.Observations(index // 6, index % 6, W.flatten()[index], (7, 6))
    return lo.complete(observations, model, bias=bias, **options)


FITS = {
    "nuclear ball": lambda: fitted(lo.HomogeneousBall((7, 6), 3, radius=6.0, dtype=D)),
    "with biases": lambda: fitted(lo.HomogeneousBall((7, 6), 3, radius=2.0), "additive"),
    "penalty": lambda: fitted(lo.Factored((7, 6), 6, dtype=D), penalty=0.5),
    "Frobenius": lambda: fitted(lo.HomogeneousBall((7, 6), 3, radius=2.0, p=2)),
    "weighted": lambda: fitted(
        lo.Weighted(lo.HomogeneousBall((7, 6), 3, radius=6.0), torch.linspace(0.5, 1, 7))
    ),
}
every_fit = pytest.mark.parametrize("make", FITS.values(), ids=FITS)


@every_fit
def test_optima_are_proved_and_agree_with_float64(make):
    result = make()
    proved, computed = result.certificate(exact=True), result.certificate()
    checker.check(json.loads(json.dumps(proved.document)))
    assert proved.objective == pytest.approx(computed.objective, rel=1e-9)
    assert proved.objective <= computed.objective
    assert proved.lower_bound <= computed.objective


@pytest.mark.parametrize("name", ["nuclear ball", "with biases", "penalty", "weighted"])
def test_exact_lower_bounds_are_as_tight(name):
    result = FITS[name]()
    proved, computed = result.certificate(exact=True), result.certificate()
    assert proved.lower_bound == pytest.approx(computed.lower_bound, rel=1e-7)


def test_other_sets_have_no_proof_of_optimality():
    result = fitted(lo.NBLoRA((7, 6), 3, radius=1.0))
    with pytest.raises(CertificateError, match="nuclear and Frobenius balls"):
        result.certificate(exact=True)


DOCUMENTS = {
    **{
        f"norm {k}": lambda s=s: certify(member(s), s, exact=True).document for k, s in SETS.items()
    },
    **{f"optimum {k}": lambda m=m: m().certificate(exact=True).document for k, m in FITS.items()},
}
every_document = pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)


def leaves(x, path=()):
    """The paths of all numbers and texts of a document."""
    if isinstance(x, dict | list):
        pairs = x.items() if isinstance(x, dict) else enumerate(x)
        return [p for k, v in pairs for p in leaves(v, (*path, k))]
    return [path]


def changed(document, path, change):
    document = copy.deepcopy(dict(document))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = change(place[path[-1]])
    return document


def bumped(x):
    """Another number, or another text, of the same kind: the least change."""
    if isinstance(x, str) and "0x" in x:
        return math.nextafter(float.fromhex(x), INF).hex()
    return x + 1 if isinstance(x, int) else x + " "


def is_refused(document):
    try:
        checker.check(document)
    except checker.RefusedError:
        return True
    return False


@every_document
def test_any_number_changed_is_refused(make):
    document = make()
    assert not is_refused(document)
    assert all(is_refused(changed(document, path, bumped)) for path in leaves(document))


def forged(document, path, change):
    """A change by someone who writes the digest anew."""
    document = changed(document, path, change)
    return document | {"digest": checker.digest(document)}


def scaled(factor):
    return lambda x: (factor * float.fromhex(x)).hex()


def at(name):
    return lambda document: [p for p in leaves(document) if p[: len(name)] == name]


TIGHTER = {
    "claim": (at(("claim", "bound")), scaled(1 - 1e-9)),
    "witness": (at(("values",)), scaled(1 - 1e-9)),
    "scale": (at(("scale",)), scaled(1.5)),
    "left": (at(("left",)), scaled(-1.5)),
}


@pytest.mark.parametrize("name", ["spectral", "nuclear", "Schatten 3", "Schatten 3/2", "Ky Fan"])
@pytest.mark.parametrize(("where", "change"), TIGHTER.values(), ids=TIGHTER)
def test_forged_norms_are_refused(name, where, change):
    # Of the least sigma a Ky Fan norm says nothing: all numbers of the kind are changed at once.
    document = DOCUMENTS[f"norm {name}"]()
    for path in where(document):
        document = forged(document, path, change)
    assert is_refused(document)


@pytest.mark.parametrize("name", ["Frobenius", "box"])
def test_forged_bounds_are_refused(name):
    document = DOCUMENTS[f"norm {name}"]()
    for path in at(("claim", "bound"))(document):
        document = forged(document, path, scaled(1 - 1e-6))
    assert is_refused(document)


FORGERIES = {
    "objective": (at(("claim", "objective")), scaled(1 - 1e-12)),
    "lower bound": (at(("claim", "lower_bound")), scaled(1 + 1e-9)),
    "multipliers": (at(("dual",)), scaled(1.01)),
    "signs": (at(("dual",)), scaled(-1.0)),
    "top": (at(("top", "bound")), scaled(1 - 1e-6)),
    "ratings": (at(("ratings",)), scaled(0.99)),
}


@pytest.mark.parametrize("fit", ["nuclear ball", "with biases", "penalty", "weighted"])
@pytest.mark.parametrize(("where", "change"), FORGERIES.values(), ids=FORGERIES)
def test_forged_optima_are_refused(fit, where, change):
    document = DOCUMENTS[f"optimum {fit}"]()
    for path in where(document):
        document = forged(document, path, change)
    assert is_refused(document)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"kind": "norm"}', "null"])
def test_what_is_no_certificate_is_refused(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    assert 1 == run(Path(checker.__file__), tmp_path / "c.json").returncode


def run(script, file):
    # Isolated: neither this repository nor any installed package can be imported.
    return subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_checker_runs_alone(tmp_path):
    shutil.copy(checker.__file__, tmp_path / "alone.py")
    certify(member(SETS["nuclear"]), SETS["nuclear"], exact=True).save(tmp_path / "c.json")
    done = run(tmp_path / "alone.py", tmp_path / "c.json")
    assert (0, "proved") == (done.returncode, done.stdout[:6])
    text = (tmp_path / "c.json").read_text().replace("0x1", "0x2", 1)
    (tmp_path / "c.json").write_text(text)
    assert (1, "refused") == (
        (bad := run(tmp_path / "alone.py", tmp_path / "c.json")).returncode,
        bad.stderr[:7],
    )


def test_the_checker_is_one_short_file_of_the_standard_library():
    source = Path(checker.__file__).read_text()
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= set(sys.stdlib_module_names)
    assert len(source.splitlines()) < 200
