"""``python -m experiments`` runs every short experiment in small, to see that they still work.

Each writes its record into a folder that is thrown away; one that fails makes the status 1. Names
choose some, and those that take longer.
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# In the order of their cost.
EXPERIMENTS = (
    "kernel_speed",
    "step_cost",
    "spectral_rates",
    "optimum_sweep",
    "tasks_in_sequence",
    "phase_transition",
    "federated_digits",
    "private_averages",
    "image_inpainting",
    "vision_transfer",
    "language_transfer",
    "peft_comparison",
    "training_methods",
)
# Some minutes on a busy machine even in small, or in need of ratings: only where named.
LONGER = (
    "intruders", "interval_coverage", "movielens",
    "rating_intervals", "rating_times", "ratings_bayes",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run those that are named, or all short ones, and print the CPU seconds of each."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*EXPERIMENTS, *LONGER, []])
    named = parser.parse_args(arguments).names
    failed = 0
    for name in named or EXPERIMENTS:
        began = time.process_time()
        fault = _fault(name)
        failed += bool(fault)
        print(f"{name:20} {time.process_time() - began:6.1f} s  {fault or 'works'}", flush=True)
    return min(failed, 1)


def _fault(name: str) -> str:
    """Run one and return what is wrong with it, or nothing."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(f"experiments.{name}")
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = module.main(["--profile", "smoke", "--out", folder])
        if status:
            return f"status {status}: {said.getvalue().strip().splitlines()[-1]}"
        records = list(Path(folder).glob("*.json"))
        if len(records) != 1 or json.loads(records[0].read_text("utf-8"))["profile"] != "smoke":
            return f"wrote {[path.name for path in records]}, not one record"
    return ""


if __name__ == "__main__":
    sys.exit(main())
