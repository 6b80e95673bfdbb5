"""Entries that are shared out as unevenly as can be, and what is fitted to them.

Some processes have no entries, no rows, no columns, or no entry that counts.
"""

import torch
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt import distributed
from lowrank_opt.errors import ObservationError
from lowrank_opt.observations import Observations
from lowrank_opt.solvers import ALS, LBFGS, FirstOrder, Gibbs, Variational
from tests.unit.distributed_columns import joined


def shared_out() -> dict[str, Observations]:
    """Return entries of the first rows alone, of three rows and two columns, of weights at last."""
    i, j = (torch.arange(40).reshape(8, 5).remainder(7) < 5).nonzero().T
    values = (5 * i + j).double().sin()
    front, few = i < 2, (i < 3) & (j < 2)
    return {
        "front": Observations(i[front], j[front], values[front], (8, 5)),
        "few": Observations(i[few], j[few], values[few], (3, 2)),
        "last": Observations(i, j, values, (8, 5), (i > 6).double()),
    }


def plain_steps(variables: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(variables, lr=1e-3)


def fits(*, spread: bool) -> dict[str, Tensor]:
    """Fit what is whole, what has rows that are cut, and columns; here, or over processes."""
    found = {}
    for name, obs in shared_out().items():
        ball = lo.HomogeneousBall(
            obs.shape,
            2,
            radius=3.0,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        labels = obs.with_values((obs.values > 0).double())
        part, signs = (distributed.split_rows(x) if spread else x for x in (obs, labels))
        apart = distributed.cut_rows(part)
        plan = {
            "als": (part, 2, ALS(max_iterations=2, gap=None), {"penalty": 0.5}),
            "variational": (apart, 2, Variational(max_iterations=2), {}),
            "gibbs": (apart, 1, Gibbs(burn_in=1, samples=2), {}),
            "lbfgs": (part, ball, LBFGS(max_iterations=3), {}),
            "labels": (
                signs,
                ball,
                FirstOrder(plain_steps, max_iterations=2),
                {"loss": "logistic"},
            ),
            "columns": (
                distributed.cut_columns(part),
                2,
                ALS(max_iterations=2, gap=None, nonnegative=True),
                {"penalty": 0.5},
            ),
        }
        for kind, (entries, model, solver, given) in plan.items():
            start = torch.Generator().manual_seed(0)
            result = lo.complete(entries, model, solver=solver, generator=start, **given)
            found[f"{name}.{kind}"] = joined(result, entries)
            if kind == "als":
                bound = result.certificate().lower_bound
                found[f"{name}.bound"] = torch.tensor(bound, dtype=torch.float64)
    return found


def refused() -> dict[str, Tensor]:
    """What no process has, all of them say."""
    i = torch.arange(4)
    found = {}
    for name, weights in (("no entries", None), ("no weights", torch.zeros(4))):
        mine = slice(0) if weights is None else slice(None)
        try:
            distributed.own_rows(
                i[mine],
                i[mine] * 0 + torch.distributed.get_rank(),
                i[mine].double(),
                (4, 4),
                weights,
            )
        except ObservationError as error:
            found[name] = torch.tensor("one" in str(error))
    return found
