"""What each process of the tests of `lowrank_opt.distributed` computes, and leaves in a file."""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import lowrank_opt as lo
from lowrank_opt import distributed
from lowrank_opt.completion.bayes.lines import Lines
from lowrank_opt.completion.certificates import spectral_bounds
from lowrank_opt.completion.certificates.at_rank import gap_at_rank
from lowrank_opt.completion.certificates.certificate import certify_completion
from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.loop.checkpoint import Checkpoint
from lowrank_opt.completion.model.cut_map import CutMap
from lowrank_opt.distributed.digest import checksum
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.errors import RankError
from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.kernels.parts import gaussian_rows, row_problems
from lowrank_opt.observations import Observations
from lowrank_opt.solvers import ALS, LBFGS, FirstOrder, Gibbs, Variational
from tests.forks import forked
from tests.unit import distributed_columns, distributed_shares

SHAPE = (23, 17)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def observed() -> Observations:
    (m, n), cells = SHAPE, torch.randperm(23 * 17, generator=seeded(1))[:220].sort().values
    truth = normal(m, 2) @ normal(2, n, seed=1)
    values = truth[cells // n, cells % n] + 0.1 * normal(220, seed=2)
    return Observations(cells // n, cells % n, values, SHAPE, normal(220, seed=3).abs() + 0.1)


def plain_steps(variables: list[Tensor]) -> torch.optim.Optimizer:
    # Adam divides gradients that are rounding by themselves.
    return torch.optim.SGD(variables, lr=1e-3)


def momentum(variables: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(variables, lr=1e-3, momentum=0.9)


def maps() -> dict[str, lo.Parameterization]:
    given = {"dtype": torch.float64, "generator": seeded()}
    return {
        "homogeneous": lo.HomogeneousBall(SHAPE, 2, radius=30.0, **given),
        "nb_lora": lo.NBLoRA(SHAPE, 2, radius=30.0, p=1, **given),
        "radial": lo.RadialBall(SHAPE, 2, radius=30.0, norm=1, **given),
        "simplex": lo.SimplexRankOnes(SHAPE, 2, radius=30.0, **given),
        "spectral_lora": lo.SpectralLoRA(SHAPE, 2, radius=9.0, **given),
        "svd_frames": lo.SVDFrames(SHAPE, 2, radius=9.0, **given),
        "contractions": lo.Contractions(SHAPE, 2, radius=9.0, **given),
        "factored": lo.Factored(SHAPE, 2, **given),
    }


def fits(part: Observations) -> dict[str, Tensor]:
    """Fit with every solver that says it can, every map, and losses that are not squares."""
    plan = {
        "als": lambda: lo.complete(part, 2, solver=ALS(), penalty=0.5, generator=seeded()),
        "als_rows": lambda: lo.complete(
            part, 2, solver=ALS(), penalty=0.5, bias=None, generator=seeded()
        ),
        "als_cg": lambda: lo.complete(
            part, 2, solver=ALS(method="cg", max_iterations=4), penalty=0.5, generator=seeded()
        ),
        "als_nonnegative": lambda: lo.complete(
            part,
            2,
            solver=ALS(nonnegative=True, max_iterations=4),
            penalty=0.5,
            generator=seeded(),
        ),
        "variational": lambda: lo.complete(
            part, 2, solver=Variational(max_iterations=5), generator=seeded()
        ),
        "gibbs": lambda: lo.complete(
            part, 2, solver=Gibbs(burn_in=1, samples=2), generator=seeded()
        ),
    }
    for name, chart in maps().items():
        plan[name] = lambda chart=chart: lo.complete(part, chart, solver=LBFGS(max_iterations=6))
    labels = {"logistic": (part.values > 0).double(), "ordered_probit": part.values.round()}
    for loss in ("absolute", "logistic", "ordered_probit"):
        values = labels.get(loss, part.values)
        plan[loss] = lambda loss=loss, values=values: lo.complete(
            part.with_values(values),
            maps()["homogeneous"],
            solver=FirstOrder(plain_steps, max_iterations=4),
            loss=loss,
        )
    i, j = torch.arange(SHAPE[0]).unsqueeze(1), torch.arange(SHAPE[1])
    found = {}
    for name, fit in plan.items():
        result = fit()
        found[name] = result.predict(i, j).double()
        found[f"{name}.objective"] = torch.tensor(result.history.objective, dtype=torch.float64)
    return found


def held(part: Observations) -> dict[str, Tensor]:
    """Hold a share of the entries out; which ones depends on the generator, not on processes."""
    fit = lo.complete(
        part, 2, solver=ALS(max_iterations=4), penalty=0.5, validation=0.25, generator=seeded()
    )
    return {
        "held": torch.tensor(fit.history.validation_rmse, dtype=torch.float64),
        "held.fit": fit.to_dense(),
    }


def cut(part: Observations) -> dict[str, Tensor]:
    """Fit with rows that are cut, columns a few at a time; on whole rows with entries of one."""
    plan = {
        "als": ALS(max_iterations=6, gap=None),
        "als_rows": ALS(max_iterations=6, gap=None),
        "als_cg": ALS(method="cg", max_iterations=4, gap=None),
        "als_nonnegative": ALS(nonnegative=True, max_iterations=4),
        "variational": Variational(max_iterations=9),
        "gibbs": Gibbs(burn_in=1, samples=3),
    }
    models = {"variational": 9}
    for name, chart in maps().items():
        if chart.alike_rows:
            models[name], plan[name] = _own(chart, part), LBFGS(max_iterations=4)
    models["first_order"] = _own(maps()["nb_lora"], part)
    plan["first_order"] = FirstOrder(plain_steps, max_iterations=4)
    if part.part is not None:
        plan["held"] = ALS(max_iterations=4)
    blocks = [] if part.part is None else part.part.blocks(part, 1)
    rows = [len(x.entries.row_counts) for x in blocks if x.entries is not None]
    found = {"cut.rows_of_blocks": torch.tensor(rows)} if blocks else {}
    for name, solver in plan.items():
        result = lo.complete(
            part,
            models.get(name, 2),
            solver=solver,
            penalty=0.5 if solver.traits.penalty == "needed" or name == "factored" else 0.0,
            bias=None if name == "als_rows" else "additive",
            validation=0.25 if name == "held" else None,
            generator=seeded(),
        )
        objective = torch.tensor(result.history.objective, dtype=torch.float64)
        found |= {
            f"cut.{name}": distributed_columns.joined(result, part),
            f"cut.{name}.objective": objective,
        }
        if name == "als":
            found |= bounds_of(result, part)
    return found


def _own(chart: lo.Parameterization, part: Observations) -> lo.Parameterization:
    return chart if part.part is None else distributed.own_map(chart, part)


def bounds_of(result: object, part: Observations) -> dict[str, Tensor]:
    """Return bounds on the optimum: by the Gram matrix, and by starts from unequal seeds."""
    certificate = result.certificate()
    found = {"cut.bound": torch.tensor(certificate.lower_bound, dtype=torch.float64)}
    if part.part is not None:
        torch.manual_seed(dist.get_rank())
        with mock.patch.object(spectral_bounds, "GRAM_LIMIT", 4):
            loose = result.certificate()
        numbers = [certificate.objective, loose.lower_bound]
        found["cut.bounds"] = torch.tensor(numbers, dtype=torch.float64)
    return found


def certificates(part: Observations) -> dict[str, Tensor]:
    """Certify a penalty and a ball on a wide matrix, by its Gram matrix and by random starts."""
    found = {}
    als = lo.complete(part, 2, solver=ALS(max_iterations=4), penalty=0.5, generator=seeded())
    ball = lo.HomogeneousBall(part.shape, 3, radius=3.0, dtype=torch.float64, generator=seeded())
    weights = (torch.linspace(0.5, 2, size).double() for size in part.shape)
    constraints = {
        "penalty": 0.5,
        "ball": lo.SchattenBall(2, 9.0, 5),
        "weighted": lo.Weighted(ball, *weights).feasible_set,
        "shifted": lo.Offset(ball, minus_initial=True).feasible_set,
    }
    for name, constraint in constraints.items():
        for bias_penalty in (None, 1.0):
            problem = ConvexProblem(part, constraint, bias_penalty)
            bound = certify_completion(problem, als.operator, als.bias)
            numbers = [bound.objective, bound.lower_bound]
            with mock.patch.object(spectral_bounds, "GRAM_LIMIT", 4):
                bound = certify_completion(problem, als.operator, als.bias, generator=seeded())
            numbers += [bound.lower_bound, bound.failure_probability]
            at_rank = gap_at_rank(problem, als.operator, als.bias)
            found[f"{name}.{bias_penalty}"] = torch.tensor(
                [*numbers, at_rank.amount], dtype=torch.float64
            )
    return found


def turned(obs: Observations) -> Observations:
    return Observations(obs.cols, obs.rows, obs.values, SHAPE[::-1], obs.weights)


def proofs(part: Observations) -> dict[str, Tensor]:
    chart = maps()["homogeneous"]
    result = lo.complete(part, chart, solver=LBFGS())
    certificate = result.certificate()
    return {
        "proof": normal(0).new_tensor([certificate.objective, certificate.lower_bound]),
        "proved": torch.tensor(float(result.status.name == "CONVERGED")),
    }


def counts() -> dict[str, Tensor]:
    """Return bytes that this process sends for one evaluation and one half sweep of each side."""
    processes = Processes()
    part = distributed.split_rows(observed(), processes)
    factors = (normal(23, 2), normal(2), normal(17, 2))
    op = lo.LowRankOperator(*(x.requires_grad_() for x in factors))
    found = {}
    processes.sent.clear()
    lo.kernels.observed_squared_loss(op, part).backward()
    found["bytes.gradient"] = torch.tensor(sum(processes.sent.values()))
    problems = row_problems(part, torch.float64)
    for side, size, other in ((0, 23, 17), (1, 17, 23)):
        processes.sent.clear()
        x, features = normal(size, 3), normal(other, 3)
        given = {"precision": torch.eye(3).double(), "strengths": torch.ones(size).double()}
        problems[side].solve(x, features, features[:, 0].clone(), **given)
        found[f"bytes.half_sweep.{side}"] = torch.tensor(sum(processes.sent.values()))
    apart = distributed.cut_rows(part)
    problems = row_problems(apart, torch.float64)
    for side, size, other in ((0, len(apart.row_counts), 17), (1, 17, len(apart.row_counts))):
        processes.sent.clear()
        given = {"precision": torch.eye(3).double(), "strengths": torch.ones(size).double()}
        features = normal(other, 3)
        problems[side].solve(normal(size, 3), features, features[:, 0].clone(), **given)
        found[f"bytes.cut.{side}"] = torch.tensor(sum(processes.sent.values()))
    cut_map = CutMap(distributed.own_map(maps()["radial"], apart), apart)
    processes.sent.clear()
    lo.kernels.observed_squared_loss(cut_map(), apart).backward()
    found["bytes.cut.gradient"] = torch.tensor(sum(processes.sent.values()))
    problems = gaussian_rows(apart, torch.float32)
    sides = [Moments.of(normal(k, 2).float(), normal(k).float()) for k in apart.shape]
    for side, lines in enumerate(Lines(apart, k, np.random.default_rng(0)) for k in (0, 1)):
        processes.sent.clear()
        size, other = apart.shape[side], apart.shape[1 - side]
        given = {"precision": torch.eye(3).double(), "scales": torch.ones(size).double()}
        given |= {"pull": torch.zeros(size, 3).double(), "noise": torch.zeros(size, 3)}
        given |= {"multipliers": torch.ones(other).double()}
        problems[side].draw(sides[side], sides[1 - side], **given)
        lines.total(np.zeros((4, 3)))
        found[f"bytes.draw.{side}"] = torch.tensor(sum(processes.sent.values()))
    problem = ConvexProblem(part, 0.5, 1.0)
    bias = lo.completion.AdditiveBias(0.0, factors[0][:, 0].detach(), factors[2][:, 0].detach())
    processes.sent.clear()
    certify_completion(problem, op, bias)
    found["bytes.certificate.sums"] = torch.tensor(processes.sent["sum"])
    found["bytes.certificate.entries"] = torch.tensor(processes.sent["exchange"])
    found["bytes.certificate"] = torch.tensor(sum(processes.sent.values()))
    return found


def operations() -> dict[str, Tensor]:
    """Count what torch multiplies in a half sweep of each side, where nothing is padded."""
    m, n, K = 24, 16, 3
    i, j = (torch.ones(m, n).cumsum(0) + torch.arange(n)).remainder(2).nonzero().T
    part = distributed.split_rows(Observations(i, j, normal(len(i)), (m, n)))
    problems, found = row_problems(part, torch.float64), {}
    for side, size, other in ((0, m, n), (1, n, m)):
        given = {"precision": torch.eye(K).double(), "strengths": torch.ones(size).double()}
        x, features = normal(size, K), normal(other, K)
        with lo.kernels.use_backend("torch"), FlopCounterMode(display=False) as counter:
            problems[side].solve(x, features, features[:, 0].clone(), **given)
        found[f"operations.{side}"] = torch.tensor(counter.get_total_flops())
    return found


def exchanged() -> dict[str, Tensor]:
    """Deal entries out by their number, and bring each to the process of its row."""
    obs, processes = observed(), Processes()
    mine = torch.arange(len(obs)) % processes.size == processes.rank
    parts = (x[mine] for x in (obs.rows, obs.cols, obs.values))
    part = distributed.own_rows(*parts, SHAPE, obs.weights[mine], processes=processes)
    whole = distributed.gather_observations(part)
    dense = torch.zeros(SHAPE, dtype=torch.float64)
    dense[whole.rows, whole.cols] = whole.values
    span = part.part.spans[0]
    assert bool(((part.rows >= span.start) & (part.rows < span.stop)).all())
    assert torch.equal(obs.row_counts, part.row_counts)
    assert torch.equal(obs.col_counts, part.col_counts)
    return {"whole": dense, "checksum": torch.tensor(checksum(part))}


def unequal_randomness() -> dict[str, Tensor]:
    """Start every process from another seed: those of the first one count."""
    torch.manual_seed(dist.get_rank())
    part = distributed.split_rows(observed())
    result = distributed.complete(part, 2, solver="als", penalty=0.5)
    chart = lo.HomogeneousBall(SHAPE, 2, radius=30.0, dtype=torch.float64)
    fit = distributed.complete(part, chart, solver=LBFGS(max_iterations=3))
    return {"agreed": result.to_dense(), "agreed.map": fit.to_dense()}


def too_few_rows() -> dict[str, Tensor]:
    """What is refused where one process has one row, and the others more."""
    obs = Observations([0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 2, 0], torch.ones(7), (5, 3))
    part = distributed.cut_rows(distributed.split_rows(obs))
    try:
        distributed.own_map(lo.Factored(obs.shape, 3), part)
    except RankError:
        return {"refused": torch.ones(1), "rows": torch.tensor(part.shape[0])}
    return {"refused": torch.zeros(1)}


def checkpoints(folder: Path, step: str) -> dict[str, Tensor]:
    """Go some iterations and leave a checkpoint, or go on from it."""
    part, resume = distributed.split_rows(observed()), step == "on"
    store = distributed.SharedStore()
    most, found = {"first": 4, "on": 8, "whole": 8}[step], {}
    for name, solver, model in (
        ("variational", Variational(max_iterations=most), 2),
        ("lbfgs", LBFGS(max_iterations=most), maps()["homogeneous"]),
        ("als", ALS(max_iterations=most), 2),
        ("columns.als", ALS(max_iterations=most), 2),
        ("cut.gibbs", Gibbs(burn_in=1, samples=most - 1), 2),
        ("columns.lbfgs", LBFGS(max_iterations=most), maps()["homogeneous"]),
        ("cut.momentum", FirstOrder(momentum, max_iterations=most), maps()["radial"]),
    ):
        kept = None
        if step != "whole":
            kept = Checkpoint(folder / name, every=2, resume=resume, store=store)
        cuts_of = {"cut": distributed.cut_rows, "columns": distributed.cut_columns}
        entries = cuts_of.get(name.partition(".")[0], lambda part: part)(part)
        cut_map = entries is not part and isinstance(model, lo.Parameterization)
        result = distributed.complete(
            entries,
            _own(model, entries) if cut_map else model,
            solver=solver,
            penalty=0.5 if name.endswith("als") else 0.0,
            generator=seeded(),
            checkpoint=kept,
        )
        found[f"{step}.{name}"] = distributed_columns.joined(result, entries)
    return found


def compute(folder: Path, rank: int, size: int, steps: list[str]) -> None:
    """Be one of the processes, which meet at a file."""
    torch.set_num_threads(1)
    met = f"file://{folder.absolute()}/meeting.{size}"
    dist.init_process_group("gloo", init_method=met, rank=rank, world_size=size)
    try:
        found: dict[str, Tensor] = {}
        for step in steps:
            if step == "fits":
                found |= fits(distributed.split_rows(observed()))
                found |= proofs(distributed.split_rows(observed()))
                found |= counts() | operations() | exchanged() | unequal_randomness()
                found |= too_few_rows() | distributed_shares.refused()
                found |= distributed_shares.fits(spread=True)
                found |= held(distributed.split_rows(observed()))
                with mock.patch.object(distributed.blocks, "BLOCK", 20):
                    part = distributed.split_rows(observed())
                    found |= cut(distributed.cut_rows(part))
                    found |= distributed_columns.fits(distributed.cut_columns(part), maps())
                found |= distributed_columns.counts() | distributed_columns.arithmetic()
                found |= certificates(distributed.split_rows(turned(observed())))
            else:
                found |= checkpoints(folder, step)
        torch.save(found, folder / f"{size}.{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(forked(compute, *sys.argv[1:]))
