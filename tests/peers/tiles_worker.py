"""Every operation of the Triton backend on tiny problems, for Triton's interpreter.

`results` computes the same with any backend; run as a program, with those of Triton, and leaves
them in a file. The interpreter runs one program after the other and knows no race; products of
bfloat16 numbers are none of its strengths, and the kernels multiply in float32.
"""

import sys
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.kernels.protocol import Given, ModelParts, Needed, Ranked, RowEntries
from lowrank_opt.observations import Observations

# Rows without entries, with a few, with more than a tile of the tests, and of several pieces.
LENGTHS, COLUMNS = (0, 1, 4, 7, 8, 9, 19), 19
SHORT, PIECE = 4, 8
COUNTED = [(False, torch.float32), (True, torch.bfloat16)]
CASES = [("float32", 3), ("float64", 5), ("float32", 17), ("bfloat16", 8)]


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return numbers that bfloat16 has too, so that every dtype starts from the same."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).bfloat16().to(dtype)


def observed(dtype: torch.dtype, weighted: bool) -> Observations:
    g = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.full((k,), i) for i, k in enumerate(LENGTHS)])
    cols = torch.cat([torch.randperm(COLUMNS, generator=g)[:k] for k in LENGTHS])
    order = torch.randperm(len(rows), generator=g)
    weights = normal(len(rows), seed=2, dtype=dtype).abs() + 0.125 if weighted else None
    values, shape = normal(len(rows), seed=1, dtype=dtype), (len(LENGTHS), COLUMNS)
    return Observations(rows[order], cols[order], values, shape, weights)


def results(backend: ModuleType, dtype: torch.dtype, K: int) -> dict[str, Tensor]:
    """Return what all operations compute, of vectors in `dtype` and all else in float32 or more."""
    wide = torch.promote_types(dtype, torch.float32)
    weighted, m, n = K != 8, len(LENGTHS), COLUMNS
    obs = observed(wide, weighted)
    right = normal(n, K, seed=4, dtype=dtype)
    left, a, b = (normal(*s, seed=9, dtype=wide) for s in ((m, K), (m,), (n,)))
    model, all_of = ModelParts(left, right, a, b), Needed(True, True, True, True)
    found = {}
    loss, gradient = backend.squared_loss(model, obs, None, all_of)
    found["loss"] = loss
    alone = backend.squared_loss(ModelParts(left, right), obs, obs.values.abs(), Needed())
    found["loss alone"] = alone[0]
    found |= {f"gradient.{k}": x for k, x in enumerate(gradient)}
    found["entries"] = backend.entries(model, obs)
    parts = backend.entries_gradient(model, obs, obs.values, all_of)
    found |= {f"entries_gradient.{k}": x for k, x in enumerate(parts)}
    return found | rows_of(backend, obs, right, b) | posteriors(backend, obs, K)


def rows_of(
    backend: ModuleType, obs: Observations, F: Tensor, offsets: Tensor
) -> dict[str, Tensor]:
    """Return rows solved, drawn, improved, and left where a matrix is singular."""
    K, m, wide = F.shape[1], len(LENGTHS), obs.dtype
    entries = RowEntries(obs.csr, obs.csr_values, obs.csr_weights)
    strengths, found = torch.linspace(0.5, 2, m).double(), {}
    prior = {"scale": 1.25, "strengths": strengths, "precision": torch.eye(K).double() + 0.125}
    pull, noise = (normal(m, K, seed=s, dtype=wide) for s in (5, 6))
    for name, given in (
        ("solve", prior | {"pull": None, "noise": None}),
        ("draw", prior | {"pull": pull, "noise": noise}),
        (
            "singular",
            prior | {"pull": None, "noise": None, "precision": torch.zeros(K, K).double()},
        ),
    ):
        x = torch.ones(m, K, dtype=wide)
        found[f"{name}.losses"] = backend.solve_rows(entries, x, F, offsets, **given)
        # Rows with fewer entries than unknowns: which of them are singular is a matter of rounding.
        found[f"{name}.x"] = x[:1] if name == "singular" else x
    found["singular.losses"] = found["singular.losses"][:1]
    x, diagonal = torch.ones(m, K, dtype=wide), torch.linspace(0.5, 1, K).double()
    given = {"diagonal": diagonal, "strengths": strengths, "steps": 3}
    found["improve.losses"] = backend.improve_rows(entries, x, F, offsets, **given)
    return found | {"improve.x": x}


def posteriors(backend: ModuleType, obs: Observations, K: int) -> dict[str, Tensor]:
    """Return posteriors and draws, one of them with pivots that are raised."""
    m, n, wide, found = len(LENGTHS), COLUMNS, obs.dtype, {}
    weights = torch.ones_like(obs.values) if obs.weights is None else obs.csr_weights
    for name, precision in (("posterior", torch.eye(K + 1).double() + 0.125), ("raised", None)):
        flat = torch.ones(K + 1, K + 1).double()
        other = Moments.of(*(normal(*s, seed=7, dtype=wide) for s in ((n, K), (n,))))
        own = Moments.of(torch.zeros(m, K, dtype=wide), torch.zeros(m, dtype=wide))
        given = Given(
            *(obs.csr, obs.csr_values, weights, other.means, other.products),
            torch.linspace(0.5, 2, m).double(),
            flat if precision is None else precision,
            normal(m, K + 1, seed=8, dtype=torch.float64),
            0.125 if precision is None else 8 * torch.finfo(wide).eps,
        )
        losses, logdets = torch.empty(m).double(), torch.empty(m).double()
        backend.posterior(given, own.means, own.products, losses, logdets)
        parts = {"losses": losses, "logdets": logdets, "means": own.means, "products": own.products}
        found |= {f"{name}.{k}": x.clone() for k, x in parts.items()}
        noise = normal(m, K + 1, seed=9, dtype=wide)
        backend.draw(given, noise, own.means, losses)
        found |= {f"{name}.drawn": own.means, f"{name}.drawn.losses": losses}
    return found


def ranking(rank: int) -> Ranked:
    """Return 100 columns, some of which may not be ranked or are tied."""
    rows, cols = (normal(*s, seed=3, dtype=torch.float64) for s in ((2, rank), (100, rank)))
    offsets = normal(100, seed=5, dtype=torch.float64)
    cols[50:60], offsets[50:60] = cols[40:50], offsets[40:50]
    seen = (torch.tensor([0, 0, 1, 1]), torch.tensor([31, 32, 63, 99]))
    return Ranked(rows, cols, offsets, torch.arange(100) % 7 != 0, seen)


def ranked(backend: ModuleType) -> dict[str, Tensor]:
    values, columns = backend.best_columns(ranking(5), 10)
    return {"values": values, "columns": columns}


def counted(backend: ModuleType, weighted: bool, number: torch.dtype) -> dict[str, int]:
    """Return the bytes that passes load and store, as the interpreter does, without biases."""
    from triton.runtime.interpreter import InterpreterBuilder

    obs, moved, found = observed(torch.float32, weighted), [0], {}
    left, right = (
        normal(len(LENGTHS), 8, seed=3, dtype=torch.float32),
        normal(COLUMNS, 8, seed=4, dtype=number),
    )
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def loading(self, ptrs, mask, *others):
        moved[0] += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *others)

    def storing(self, ptrs, value, mask, *others):
        moved[0] += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *others)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", loading),
        mock.patch.object(InterpreterBuilder, "create_masked_store", storing),
    ):
        for name, needed in (("loss", Needed()), ("loss_and_gradient", Needed(True, True))):
            moved[0] = 0
            backend.squared_loss(ModelParts(left, right), obs, None, needed)
            found[name] = moved[0]
        moved[0] = 0
        entries = RowEntries(obs.csr, obs.csr_values, obs.csr_weights)
        prior = {"precision": torch.eye(8).double(), "strengths": torch.ones(len(left)).double()}
        settings = prior | {"scale": 1.0, "pull": None, "noise": None}
        backend.solve_rows(entries, left, right, right[:, 0].float(), **settings)
        found["half_sweep"] = moved[0] - len(left) * 8 * 8 * 8
    return found


def main(file: str) -> None:
    from lowrank_opt.kernels.tiles import backend, sizes

    sizes.SHORT, sizes.PIECE = SHORT, PIECE
    torch.set_num_threads(1)
    found = {c: results(backend, getattr(torch, c[0]), c[1]) for c in CASES}
    sizes.PIECE, sizes.RANKED_PIECE = 8192, 64
    found["ranked"] = ranked(backend)
    for weighted, number in COUNTED:
        found[weighted, number] = counted(backend, weighted, number)
    torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
