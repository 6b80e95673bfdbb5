"""One fit in a process of its own: ``python -m experiments.peers.worker FILE JSON``.

Needs NumPy and the package under test. Prints one line of JSON with errors, times and peak memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

MARK = "@result "


class Stopwatch:
    """Wall and CPU seconds of a ``with`` block; the CPU seconds of all threads."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._start = (time.perf_counter(), time.process_time())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.wall = time.perf_counter() - self._start[0]
        self.cpu = time.process_time() - self._start[1]


def peak_memory() -> float:
    """Return the largest resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from the memory of the parent
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, call: dict[str, object]) -> dict[str, object]:
    """Return what one fit costs and how well it predicts."""
    from experiments.peers.split import Split

    if importlib.util.find_spec(str(call["module"])) is None:
        return {"missing": call["module"]}
    name = "ours" if call["module"] == "lowrank_opt" else "fits"
    fit = getattr(importlib.import_module(f"experiments.peers.{name}"), str(call["function"]))
    split, timer = Split.load(path), Stopwatch()
    load = os.getloadavg()[0]
    predictions = fit(split, call["settings"], call["seed"], timer)
    rmse, mae = split.errors(predictions)
    return {
        "rmse": rmse,
        "mae": mae,
        "fit_seconds": timer.wall,
        "cpu_seconds": timer.cpu,
        "peak_mb": peak_memory(),
        "load": load,
    }


if __name__ == "__main__":
    print(MARK + json.dumps(measure(Path(sys.argv[1]), json.loads(sys.argv[2]))))
