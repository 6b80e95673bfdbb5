"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from lowrank_opt.kernels import dispatch


@pytest.fixture(params=["numba", "torch"])
def row_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test with the loops of the CPU, and with what other devices run, on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    dispatch.on_cpu_loops.cache_clear()
    yield request.param
    dispatch.on_cpu_loops.cache_clear()
