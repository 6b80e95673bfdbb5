"""Torchrun's launcher, with workers that are copies of a process that has imported all.

A worker may kill itself, in one of the attempts, at a chosen moment of a chosen checkpoint.
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch
from torch.distributed import run
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import lowrank_opt.cli.complete_parts
import lowrank_opt.kernels.loops.backend
import lowrank_opt.tables.parquet  # noqa: F401 (for the workers)
from lowrank_opt.distributed import store

Deaths = list[tuple[int, int, str]]


def work(asked: list[str], deaths: Deaths) -> int:
    """Be ``python -m lowrank_opt``; return its status, which torchrun would take for a failure."""
    torch.set_num_threads(1)
    attempt, rank = (int(os.environ[x]) for x in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    if attempt < len(deaths) and deaths[attempt][0] == rank:
        doom(*deaths[attempt][1:])
    sys.argv[1:] = asked
    try:
        runpy.run_module("lowrank_opt", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def doom(state: int, moment: str) -> None:
    """Die when the state of a number is written: before, or before the others know of it."""
    save, seen = store.save, []

    def last(*arguments: object, **options: object) -> None:
        seen.append(None)
        if len(seen) < state:
            save(*arguments, **options)
            return
        if moment == "after":
            save(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    store.save = last


def launched(processes: int, asked: list[str], deaths: Deaths) -> list[int]:
    """Be torchrun; return the statuses of its workers."""
    found: list[int] = []

    def forked(config: LaunchConfig, entrypoint: str) -> Callable[..., None]:
        assert sys.executable == entrypoint

        def start(*words: str) -> None:
            assert words[-len(asked) - 2 :] == ("-m", "lowrank_opt", *asked)
            results = elastic_launch(replace(config, start_method="fork"), work)(asked, deaths)
            found.extend(results[rank] for rank in range(processes))

        return start

    launch = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "2"]
    launch += ["--monitor-interval", "0.1", "-m", "lowrank_opt", *asked]
    with mock.patch.object(run, "elastic_launch", forked):
        run.main(launch)
    return found


def main(plan: str) -> None:
    """Launch one command after another; print the statuses that their workers return."""
    print(json.dumps([launched(*line) for line in json.loads(plan)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
