"""Programs in processes of their own that have imported torch already.

Importing torch and taking it down again is two seconds of work, more than most programs of a test
do. One process imports it and forks for every program: what a program does, no other one sees.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300
# What pages of the documentation use: two seconds of imports for most of them.
COMMON = ("sklearn.base", "scipy.optimize", "pandas", "numba", "matplotlib.figure")

SERVER = """
import gc, importlib, json, os, runpy, signal, sys, traceback
import torch, torch._dynamo  # torch.optim imports it at its first step
for name in sys.argv[1:]:
    importlib.import_module(name)

def run(job):
    signal.alarm(job["seconds"])
    os.chdir(job["folder"])
    for number, name in enumerate((os.devnull, job["out"], job["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.environ.update(job["env"])
    sys.path[0], sys.argv = job["folder"], job["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

gc.freeze()  # Shared with the children: none of them goes through it again.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_script(
    script: Path,
    *arguments: object,
    folder: Path,
    env: dict[str, str] | None = None,
    ready: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, like ``python script arguments``; outputs are text.

    A program that does not end is killed after five minutes. ``ready`` names what has been imported
    besides torch, for programs that are not about imports.
    """
    out, err = (folder / f"{script.name}.{name}" for name in ("out", "err"))
    server = _server(*ready)
    argv = [str(script), *map(str, arguments)]
    job = {"argv": argv, "folder": str(folder), "out": str(out), "err": str(err)}
    job |= {"env": env or {}, "seconds": SECONDS}
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    texts = [path.read_text(encoding="utf-8") for path in (out, err)]
    out.unlink()
    err.unlink()
    return subprocess.CompletedProcess(argv, code, *texts)


@cache
def _server(*ready: str) -> subprocess.Popen[str]:
    """Return the process that imports torch; it ends with this one, at the end of its input."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, *ready],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
