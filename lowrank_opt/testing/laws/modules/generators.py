"""Random numbers: from the generator that is given, and from no other."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import expect

# Starts that would be alike by chance are alike less often than once in a hundred.
_STARTS = 8
_ELSEWHERE = 20_261_130


def operations(
    subject: Subject, module: Parameterization
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what can be asked of a module that is not to be changed by it, by name."""
    member = subject.fresh(salt=1).factors().detach()

    def backward() -> None:
        torch.autograd.backward(module().to_dense().sum(), inputs=[*trainable(module).values()])
        module.zero_grad(set_to_none=True)

    yield "factors()", module.factors
    yield "a call", module
    yield "a backward pass", backward
    yield "feasible_set", lambda: module.feasible_set
    yield "right_inverse()", lambda: module.right_inverse(member)
    yield "certify()", module.certify
    yield "export()", lambda: module.export(torch.float32)
    yield "residual()", lambda: module.residual(member)
    yield "state_dict()", module.state_dict
    yield "repr()", lambda: repr(module)


def trainable(module: Parameterization) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters, by name."""
    return {k: p for k, p in module.named_parameters() if p.requires_grad}


def largest(x: torch.Tensor) -> float:
    """Return the largest entry's size, 0 if there is none."""
    return float(x.abs().max()) if x.numel() else 0.0


def _generators(subject: Subject) -> None:
    module = subject.module()
    for name, operation in operations(subject, module):
        with _global_generators_kept(name), suppress(LowRankError, NotImplementedError):
            operation()
    for mode in (False, True):
        with _global_generators_kept(f"factors() with training={mode}"):
            module.train(mode).factors()
    _expect_own_generator(subject)


def _expect_own_generator(subject: Subject) -> None:
    """Expect zero_() to draw from its generator, the same start from the same seed."""
    try:
        subject.fresh().zero_(generator=subject.generator())
    except NotImplementedError:
        return
    starts = [_start(subject, seed) for seed in range(_STARTS)]
    for seed in range(2):
        again, _ = _start(subject, seed)
        same = all(torch.equal(x, again[k]) for k, x in starts[seed][0].items())
        expect(same, "zero_() gives another start for the same generator")
    # One column has few starts: the frame of a 1 x 1 matrix is 1, whatever is drawn.
    if subject.case.rank == 1 or not all(consumed for _, consumed in starts):
        return
    first = starts[0][0]
    alike = all(all(torch.equal(x, first[k]) for k, x in s.items()) for s, _ in starts)
    expect(not alike, "zero_() draws from its generator and gives one start for all of them")


def _start(subject: Subject, seed: int) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the parameters of a zero start, and whether its generator was used."""
    module = subject.fresh()
    FreeParameters().fill_(module)
    generator = torch.Generator(subject.device).manual_seed(seed)
    before = generator.get_state()
    with _global_generators_kept("zero_(generator=...)"):
        module.zero_(generator=generator)
    expect(generator.initial_seed() == seed, "zero_() seeds the generator that it is given")
    values = {k: p.detach().clone() for k, p in trainable(module).items()}
    return values, not torch.equal(before, generator.get_state())


@contextmanager
def _global_generators_kept(what: str) -> Generator[None]:
    """Expect the default generators of torch, NumPy and Python as they were."""
    own = _states()
    try:
        # Elsewhere than any seed leads to: what has been seeded before would not be seen.
        # Without asking all devices: torch keeps the stack of every call for those not there.
        torch.default_generator.manual_seed(_ELSEWHERE)
        np.random.seed(_ELSEWHERE)  # noqa: NPY002
        random.seed(_ELSEWHERE)
        _ = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        before = _states()
        yield
        for name, x, y in zip(("torch", "NumPy", "Python"), before, _states(), strict=True):
            expect(x == y, f"{what} draws from, or seeds, the global generator of {name}")
    finally:
        torch.set_rng_state(torch.frombuffer(bytearray(own[0]), dtype=torch.uint8))
        np.random.set_state(pickle.loads(own[1]))  # noqa: NPY002
        random.setstate(pickle.loads(own[2]))


def _states() -> tuple[bytes, bytes, bytes]:
    """Return the states of the default generators of torch, NumPy and Python."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),  # noqa: NPY002
        pickle.dumps(random.getstate()),
    )


LAWS = (
    Law(
        "generators",
        "Nothing draws from a global generator, or seeds one; zero_() uses the one it is given.",
        _generators,
        parameters=(FreeParameters("normal"),),
        sides=(2, 6),
        max_examples=2,
        needs=("contract",),
    ),
)
