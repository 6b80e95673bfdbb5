"""The promise of `Complement`: nothing happens on protected subspaces, whatever the parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, RankError, ShapeError, TargetError
from lowrank_opt.linalg import extend_basis, project_out

KINDS = lo.Factored, lo.NBLoRA, lo.HomogeneousBall, lo.DeLoRA
INNER = {
    **{kind.__name__: next(iter(kind.examples())).make for kind in KINDS},
    "DenseCore": lambda shape, rank, *, dtype: lo.DenseCore(shape, dtype=dtype),
}


@st.composite
def cases(draw):
    """A complement with random subspaces and parameters of any size, and its two bases."""
    m, n = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    a, b = draw(st.integers(0, m - 1)), draw(st.integers(0, n - 1))
    r = draw(st.integers(1, min(m, n)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.integers(-12, 12))

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    Q, P = (normal(s, k) if k else None for s, k in ((m, a), (n, b)))
    inner = INNER[draw(st.sampled_from(sorted(INNER)))]((m, n), r, dtype=dtype)
    for p in inner.parameters():
        p.data = (size * normal(*p.shape)).to(dtype)
    return inner, Q, P, normal


def terms(op):
    """The sum of the norms of the rank-one terms, what rounding is relative to."""
    left, scale, right = (x.double() for x in op)
    return float((left.norm(dim=0) * scale.abs() * right.norm(dim=0)).sum())


def leaks(op, Q, P, normal):
    """By how many units of rounding the update acts on the subspaces; dense, in float64."""
    W = op.to(dtype=torch.float64).to_dense()
    unit = torch.finfo(op.dtype).eps / 2 * max(terms(op), torch.finfo(torch.float32).tiny)
    found = []
    for side, basis in ((W.mT, Q), (W, P)):
        if basis is not None:
            p = basis @ normal(basis.shape[1], 1)
            found.append(float((side @ p).norm() / p.norm()) / unit)
    return max(found, default=0.0)


def stored(module):
    """The bases as they are kept, in float64: what is promised is promised of these."""
    return tuple(None if x is None else x.double() for x in (module.left, module.right))


# A constant of 4 is documented; each row of a factor is rounded once.
PROMISED = 4.0


@given(cases())
@settings(max_examples=150, deadline=None)
def test_protected_inputs_and_outputs_see_nothing(case):
    inner, Q, P, normal = case
    module = lo.Complement(inner, Q, P)
    assert leaks(module().detach(), *stored(module), normal) <= PROMISED


@given(cases())
@settings(max_examples=60, deadline=None)
def test_singular_values_are_no_larger_than_the_inner_ones(case):
    inner, Q, P, _ = case
    module = lo.Complement(inner, Q, P)
    outer, inside = (np.linalg.svd(x().detach().to_dense().double().numpy(), compute_uv=False)
                     for x in (module, inner))  # fmt: skip
    slack = 8 * torch.finfo(module().dtype).eps * max(terms(inner().detach()), 1e-300)
    assert (outer <= inside + slack).all()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_members_are_fixed_points(case):
    inner, Q, P, normal = case
    inner = inner.double()
    module = lo.Complement(inner, Q, P)
    g = torch.Generator().manual_seed(0)
    member = module.feasible_set.sample(module.shape, generator=g, dtype=torch.float64)
    got = module.assign(member)().detach().to_dense()
    torch.testing.assert_close(got, member.to_dense(), rtol=1e-9, atol=1e-11)
    assert leaks(member, *stored(module), normal) <= 64


class OnePass(lo.Complement):
    """Planted: projected once, in the dtype of the factors."""

    def factors(self):
        left, scale, right = self.inner.factors()
        out = [x if Q is None else x - Q.to(x) @ (Q.to(x).mT @ x)
               for x, Q in ((left, self.left), (right, self.right))]  # fmt: skip
        return lo.LowRankOperator(out[0], scale, out[1])


class OneSide(lo.Complement):
    """Planted: outputs are free."""

    def factors(self):
        left, scale, right = self.inner.factors()
        right = project_out(right.double(), self.right).to(right.dtype)
        return lo.LowRankOperator(left, scale, right)


@pytest.mark.parametrize("broken", [OnePass, OneSide])
def test_planted_defects_break_the_promise(broken):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inner = lo.Factored((400, 300), 2, dtype=torch.float32)
    Q, P = (normal(s, 200) for s in inner.shape)
    # Nearly inside the subspace: what one pass leaves is relative to what was there.
    inner.left.data = (Q @ normal(200, 2)).float() + 1e-3 * normal(400, 2).float()
    inner.right.data = (P @ normal(200, 2)).float() + 1e-3 * normal(300, 2).float()
    sound, planted = (x(inner, Q, P) for x in (lo.Complement, broken))
    assert leaks(sound().detach(), *stored(sound), normal) <= PROMISED
    assert leaks(planted().detach(), *stored(planted), normal) > 10 * PROMISED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_promise_survives_a_change_of_dtype(dtype):
    g = torch.Generator().manual_seed(0)
    P = torch.randn(7, 3, generator=g, dtype=torch.float64)
    module = lo.Complement(lo.Factored((5, 7), 2, dtype=torch.float64), right=P)
    torch.nn.init.normal_(module.inner.left, generator=g)
    module = module.to(dtype)
    p = module.right.double()
    unit = torch.finfo(dtype).eps * terms(module().detach())
    W = module().detach().to(dtype=torch.float64)
    assert float((W @ p).norm()) <= PROMISED * unit
    Q = module.right.double()
    deviation = float((Q.mT @ Q - torch.eye(3, dtype=torch.float64)).norm())
    assert deviation <= 16 * torch.finfo(module.right.dtype).eps


def test_gradient_of_a_zero_start_is_the_projected_one():
    g = torch.Generator().manual_seed(0)
    G, P = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 7), (7, 3)))
    module = lo.Complement(lo.Factored((5, 7), 2, dtype=torch.float64), right=P)
    (module().to_dense() * G).sum().backward()
    basis = torch.linalg.qr(P).Q
    kept = G - G @ basis @ basis.mT
    torch.testing.assert_close(module.inner.left.grad, kept @ module.inner.right.detach())


def test_basis_grows_and_keeps_what_it_had():
    g = torch.Generator().manual_seed(0)
    first = extend_basis(None, torch.randn(9, 2, generator=g, dtype=torch.float64))
    new = torch.cat((first @ torch.ones(2, 1).double(), torch.randn(9, 2, generator=g).double()), 1)
    grown = extend_basis(first, new)
    assert (9, 4) == tuple(grown.shape)
    assert torch.equal(first, grown[:, :2])
    torch.testing.assert_close(grown.mT @ grown, torch.eye(4).double(), rtol=0, atol=1e-14)
    assert float(project_out(new, grown).norm()) < 1e-13


def test_rank_falls_where_a_subspace_leaves_less_room():
    g = torch.Generator().manual_seed(0)
    P = torch.randn(6, 4, generator=g, dtype=torch.float64)
    module = lo.Complement(lo.NBLoRA((5, 6), 3, radius=1.0, dtype=torch.float64), right=P)
    assert (2, 2) == (module.rank, module.feasible_set.rank)
    member = module.feasible_set.sample((5, 6), generator=g, dtype=torch.float64)
    assert module.residual(member) > 0
    assert module.assign(member).residual(member) < 1e-12


@pytest.mark.parametrize("sparse", [False, True])
def test_lmo_is_the_best_member(sparse):
    g = torch.Generator().manual_seed(0)
    G = torch.randn(12, 11, generator=g, dtype=torch.float64)
    Q, P = (
        torch.linalg.qr(torch.randn(s, 3, generator=g, dtype=torch.float64)).Q for s in (12, 11)
    )
    ball = lo.ComplementSet(lo.SchattenBall(1, 2.0, 2), Q, P)
    W = ball.lmo(G.to_sparse() if sparse else G)
    kept = G - Q @ (Q.mT @ G)
    kept = kept - kept @ P @ P.mT
    expected = -2.0 * float(torch.linalg.svdvals(kept)[0])
    assert expected == pytest.approx(float((W.to_dense() * G).sum()), rel=1e-10)
    assert ball.contains(W)


def test_lmo_of_a_sparse_gradient_that_vanishes_outside_is_a_member():
    ball = lo.ComplementSet(lo.SchattenBall(1, 2.0, 2), None, torch.eye(11, 3).double())
    G = torch.zeros(12, 11).double()
    G[:, 0] = 1.0
    assert ball.contains(ball.lmo(G.to_sparse()))


def test_members_outside_are_refused_and_projected():
    P = torch.eye(4, 2, dtype=torch.float64)
    module = lo.Complement(lo.HomogeneousBall((3, 4), 2, radius=1.0, dtype=torch.float64), right=P)
    target = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(NotInSetError, match="the target must be in ComplementSet"):
        module.assign(target)
    got = module.assign(target, project=True)().to_dense()
    assert 0.0 == float(got[:, :2].detach().abs().max())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"right": torch.eye(3, 1)}, ShapeError, r"right must have 4 rows, .* got \(3, 1\)"),
        ({"left": torch.eye(3)}, RankError, "left must leave a direction of 3"),
        ({"left": torch.full((3, 1), torch.nan)}, TargetError, "left must be finite"),
    ],
)
def test_bad_subspaces_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        lo.Complement(lo.Factored((3, 4), 1), **options)


def test_inner_sets_that_projections_do_not_keep_are_refused():
    inner = lo.Weighted(lo.HomogeneousBall((3, 4), 1, radius=1.0), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(OptionError, match="a complement needs a set that depends on singular"):
        lo.Complement(inner, right=torch.eye(4, 1))


def test_published_subspaces():
    g = torch.Generator().manual_seed(0)
    W0 = torch.randn(6, 5, generator=g, dtype=torch.float64)
    x = torch.randn(40, 2, generator=g).double() @ torch.randn(2, 5, generator=g).double()

    def inner():
        made = lo.Factored((6, 5), 2, dtype=torch.float64)
        torch.nn.init.normal_(made.left, generator=g)
        return made

    U, _, Vh = torch.linalg.svd(W0)
    W = lo.oplora(inner(), W0, keep=2)().to_dense().detach()
    assert max(float((U[:, :2].mT @ W).norm()), float((W @ Vh[:2].mT).norm())) < 1e-14
    full = lo.osf(W0, keep=2)
    torch.nn.init.ones_(full.inner.matrix)
    W = full().to_dense().detach()
    assert max(float((U[:, :2].mT @ W).norm()), float((W @ Vh[:2].mT).norm())) < 1e-13
    first, second = inner()().detach(), None
    second = lo.o_lora(inner(), [first])().detach()
    assert float((first.to_dense() @ second.to_dense().mT).norm()) < 1e-13
    assert float(lo.inf_lora(inner(), [x])().linear(x).detach().norm()) < 1e-12
    null = lo.lora_null(inner(), x, keep=2)()
    assert float(null.linear(x).detach().norm()) < 1e-12
    random = lo.clora(inner(), keep=3, generator=g)
    assert float((random() @ random.right).detach().norm()) < 1e-14
    assert float((random().mT @ random.left).detach().norm()) < 1e-14


@pytest.mark.parametrize("kind", [lo.ComplementSet, lo.WeightedSet])
def test_sets_without_sides_are_the_inner_ones(kind):
    ball = lo.SchattenBall(1, 2.0, 2)
    assert 2 == kind(ball, None, None).rank
