"""What clients send, in one form: factor triples, one list for each matrix of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from lowrank_opt.errors import NotInSetError, OptionError, RankError, ShapeError, TargetError
from lowrank_opt.linalg import working_dtype
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.present import (
    record_of,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    adapted_weights,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.sets import FeasibleSet

Client: TypeAlias = LowRankOperator | Parameterization | tuple[Tensor, Tensor]
ModelClient: TypeAlias = Mapping[str, Client] | nn.Module
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class DeclaredUpdate:
    """One client's update of one matrix, and the set that it is declared to be in."""

    op: LowRankOperator
    declared: FeasibleSet | None


def adapter_updates(model: nn.Module) -> dict[str, Parameterization]:
    """Return the parameterizations of the active adapter, by the names of their weights.

    Parameters
    ----------
    model : nn.Module
        Adapted by `lowrank_opt.nn.adapt`.

    Returns
    -------
    dict
        From the name of a weight in the model before adaptation; with ``/0``, ``/1``, ... added
        where one weight is a stack of matrices. A weight that is tied occurs once.

    Raises
    ------
    TargetError
        If no adapter is active, or several are.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> list(adapter_updates(model))
    ['weight']
    """
    return {
        name: member
        for adapted in active_weights(model)
        for name, member in zip(adapted.matrix_names, adapted.updates, strict=True)
    }


def active_weights(model: nn.Module) -> list[AdaptedWeight]:
    """Return the weights that the active adapter updates, tied ones once."""
    adapted = any(True for _ in adapted_modules(model))
    active = [name for name, _ in record_of(model).state.active] if adapted else []
    if len(active) != 1:
        raise TargetError(
            f"a model must have one active adapter to be a client; got {sorted(active)}: adapt it, "
            "or switch to one adapter"
        )
    return adapted_weights(model, active, tied=False)


def lora_operators(
    tensors: Mapping[str, Tensor], *, scaling: float | Mapping[str, float] = 1.0
) -> dict[str, LowRankOperator]:
    r"""Return the updates :math:`s\, B A` of a LoRA state dict, by the names of their layers.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Keys ``<layer>.lora_A.weight`` (r x n) and ``<layer>.lora_B.weight`` (m x r), with or
        without the name of an adapter before ``.weight``.
    scaling : float or mapping from layers to float
        alpha / r, which a state dict does not hold.

    Raises
    ------
    TargetError
        If a key is none of these, a factor has no partner, or is no matrix.

    Examples
    --------
    >>> tensors = {"fc.lora_A.weight": torch.ones(1, 3), "fc.lora_B.weight": torch.ones(2, 1)}
    >>> lora_operators(tensors, scaling=2.0)["fc"].shape
    (2, 3)
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        layer, role = _lora_key(key)
        if x.ndim != 2 or role in found.setdefault(layer, {}):
            raise TargetError(
                f"each layer must have one matrix A and one B; {key!r} is a second one, or has "
                f"shape {tuple(x.shape)}"
            )
        found[layer][role] = x.detach()
    lonely = [layer for layer, pair in found.items() if len(pair) != 2]
    if lonely:
        raise TargetError(f"each layer must have a lora_A and a lora_B; {lonely} have one of them")
    made: dict[str, LowRankOperator] = {}
    for layer, pair in found.items():
        s = scaling[layer] if isinstance(scaling, Mapping) else scaling
        left, right = pair["B"], pair["A"].mT
        made[layer] = LowRankOperator(left, left.new_full((left.shape[1],), s), right)
    return made


def _lora_key(key: str) -> tuple[str, str]:
    for role in ("A", "B"):
        layer, found, rest = key.partition(f".lora_{role}.")
        if found and rest.rpartition(".")[2] == "weight":
            return layer, role
    raise TargetError(
        f"keys must end in .lora_A.weight or .lora_B.weight; got {key!r}: leave other tensors out"
    )


def each_matrix(
    clients: Sequence[Client | ModelClient],
    work: Callable[[str | None, Sequence[Client]], _T],
) -> _T | dict[str, _T]:
    """Call `work` with the name and the updates of each matrix; its name is None if it has none."""
    single = [c for c in clients if not is_model(c)]
    if len(single) == len(clients):
        return work(None, cast("list[Client]", single))
    if single:
        raise TargetError(
            "clients must all send one matrix, or all send whole models; got some of each"
        )
    matrices = _by_matrix(cast("Sequence[ModelClient]", clients))
    return {name: work(name, sent) for name, sent in matrices.items()}


def of_matrix(values: _T | Mapping[str, _T] | None, name: str | None) -> _T | None:
    """Return the entry of one matrix, or what is given for all of them."""
    if not isinstance(values, Mapping):
        return values
    entries = cast("Mapping[str, _T]", values)
    if name is None or name not in entries:
        raise TargetError(
            f"a mapping must have an entry for each matrix; got {sorted(entries)} and no {name!r}"
        )
    return entries[name]


def _by_matrix(clients: Sequence[ModelClient]) -> dict[str, list[Client]]:
    """Return, for each matrix of the model, what each client sends for it."""
    models: list[Mapping[str, Client]] = [
        adapter_updates(c) if isinstance(c, nn.Module) else c for c in clients
    ]
    names = list(models[0])
    for i, model in enumerate(models):
        if set(model) != set(names):
            different = sorted(set(model) ^ set(names))
            raise TargetError(
                f"all clients must update the same matrices; client {i} differs from client 0 in "
                f"{different}"
            )
    return {name: [model[name] for model in models] for name in names}


def is_model(client: object) -> bool:
    """Whether a client updates several matrices, by name."""
    module = isinstance(client, nn.Module) and not isinstance(client, Parameterization)
    return module or isinstance(client, Mapping)


def read_updates(
    clients: Sequence[Client], declared: FeasibleSet | Sequence[FeasibleSet] | None
) -> list[DeclaredUpdate]:
    """Return the clients' updates of one matrix, checked, detached, on the first one's device."""
    ops = [_operator(client, i) for i, client in enumerate(clients)]
    sets = _declared(clients, declared)
    device = ops[0].device
    ops = [op.detach().to(device=device) for op in ops]
    for i, op in enumerate(ops):
        if op.left.ndim != 2 or op.shape != ops[0].shape:
            raise ShapeError(
                f"all clients must update one m x n matrix; client 0 has {ops[0].shape} and "
                f"client {i} {tuple(op.left.shape[:-2])} {op.shape}"
            )
        if op.rank < 1:
            raise RankError(f"a client's factors must have a column; client {i} has rank 0")
        if not all(bool(torch.isfinite(x).all()) for x in op):
            raise TargetError(
                f"clients must be finite; client {i} has NaN or infinite entries: leave it out"
            )
    return [DeclaredUpdate(op, declared) for op, declared in zip(ops, sets, strict=True)]


def check_members(updates: Sequence[DeclaredUpdate]) -> None:
    """Raise NotInSetError unless each update is in the set that is declared for it."""
    for i, update in enumerate(updates):
        if update.declared is not None and not update.declared.contains(update.op):
            excess = update.declared.excess(update.op)
            raise NotInSetError(
                f"clients must be in the sets declared for them; client {i} exceeds "
                f"{update.declared} by {excess:.2e}: leave it out, or project it",
                excess=excess,
            )


def read_weights(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    """Return weights of sum one, float64."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    given = weights if isinstance(weights, Tensor) else torch.tensor(weights, dtype=torch.float64)
    p = given.detach().cpu().double()
    if p.shape != (count,) or not bool((p >= 0).all()):
        raise OptionError(
            f"weights must be one nonnegative number for each of {count} clients; got {p.tolist()}"
        )
    # Float32 shares, perhaps turned into Python numbers, sum to one to their own precision only.
    tolerance = count * max(torch.finfo(torch.float32).eps, _eps(given))
    total = float(p.sum())
    if not abs(total - 1) <= tolerance:
        raise OptionError(f"weights must sum to 1; got a sum of {total!r}: divide them by it")
    return p / total


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def working(op: LowRankOperator) -> LowRankOperator:
    """Return the operator in the arithmetic of small systems: float64 where there is one."""
    return op.to(dtype=working_dtype(op.left))


def _operator(client: Client, index: int) -> LowRankOperator:
    if isinstance(client, LowRankOperator):
        return client
    if isinstance(client, Parameterization):
        with torch.no_grad():
            return client()
    if not (isinstance(client, tuple | list) and len(client) == 2):
        raise TargetError(
            f"a client must be a LowRankOperator, a parameterization or a pair (left, right); "
            f"client {index} is {type(client).__name__}"
        )
    left, right = client
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise ShapeError(
            f"a pair must be left (m x r) and right (n x r); client {index} has {shapes}: for "
            "LoRA's B (m x r) and A (r x n) pass (B, A.mT)"
        )
    return LowRankOperator(left, left.new_ones(left.shape[1]), right)


def _declared(
    clients: Sequence[Client], declared: FeasibleSet | Sequence[FeasibleSet] | None
) -> list[FeasibleSet | None]:
    if declared is None:
        return [c.feasible_set if isinstance(c, Parameterization) else None for c in clients]
    if isinstance(declared, FeasibleSet):
        return [declared] * len(clients)
    if len(declared) != len(clients):
        raise OptionError(
            f"feasible_set must be one set, or one for each of {len(clients)} clients; got "
            f"{len(declared)}"
        )
    return list(declared)
