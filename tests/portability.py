"""The same tests under the processors, threads, locales, orders and draws of other machines.

``python tests/portability.py [NAME ...]`` runs all variants, or those named, each in a process of
its own; it prints the table of ``docs/results/portability.md``. A variable makes no difference on a
machine that cannot do what it asks for, as AVX-512.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "tests" / "unit"

NUMERICS = (
    "test_linalg", "test_cayley", "test_operator", "test_sets", "test_tolerance", "test_kernels",
    "test_row_backends", "test_losses", "test_nb_lora", "test_homogeneous", "test_delora",
    "test_bounded_families", "test_component_families", "test_multiplicative_families",
    "test_certificate", "test_completion_certificate", "test_als", "test_soft_impute",
    "test_frank_wolfe", "test_fixed_rank_solvers", "test_max_norm", "test_sgd", "test_complete",
    "test_variational", "test_bayes", "test_fold_in", "test_conformal",
    "test_optimizers", "test_spectral",
)  # fmt: skip
FILES = (
    "test_storage", "test_checkpoint", "test_observations", "test_package", "test_plots",
    "test_errors", "test_state", "test_peft_files", "problems", "tables", "estimators",
)  # fmt: skip

ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "this machine": (NUMERICS, {}),
    "old processor": (
        NUMERICS,
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NUMBA_CPU_NAME": "generic",
        },
    ),
    "AVX2": (
        NUMERICS,
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_CBWR": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
        },
    ),
    "AVX-512": (
        NUMERICS,
        {
            "ATEN_CPU_CAPABILITY": "avx512",
            "MKL_CBWR": "AVX512",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
            "OPENBLAS_CORETYPE": "SkylakeX",
        },
    ),
    "generic code of numba": (NUMERICS, {"NUMBA_CPU_NAME": "generic"}),
    "two threads": (NUMERICS, {name: "2" for name in ONE} | {"NUMBA_NUM_THREADS": "2"}),
    "other draws and order": (NUMERICS, {"LOWRANK_OPT_TEST_SALT": "1"}),
    "still other draws and order": (NUMERICS, {"LOWRANK_OPT_TEST_SALT": "2"}),
    "C locale, far time zone": (FILES, {"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati"}),
    "no encoding": (FILES, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "HOME that cannot be written": (
        (*FILES, "test_kernels", "test_als"),
        {"HOME": "/dev/null/nowhere", "XDG_CACHE_HOME": "/dev/null/nowhere"},
    ),
    "files order and draws": (FILES, {"LOWRANK_OPT_TEST_SALT": "3"}),
}
CLOSING = re.compile(r"^=* ?(.*(?:passed|failed|error).*) in [\d.]+s.*$", re.MULTILINE)


def paths(names: tuple[str, ...]) -> list[str]:
    """Return the files or folders of tests, in whichever room they are; all must be there."""
    found = {path.stem: path for path in UNIT.rglob("*") if path.suffix == ".py" or path.is_dir()}
    return [str(found[name].relative_to(ROOT)) for name in names]


def run(name: str) -> tuple[int, str]:
    """Run one variant; return its status and its line of the table."""
    names, variables = VARIANTS[name]
    env = {**os.environ, **ONE, **variables, "PYTHONPATH": str(ROOT)}
    mask = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths(names)]
    start = time.perf_counter()
    done = subprocess.run([*mask, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    found = CLOSING.findall(done.stdout)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    given = ", ".join(f"`{key}={value}`" for key, value in variables.items())
    closing = found[-1].strip("= ") if found else f"status {done.returncode}"
    return done.returncode, f"| {name} | {given or '-'} | {closing} | {seconds:.0f} |"


def machine() -> str:
    """Say what the variants ran on."""
    blas = {f"{x['internal_api']} {x['version']}" for x in threadpool_info() if x["version"]}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
    return (
        f"{model}, {torch.backends.cpu.get_cpu_capability()}; Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}, NumPy {np.__version__}, {', '.join(sorted(blas))}"
    )


def main(names: list[str]) -> int:
    """Run the variants and print the table."""
    print(
        f"{machine()}\n\n| variant | variables | result | s |\n| :-- | :-- | :-- | --: |",
        flush=True,
    )
    status = 0
    for name in names or list(VARIANTS):
        failed, line = run(name)
        status |= failed
        print(line, flush=True)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
