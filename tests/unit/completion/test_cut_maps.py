"""Maps whose rows may lie in several processes: those that say so turn with their rows."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.completion.model.cut_map import CutMap
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.parameterizations.config import subclasses
from tests.completion_cases import observe

SHAPE, RANK = (7, 5), 2
ALIKE = {
    example.name: example.make
    for kind in subclasses(lo.Parameterization)
    if getattr(kind, "alike_rows", "") and kind.__module__.startswith("lowrank_opt.")
    for example in kind.examples()
}


class Alone:
    """A part of one process that has all rows: what it sums and stacks is whole."""

    cut, whole_shape, held = True, SHAPE, (slice(0, SHAPE[0]), slice(0, SHAPE[1]))

    def __init__(self, cut_columns=False):
        self.cut_columns = cut_columns

    def stacked(self, x):
        return x, slice(0, len(x))

    def total(self, x):
        return x

    largest = total


def moved(make, seed: int, structure: str) -> lo.Parameterization:
    module, generator = make(SHAPE, RANK, dtype=torch.float64), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in module.parameters():
            x.copy_(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        rows = module.get_parameter(module.alike_rows)
        rows *= {"zero": 0.0, "small": 1e-3}.get(structure, 1.0)
        if structure == "dependent":
            rows[:, 1] = 2 * rows[:, 0]
    return module


structures = st.sampled_from(["normal", "zero", "small", "dependent"])


@given(name=st.sampled_from(sorted(ALIKE)), seed=st.integers(0, 99), structure=structures)
def test_rows_turn_the_matrix(name: str, seed: int, structure: str):
    module = moved(ALIKE[name], seed, structure)
    rows = module.get_parameter(module.alike_rows)
    Q = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    before = module().to_dense()
    with torch.no_grad():
        rows.copy_(Q @ rows)
    torch.testing.assert_close(module().to_dense(), Q @ before, rtol=1e-9, atol=1e-9)


@given(name=st.sampled_from(sorted(ALIKE)), seed=st.integers(0, 99), structure=structures)
def test_columns_turn_the_matrix(name: str, seed: int, structure: str):
    module = moved(ALIKE[name], seed, structure)
    assume(module.alike_cols)
    cols = module.get_parameter(module.alike_cols)
    Q = torch.linalg.qr(torch.randn(SHAPE[1], SHAPE[1], dtype=torch.float64)).Q
    before = module().to_dense()
    with torch.no_grad():
        cols.copy_(Q @ cols)
    torch.testing.assert_close(module().to_dense(), before @ Q.mT, rtol=1e-9, atol=1e-9)


@given(
    name=st.sampled_from(sorted(ALIKE)),
    seed=st.integers(0, 99),
    structure=structures,
    columns=st.booleans(),
)
def test_matrix_and_gradient_are_those_of_whole_lines(
    name: str, seed: int, structure: str, columns: bool
):
    if name.startswith("RadialBall(radius, "):
        # Norms that have no derivative there.
        assume(structure != "dependent")
    module = moved(ALIKE[name], seed, structure)
    assume(module.alike_cols or not columns)
    weights = torch.randn(SHAPE, dtype=torch.float64)
    observed = observe(weights, 0.9)
    object.__setattr__(observed.pattern, "part", Alone(columns))
    cut, found = CutMap(module, observed), []
    for made in (module, cut):
        op = made()
        found.append([op.to_dense()])
        variables = [*module.parameters()]
        loss = (weights * op.to_dense()).sum()
        found[-1] += torch.autograd.grad(loss, variables, materialize_grads=True)
    assert found[1][0].shape == SHAPE
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-8, atol=1e-8)


def test_other_maps_are_refused_by_name_before_work():
    observed = observe(torch.ones(SHAPE), 0.9)
    object.__setattr__(observed.pattern, "part", Alone())
    traits = Traits(sets=("parameterization",), distributed=True, cut=True)
    frames = lo.CompletionProblem(observed, lo.SVDFrames(SHAPE, RANK, radius=1.0))
    (said,) = traits.misfits(frames)
    assert "alike_rows); got SVDFrames" in said
    ball = lo.CompletionProblem(observed, lo.HomogeneousBall(SHAPE, RANK, radius=1.0))
    assert not [*traits.misfits(ball)]
    a_set = lo.CompletionProblem(observed, ball.feasible_set)
    assert "takes no set where rows are cut; got one" in [*Traits(cut=True).misfits(a_set)]
