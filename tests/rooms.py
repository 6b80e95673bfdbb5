"""Rooms inside packages, and which of them may import which."""

from __future__ import annotations

# Rooms inside a package, from the ground floor up: the key may import the values, which stand above
# it in the table. Files beside the rooms are the door, "".
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
        "": {"basis", "adapters", "low_rank", "surgery", "folders", "interop", "reports"},
    },
}
