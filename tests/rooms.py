"""Rooms inside packages, and which of them may import which."""

from __future__ import annotations

# Rooms inside a package, from the ground floor up: the key may import the values, which stand above
# it in the table. A file beside the rooms may be named as one; the other files are the door, "".
ROOMS: dict[str, dict[str, set[str]]] = {
    "lowrank_opt.completion": {
        "model": set(),
        "loop": set(),
        "certificates": {"model"},
        "results": {"model", "loop", "certificates"},
        "solvers": {"model", "loop", "certificates", "results"},
        "bayes": {"model", "loop", "results", "solvers"},
        "after": {"model", "loop", "results", "solvers", "bayes"},
        "": {"model", "loop", "certificates", "results", "solvers", "bayes", "after"},
    },
    "lowrank_opt.nn": {
        "basis": set(),
        "adapters": {"basis"},
        "low_rank": {"basis", "adapters"},
        "surgery": {"basis", "adapters"},
        "folders": {"basis", "adapters", "surgery"},
        "interop": {"basis", "adapters", "low_rank", "surgery", "folders"},
        "reports": {"basis", "adapters", "folders", "interop"},
        "ecosystem": {"basis", "adapters", "surgery", "folders", "reports"},
        "": {
            *("basis", "adapters", "low_rank", "surgery", "folders", "interop", "reports"),
            "ecosystem",
        },
    },
    "lowrank_opt.parameterizations": {
        "example": set(),
        "wide": set(),
        "config": {"example"},
        "certificate": set(),
        "base": {"certificate", "config"},
        "between": {"base"},
        "balls": {"base", "example"},
        "free": {"base", "example"},
        "turned": {"base", "example"},
        "composed": {"base", "between", "config", "wide"},
        "published": {"base", "example", "between", "balls", "free", "turned", "composed"},
        "": {"base", "certificate", "config", "example", "between", "wide"}
        | {"balls", "free", "turned", "composed", "published"},
    },
    "lowrank_opt.training": {
        "roles": set(),
        "forgetting": set(),
        "algebra": {"roles"},
        "perturbation": set(),
        "optimizers": {"roles", "algebra"},
        "ranks": {"roles", "forgetting", "algebra"},
        "": {"roles", "forgetting", "algebra", "perturbation", "optimizers", "ranks"},
    },
    "lowrank_opt.merging": {
        "clients": set(),
        "federated": {"clients"},
        "combined": {"clients"},
        "spectra": set(),
        "": {"clients", "federated", "combined", "spectra"},
    },
    "lowrank_opt.estimators": {
        "bases": set(),
        "data": set(),
        "choice": set(),
        "folders": {"bases", "choice", "data"},
        "": {"bases", "data", "choice", "folders"},
    },
    "lowrank_opt.testing": {
        "dense_guard": set(),
        "cases": set(),
        "search": {"cases"},
        "laws": {"dense_guard", "cases", "search"},
        "subjects": {"cases", "search", "laws"},
        "reports": {"search", "subjects"},
        "": {"dense_guard", "cases", "search", "laws", "subjects", "reports"},
    },
}
