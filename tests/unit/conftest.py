"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from lowrank_opt.kernels import use_backend


@pytest.fixture(params=["numba", "torch"])
def row_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with the loops of the CPU, and with what other devices run, on the CPU."""
    with use_backend(request.param):
        yield request.param
