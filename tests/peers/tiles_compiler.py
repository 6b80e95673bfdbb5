"""What the launchers of the Triton backend start, compiled without a device, and the report of it.

Kernels are replaced by records of how they are started; each is compiled by Triton for a named
generation of GPUs, and assembled by the ptxas of its wheel, which counts registers and spills.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowrank_opt.kernels.tiles import entries, gaussian, ranking_kernels, rows, sizes

NAMES = {
    **{torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"},
    **{torch.int8: "i8", torch.int32: "i32", torch.int64: "i64"},
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Of a multiprocessor: bytes of shared memory (one more KiB goes to each program) and registers.
SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
REGISTERS, PROGRAMS, WARPS = 1 << 16, 32, 64


class Launch(NamedTuple):
    """A kernel and what it is compiled for."""

    kernel: object
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    warps: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def resident(self) -> int:
        """Return the number of warps that is stated to fit on a multiprocessor."""
        known = dict(self.constants)
        if self.name == "posterior_kernel":
            return sizes.posterior_tile(known["D"] + 1).resident
        if "TOP" in known:
            return sizes.ranking_tile(known["K"], known["TOP"]).resident
        if "BLOCK" in known:
            return sizes.gram_tile(known["K"]).resident
        short, whole = sizes.vector_tiles(known["K"], torch.float32)
        return (short if known["ROWS"] == short.rows else whole).resident


class Report(NamedTuple):
    """What the compiler and the assembler say of a kernel."""

    registers: int
    spilled: int
    shared: int
    wide_loads: int
    resident: int


class Recorder:
    """Stands for a kernel, and notes how it is started."""

    def __init__(self, kernel: object, found: list[Launch]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def start(*arguments: object, num_warps: int, **constants: object) -> None:
            given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
            fixed = {p.name for p in self.kernel.params if p.is_constexpr}
            fixed |= {name for name, x in given.items() if x is None}
            signature = {k: "constexpr" if k in fixed else _type(x) for k, x in given.items()}
            constant = {k: x for k, x in given.items() if k in fixed}
            launch = Launch(
                self.kernel, tuple(signature.items()), tuple(constant.items()), num_warps
            )
            if launch not in self.found:
                self.found.append(launch)

        return start


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record the starts of kernels instead of running them."""
    found: list[Launch] = []
    with ExitStack() as stack:
        for module in (entries, gaussian, ranking_kernels, rows):
            for name, kernel in vars(module).items():
                if name.endswith("_kernel"):
                    stack.enter_context(mock.patch.object(module, name, Recorder(kernel, found)))
        yield found


def report_of(launch: Launch, generation: int) -> Report:
    """Compile for sm_80, sm_90 or sm_100."""
    pointers = [k for k, (_, kind) in enumerate(launch.signature) if kind.startswith("*")]
    # As torch allocates.
    aligned = {(k,): [["tt.divisibility", 16]] for k in pointers}
    source = ASTSource(launch.kernel, dict(launch.signature), dict(launch.constants), aligned)
    target, options = GPUTarget("cuda", generation, 32), {"num_warps": launch.warps}
    compiled = triton.compile(source, target=target, options=options)
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    registers, spilled = _assembled(ptx, generation)
    programs = min(
        PROGRAMS,
        WARPS // launch.warps,
        REGISTERS // (-(-registers // 8) * 8 * 32 * launch.warps),
        SHARED[generation] // (shared + 1024),
    )
    wide = len(re.findall(r"ld\.global\S*\.(?:v4\.b32|v2\.b64)", ptx))
    wide += len(re.findall(r"cp\.async\S* \[.*?\], \[.*?\], 0x10,", ptx))
    return Report(registers, spilled, shared, wide, programs * launch.warps)


def _assembled(ptx: str, generation: int) -> tuple[int, int]:
    tool = TOOLS / ("ptxas-blackwell" if generation >= 100 else "ptxas")
    found = re.search(r"\.target (\w+)", ptx)
    assert found is not None, "every PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        words = [tool, "-v", f"--gpu-name={found[1]}", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert registers is not None, done.stderr
    assert len(spills) == 2, done.stderr
    return int(registers[1]), sum(map(int, spills))


def _type(x: object) -> str:
    if isinstance(x, Tensor):
        return f"*{NAMES[x.dtype]}"
    return {int: "i32", float: "fp32"}[type(x)]
