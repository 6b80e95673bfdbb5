"""What each process of the tests computes where no process has all lines of either factor."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lowrank_opt as lo
from lowrank_opt import distributed
from lowrank_opt.completion import AdditiveBias
from lowrank_opt.completion.certificates import spectral_bounds
from lowrank_opt.completion.model import randomness
from lowrank_opt.completion.model.cut_map import CutMap
from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.kernels.parts import gaussian_rows, row_problems
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut
from lowrank_opt.solvers import ALS, LBFGS

RANK, BLOCK, LINES = 2, 16, 8
# As the fits of `distributed_worker.cut`, with the same names.
PLAN = {
    "als": ALS(max_iterations=6, gap=None),
    "als_rows": ALS(max_iterations=6, gap=None),
    "als_cg": ALS(method="cg", max_iterations=4, gap=None),
    "als_nonnegative": ALS(nonnegative=True, max_iterations=4),
    "held": ALS(max_iterations=4),
    **dict.fromkeys(("homogeneous", "contractions", "factored"), LBFGS(max_iterations=4)),
}


class HeldLines(TorchDispatchMode):
    """Numbers in the factors that are alive at once: tables of so many columns, each once."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.widths, self.alive, self.peak, self.longest = widths, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            table = isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2
            if table and x.shape[1] in self.widths:
                self._see(x)
        return found

    def _see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, numbers = storage._cdata, storage.nbytes() // x.element_size()
        self.longest = max(self.longest, len(x))
        if key not in self.alive:
            self.alive[key] = numbers
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))


def whole(x: Tensor, part: Observations, side: int) -> Tensor:
    """Return the lines of all processes, of what is cut."""
    if not is_cut(part, side):
        return x
    ends = part.part.inner.ends[side]
    return part.part.processes.gather(x, [b - a for a, b in pairwise(ends)])


def joined(result: lo.CompletionResult, part: Observations) -> Tensor:
    """Return the predictions of all rows and columns, of which each process has some."""
    if part.part is not None:
        rows, cols = part.part.held
        assert (rows.stop - rows.start, cols.stop - cols.start) == result.shape
    if is_cut(part, 1):
        (left, scale, right), bias = result.operator, result.bias
        sides = ((left, bias.rows, 0), (right, bias.cols, 1))
        left, a, right, c = (whole(x, part, k) for *pair, k in sides for x in pair)
        op, biases = lo.LowRankOperator(left, scale, right), AdditiveBias(bias.mean, a, c)
        return replace(result, operator=op, bias=biases).predict(*np.ix_(*map(range, op.shape)))
    return whole(result.predict(*np.ix_(*map(range, result.shape))).double(), part, 0)


def fits(part: Observations, maps: dict[str, lo.Parameterization]) -> dict[str, Tensor]:
    """Fit with columns that are cut; put together only what came out."""
    found = {}
    for name, solver in PLAN.items():
        generator = torch.Generator().manual_seed(0)
        result = lo.complete(
            part,
            distributed.own_map(maps[name], part) if name in maps else RANK,
            solver=solver,
            penalty=0.5 if solver.traits.penalty == "needed" or name == "factored" else 0.0,
            bias=None if name == "als_rows" else "additive",
            validation=0.25 if name == "held" else None,
            generator=generator,
        )
        dense = joined(result, part)
        objective = torch.tensor(result.history.objective, dtype=torch.float64)
        found |= {f"columns.{name}": dense, f"columns.{name}.objective": objective}
        if name == "als":
            here = dense[part.rows + part.part.held[0].start, part.cols]
            torch.testing.assert_close(here, distributed.predict_entries(result, part))
            found["columns.bound"] = torch.tensor(result.certificate().lower_bound).double()
            with mock.patch.object(spectral_bounds, "GRAM_LIMIT", 4):
                loose = result.certificate().lower_bound
            found["columns.loose"] = torch.tensor(loose, dtype=torch.float64)
    return found


def regular() -> Observations:
    """Return entries, four in a row and eight in a column, of rows that have few in common."""
    i, s = torch.arange(320).repeat_interleave(4), torch.arange(4).repeat(320)
    return Observations(i, (7 * i + s) % 160, (i * s).double().sin(), (320, 160))


def counts() -> dict[str, Tensor]:
    """Return bytes of a half sweep of each side, and the numbers of factors that a fit holds."""
    part = distributed.cut_columns(distributed.split_rows(regular()))
    assert [8] * len(part.col_counts) == part.col_counts.tolist()
    processes, found = part.part.processes, {}
    with mock.patch.multiple(distributed.blocks, BLOCK=BLOCK, LINES=LINES):
        problems, sizes = (
            row_problems(part, torch.float64),
            (len(part.row_counts), len(part.col_counts)),
        )
        for side in (0, 1):
            processes.sent.clear()
            size, other = sizes[side], sizes[1 - side]
            x, features = (torch.ones(k, 3, dtype=torch.float64) for k in (size, other))
            given = {"precision": torch.eye(3).double(), "strengths": torch.ones(size).double()}
            problems[side].solve(x, features, features[:, 0].clone(), **given)
            found[f"bytes.columns.{side}"] = torch.tensor(sum(processes.sent.values()))
        shapes = [(k, RANK) for k in sizes]
        left, right = (torch.ones(*k, dtype=torch.float64).requires_grad_() for k in shapes)
        op = lo.LowRankOperator(left, left.new_ones(RANK), right)
        # Which columns its blocks name is asked once.
        lo.kernels.observed_squared_loss(op, part)
        processes.sent.clear()
        lo.kernels.observed_squared_loss(op, part).backward()
        found["bytes.columns.gradient"] = torch.tensor(sum(processes.sent.values()))
        with mock.patch.object(randomness, "_LINES", 1), HeldLines(RANK, RANK + 1) as held:
            lo.complete(part, RANK, solver=ALS(max_iterations=2, gap=None), penalty=0.5)
    return found | {"lines.held": torch.tensor([held.peak, held.longest])}


class Arithmetic(TorchDispatchMode):
    """Additions and multiplications of what torch computes: products of matrices and entries."""

    ONCE = ("mul", "add", "sub", "div", "addcmul", "lerp", "sqrt", "neg")
    ALL = ("sum", "index_add", "index_reduce", "segment_reduce", "cumsum", "_embedding_bag")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        floats = [x for x in tensors if x.is_floating_point()]
        if name in self.ONCE and floats:
            self.count += found.numel()
        elif name in self.ALL and floats:
            self.count += max(x.numel() for x in floats)
        elif name == "dot":
            self.count += 2 * floats[0].numel()
        elif name in ("mm", "bmm"):
            self.count += 2 * found.numel() * floats[0].shape[-1]
        return found


def arithmetic() -> dict[str, Tensor]:
    """Count in plain torch, on 24 x 16 with 8 entries in each row and 12 in each column."""
    m, n, K = 24, 16, 3
    i, j = (torch.ones(m, n).cumsum(0) + torch.arange(n)).remainder(2).nonzero().T
    values = (i * n + j).double().sin()
    part = distributed.split_rows(Observations(i, j, values, (m, n)))
    apart, found = distributed.cut_rows(part), {}

    def counted(
        name: str, function: Callable[..., object], *given: object, **named: object
    ) -> None:
        with lo.kernels.use_backend("torch"), Arithmetic() as seen:
            function(*given, **named)
        found[f"arithmetic.{name}"] = torch.tensor(seen.count)

    factors = (torch.ones(k, RANK, dtype=torch.float64).requires_grad_() for k in (m, n))
    left, right = factors
    op = lo.LowRankOperator(left, left.new_ones(RANK), right)
    counted("gradient", lambda: lo.kernels.observed_squared_loss(op, part).backward())
    ball = lo.RadialBall((m, n), RANK, radius=30.0, dtype=torch.float64)
    cut_map = CutMap(distributed.own_map(ball, apart), apart)
    counted("map", lambda: lo.kernels.observed_squared_loss(cut_map(), apart).backward())
    problems = gaussian_rows(apart, torch.float32)
    sides = [Moments.of(torch.ones(k, RANK), torch.ones(k)) for k in apart.shape]
    for side, size in enumerate(apart.shape):
        pair = sides[side], sides[1 - side]
        given = {"precision": torch.eye(K).double(), "scales": torch.ones(size).double()}
        given |= {"pull": torch.zeros(size, K).double()}
        counted(f"posterior.{side}", problems[side].posterior, *pair, **given)
        noise = torch.zeros(size, K)
        counted(f"draw.{side}", problems[side].draw, *pair, **given, noise=noise)
    return found
