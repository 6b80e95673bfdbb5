"""One example of a law: what to build, with which parameters, towards which target."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor

from lowrank_opt.errors import RankError, ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.calls import keywords_of
from lowrank_opt.testing.cases.charts import Chart, chart_of
from lowrank_opt.testing.cases.members import Member
from lowrank_opt.testing.cases.parameters import FreeParameters

Factory = Callable[..., Parameterization]
M = TypeVar("M")


class RefusedCase(Exception):  # noqa: N818 (no error: the factory takes other shapes)
    """A factory that refuses a shape or rank."""


@dataclass(frozen=True)
class Case:
    """A point at which a law is tried; its `repr` is runnable code.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    parameters : FreeParameters
        Their seed is the seed of everything random in the example.
    target : Member
        The member of the feasible set to be reached, for laws about right inverses.

    Examples
    --------
    >>> Case((2, 1), 1, FreeParameters("zero"))
    Case((2, 1), 1, FreeParameters('zero', (1.0,), seed=0))
    """

    shape: tuple[int, int]
    rank: int
    parameters: FreeParameters = field(default_factory=FreeParameters)
    target: Member = field(default_factory=Member)

    def __repr__(self) -> str:
        p, t = self.parameters, self.target
        parameters = f"FreeParameters({p.structure!r}, {p.magnitudes}, seed={p.seed})"
        target = f"Member({t.values!r}, {t.size}, {t.frames!r}, seed={t.seed})"
        last = "" if t == Member() else f", {target}"
        return f"Case({self.shape}, {self.rank}, {parameters}{last})"

    def build(
        self,
        make: Factory,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Parameterization:
        """Return what the factory makes, holding the case's parameters."""
        with seeded_elsewhere(0):
            return Subject(make, self, dtype, torch.device(device)).module()


@runtime_checkable
class HasTolerance(Protocol):
    """A factory of maps that are not computed to the last digits."""

    @property
    def rtol(self) -> float | None:
        """What counts as rounding, relative to the set's size."""
        ...

    @property
    def least_rtol(self) -> float:
        """What the digits explain that were there before, unless `rtol` says more or less."""
        ...


@dataclass(frozen=True)
class Trial(Generic[M]):
    """What the body of a law works on: something of the user's, at one case.

    Everything random comes from the case's seed, so that a law gives one verdict on one case.

    Parameters
    ----------
    make : object
        What the user passed.
    case : Case
    dtype : torch.dtype
    device : torch.device
    """

    make: M
    case: Case
    dtype: torch.dtype
    device: torch.device

    @property
    def seed(self) -> int:
        """The seed of the case."""
        return self.case.parameters.seed

    @property
    def rng(self) -> np.random.Generator:
        """A new NumPy generator, the same one each time."""
        return np.random.default_rng(self.seed)

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return a new generator of torch on the case's device, the same one for each `salt`."""
        return torch.Generator(self.device).manual_seed(100 * self.seed + salt)

    def normal(self, *sizes: int, salt: int = 1) -> Tensor:
        """Return normal numbers in the dtype and on the device of the case."""
        generator = torch.Generator().manual_seed(1000 * self.seed + 500 + salt)
        values = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return values.to(device=self.device, dtype=self.dtype)

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of all entries, row by row, shapes (m n,)."""
        m, n = self.case.shape
        rows = torch.arange(m, device=self.device).repeat_interleave(n)
        return rows, torch.arange(n, device=self.device).repeat(m)

    @property
    def eps(self) -> float:
        """Machine precision of the dtype."""
        return torch.finfo(self.dtype).eps


@dataclass(frozen=True)
class Subject(Trial[Factory]):
    """A factory of parameterizations at one case, in one dtype on one device."""

    def fresh(self, *, dtype: torch.dtype | None = None, salt: int = 0) -> Parameterization:
        """Return a new module as constructed; another `salt` gives another random start."""
        with seeded(self.seed + salt, self.device):
            return self._construct(self.dtype if dtype is None else dtype)

    def _construct(self, dtype: torch.dtype) -> Parameterization:
        options = {"dtype": dtype, "device": self.device}
        passed = {name: value for name, value in options.items() if name in self.keywords}
        try:
            module = self.make(self.case.shape, self.case.rank, **passed)
        except (ShapeError, RankError) as error:
            raise RefusedCase(str(error)) from error
        if "dtype" not in passed:
            module = module.to(dtype=dtype)
        return module if "device" in passed else module.to(device=self.device)

    def module(self) -> Parameterization:
        """Return a new module that holds the case's parameters."""
        module = self.fresh()
        self.case.parameters.fill_(module)
        return module

    @property
    def keywords(self) -> frozenset[str]:
        """Which of ``dtype`` and ``device`` the factory takes by name."""
        return keywords_of(self.make)

    def chart(self, module: Parameterization) -> Chart:
        """Return the oracle's view of the feasible set."""
        chart = chart_of(module.feasible_set)
        if not isinstance(self.make, HasTolerance):
            return chart
        # The root of eps: other packages work in the dtype, by matrix exponentials and inverses.
        own = max(self.eps**0.5, self.make.least_rtol)
        return replace(chart, rtol=own if self.make.rtol is None else self.make.rtol)

    def target(self, module: Parameterization) -> LowRankOperator:
        """Return the case's member of the feasible set."""
        return self.case.target.build(
            module.feasible_set, self.case.shape, dtype=self.dtype, device=self.device
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None]:
    """Seed the default generators for a while, for factories that draw from them.

    Only within `seeded_elsewhere`: NumPy's generator is set back but for the second of a pair of
    normal numbers.
    """
    state, own = random.getstate(), mtrand.get_bit_generator()
    random.seed(seed)
    # A state of NumPy takes longer to copy than most modules to construct.
    mtrand.set_bit_generator(_spare(own))
    np.random.seed(seed)  # noqa: NPY002 (a factory may)
    try:
        with _seeded_torch(seed, device):
            yield
    finally:
        random.setstate(state)
        mtrand.set_bit_generator(own)


@lru_cache(maxsize=8)
def _spare(used: np.random.BitGenerator) -> np.random.BitGenerator:
    """Return another bit generator than the one in use, the same one each time."""
    return np.random.MT19937(0)


@contextmanager
def seeded_elsewhere(seed: int) -> Generator[Callable[[], None]]:
    """As `seeded`, for the generators of Python and NumPy; yields what seeds them again."""
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a factory may)

    def reseed() -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002

    reseed()
    try:
        yield reseed
    finally:
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _seeded_torch(seed: int, device: torch.device) -> Generator[None]:
    if device.type != "cpu":
        with torch.random.fork_rng(devices=[device]):
            torch.manual_seed(seed)
            yield
        return
    # As fork_rng, without asking all devices: that takes longer than most constructions.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
