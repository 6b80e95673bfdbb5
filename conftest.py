"""Shared by the tests and the examples in docstrings: each has a random state of its own.

Whatever draws from the global generators of torch, NumPy or Python gets numbers that depend on its
own name only, never on what ran before it. ``LOWRANK_OPT_TEST_SALT`` gives all of them other
numbers, and runs them in another order: a test that then fails rests on luck.
"""

import gc
import os
import random
import re
import zlib

import numpy as np
import pytest
import torch
from _pytest.doctest import _get_checker
from hypothesis import register_random

SALT = os.environ.get("LOWRANK_OPT_TEST_SALT", "")


def seed_globally(name: str) -> None:
    """Set the global generators to a state that the name and the salt decide."""
    seed = zlib.crc32(f"{SALT}{name}".encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


class TorchGenerator:
    """The global generator of torch, which hypothesis sets back before each example."""

    def seed(self, value: int) -> None:
        torch.default_generator.manual_seed(zlib.crc32(f"{SALT}{value}".encode()))

    def getstate(self) -> torch.Tensor:
        return torch.default_generator.get_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.default_generator.set_state(state)


# Hypothesis keeps no strong reference.
TORCH_GENERATOR = TorchGenerator()
register_random(TORCH_GENERATOR)


# Torch and NumPy print whole numbers as "8.": to pytest's option NUMBER no decimals are shown, and
# all from 7 to 9 would do.
WHOLE = re.compile(r"(?<![\w.])(\d+)\.(?![\w.])")
CHECKER = type(_get_checker())


def check_output(checker: object, want: str, got: str, flags: int) -> bool:
    """Compare what an example prints, whole numbers to four decimals."""
    return AS_WRITTEN(checker, WHOLE.sub(r"\1.0000", want), got, flags)


AS_WRITTEN, CHECKER.check_output = CHECKER.check_output, check_output


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests in another order if there is a salt."""
    if SALT:
        random.Random(SALT).shuffle(items)


def pytest_collection_finish() -> None:
    """Take what has been imported and collected out of every further garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a module is imported."""
    seed_globally(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> None:
    """Before a fixture is made: one of a module is made for whichever test comes first."""
    parameter = getattr(request, "param_index", 0)
    seed_globally(f"{fixturedef.baseid}::{fixturedef.argname}[{parameter}]")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Before a test runs, after its fixtures are made."""
    seed_globally(item.nodeid)
