"""Compiled loops sum in one order, wherever their arrays happen to lie in memory.

The compiler splits a sum into lanes, in an order of its own, where it sees at run time that the
arrays that are written lie apart from those that are read. Two runs of one program then differ in
the last bit, and a killed one that goes on does not end as one that never stopped. So a loop that
sums writes nothing; that is read off the source, as the compiler decides anew on each processor.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank_opt.kernels import loops

FILES = sorted(Path(loops.__file__).parent.glob("*.py"))


def loops_that_sum_and_write(source: str) -> list[int]:
    """Return the lines of innermost loops that carry a sum and write into an array."""
    functions = [f for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef)]
    inner = (loop for f in functions if f.decorator_list for loop in innermost(f))
    return [x.lineno for x in inner if any(carried(x)) and (written(x) or any(in_place(x)))]


def innermost(function: ast.FunctionDef) -> Iterator[ast.For]:
    for loop in ast.walk(function):
        if isinstance(loop, ast.For) and not any(
            isinstance(x, ast.For | ast.While) for part in loop.body for x in ast.walk(part)
        ):
            yield loop


def carried(loop: ast.For) -> Iterator[str]:
    """Names to which the loop adds without setting them first, but for counters; and places."""
    indices = {
        name.id
        for x in ast.walk(loop)
        if isinstance(x, ast.Subscript)
        for name in ast.walk(x.slice)
        if isinstance(name, ast.Name)
    }
    own: set[str] = set()
    for x in (x for part in loop.body for x in ast.walk(part)):
        if isinstance(x, ast.Assign):
            own |= {y.id for t in x.targets for y in ast.walk(t) if isinstance(y, ast.Name)}
        elif (
            isinstance(x, ast.AugAssign)
            and isinstance(x.target, ast.Name)
            and x.target.id not in own | indices
        ):
            yield x.target.id
    yield from in_place(loop)


def in_place(loop: ast.For) -> Iterator[str]:
    """Places that stay where they are while the loop adds to them: ``b[i] -= A[i, k] * b[k]``."""
    variables = {x.id for x in ast.walk(loop.target) if isinstance(x, ast.Name)}
    variables |= {
        y.id
        for x in ast.walk(loop)
        if isinstance(x, ast.Assign | ast.AugAssign)
        for y in ast.walk(x.targets[0] if isinstance(x, ast.Assign) else x.target)
        if isinstance(y, ast.Name) and isinstance(y.ctx, ast.Store)
    }
    for x in ast.walk(loop):
        if isinstance(x, ast.AugAssign) and isinstance(x.target, ast.Subscript):
            names = {y.id for y in ast.walk(x.target.slice) if isinstance(y, ast.Name)}
            if not names & variables:
                yield ast.unparse(x.target)


def written(loop: ast.For) -> bool:
    return any(
        isinstance(x, ast.Subscript) and isinstance(x.ctx, ast.Store) for x in ast.walk(loop)
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_loop_that_sums_writes_nothing(file: Path):
    # Whatever order the file allows: a licence that is given later must find no such loop.
    assert loops_that_sum_and_write(file.read_text()) == []


@pytest.mark.parametrize(
    "body",
    [
        "out[k] = 2 * x[k]\n        total += x[k]",
        "e = x[k] - y[k]\n        if w is not None:\n            e *= w[k]\n"
        "        total += e * e\n        x[k] = e + e",
        "out[i] -= x[k] * y[k]",
        "s = x[k]\n        out[s] = s\n        total = total\n        total2 -= s",
    ],
)
def test_others_are_found(body: str):
    source = f"@njit\ndef f(x, y, w, out, i, total):\n    for k in range(9):\n        {body}\n"
    assert loops_that_sum_and_write(source) == [3]


@pytest.mark.parametrize(
    "body",
    [
        "total += x[k]",
        "out[k] += 2 * x[k]",
        "out[n] = x[k]\n        n += 1",
        "e = x[k]\n        e += y[k]\n        out[k] = e",
        "u = x[k]\n        out[u, i] += y[k]",
    ],
)
def test_lanes_and_counters_pass(body: str):
    source = f"@njit\ndef f(x, y, w, out, i, total):\n    for k in range(9):\n        {body}\n"
    assert loops_that_sum_and_write(source) == []
