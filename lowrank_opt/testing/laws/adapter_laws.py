"""Laws of adapters: ``F(x; W0 + dW)``, with the dense sum written by the check itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_opt.errors import RankError, ShapeError
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.testing.cases.adapter_method import METHOD, AdapterMethod, ModelAndInput
from lowrank_opt.testing.cases.case import RefusedCase, Subject
from lowrank_opt.testing.laws.adapter_machine import adapter_machine, play_out
from lowrank_opt.testing.laws.adapter_stage import Stage
from lowrank_opt.testing.search.verdict import NotApplicable, expect

Models = Callable[[tuple[int, int]], Mapping[str, ModelAndInput]]


@dataclass(frozen=True)
class AdapterTrial:
    """What the laws of adapters work with, in the place of a factory.

    Parameters
    ----------
    make : callable
        ``make(shape, rank)``.
    method : AdapterMethod
    models : callable
        From a shape to models by name.
    written : callable
        What the user passed, for programs.
    options : mapping
        Those of `check_adapter` that differ from its defaults, for programs.
    """

    make: Callable[[tuple[int, int], int], Parameterization]
    method: AdapterMethod
    models: Models
    written: Callable[..., Parameterization]
    options: Mapping[str, object] = field(default_factory=dict[str, object])

    def __call__(self, shape: tuple[int, int], rank: int) -> Parameterization:
        """Return what the factory makes."""
        return self.make(shape, rank)


@dataclass(frozen=True)
class Pair:
    """A base model, and a copy of it that is adapted."""

    name: str
    base: nn.Module
    adapted: nn.Module
    inputs: tuple[Tensor, ...]
    method: AdapterMethod
    tolerance: float

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the adapter."""
        return {k: p for k, p in self.adapted.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """Return the dense W0 + dW of every adapted weight, by the names of the base model."""
        base = dict(self.base.named_parameters())
        updates = self.method.updates(self.adapted)
        expect(bool(updates), f"{self.name}: nothing was adapted")
        return {k: base[k].detach() + v for k, v in updates.items()}

    def oracle(self) -> Tensor:
        """Return ``F(x; W0 + dW)``."""
        return functional_call(self.base, self.weights(), self.inputs)

    def near(self, found: Tensor, truth: Tensor, what: str) -> None:
        """Expect two outputs to be equal up to rounding."""
        found, truth = found.detach(), truth.detach()
        expect(found.shape == truth.shape, f"{self.name}: {what} has shape {tuple(found.shape)}")
        expect(found.dtype == truth.dtype, f"{self.name}: {what} is of {found.dtype}")
        error = float((found - truth).abs().max()) if truth.numel() else 0.0
        size = float(truth.abs().max()) + 1 if truth.numel() else 1.0
        expect(
            error <= self.tolerance * size,
            f"{self.name}: {what} differs from F(x; W0 + dW) by {error:.2e}, at size {size:.2g}",
        )


def pairs(subject: Subject, *, shaken: bool = True) -> Iterator[Pair]:
    """Yield a pair for each kind of model; `shaken` moves the adapter off its start."""
    trial = _trial(subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        for name, (base, inputs) in trial.models(subject.case.shape).items():
            base = base.to(subject.dtype)
            inputs = tuple(x.to(subject.dtype) if x.is_floating_point() else x for x in inputs)
            adapted = _adapted(subject, base)
            pair = Pair(name, base, adapted, inputs, trial.method, 4e3 * subject.eps)
            if shaken:
                shake(pair)
            yield pair


def _trial(subject: Subject) -> AdapterTrial:
    assert isinstance(subject.make, AdapterTrial), "laws of adapters work on a trial"
    return subject.make


def _adapted(subject: Subject, base: nn.Module) -> nn.Module:
    """Return an adapted copy of a model."""
    trial, rank = _trial(subject), subject.case.rank
    try:
        return trial.method.adapt(
            copy.deepcopy(base), lambda shape: trial.make(shape, min(rank, *shape))
        )
    except (ShapeError, RankError) as error:
        raise RefusedCase(str(error)) from error


@torch.no_grad()
def shake(pair: Pair, size: float = 0.5) -> None:
    """Write random values into the parameters of the adapter."""
    for p in pair.trainable().values():
        p.copy_(size * torch.randn(p.shape).to(p))


def start(subject: Subject) -> None:
    """Expect an adapted model to compute as the base model until it is trained."""
    for pair in pairs(subject, shaken=False):
        pair.near(pair.adapted(*pair.inputs), pair.base(*pair.inputs), "the start")


def forward(subject: Subject) -> None:
    """Expect F(x; W0 + dW)."""
    for pair in pairs(subject):
        truth = pair.oracle()
        pair.near(pair.adapted(*pair.inputs), truth, "forward")
        with torch.no_grad():
            pair.near(pair.adapted.eval()(*pair.inputs), truth, "forward, evaluating,")


def gradients(subject: Subject) -> None:
    """Expect gradients in the adapter's parameters, those of the dense formula, and no others."""
    for pair in pairs(subject):
        trainable = pair.trainable()
        expect(bool(trainable), f"{pair.name}: the adapted model has nothing to train")
        names = [k for k, _ in pair.base.named_parameters()]
        own = [k for k in trainable if k.replace("base.", "") in names]
        expect(not own, f"{pair.name}: base parameters {own} are not frozen")
        y = pair.adapted(*pair.inputs)
        direction = torch.randn(y.shape).to(y)
        moved = {k: 1e-6 * torch.randn(p.shape).to(p) for k, p in trainable.items()}
        found = torch.autograd.grad(
            (y * direction).sum(), list(trainable.values()), allow_unused=True
        )
        slope = sum(
            float((g.double() * moved[k].double()).sum())
            for (k, g) in zip(trainable, found, strict=True)
            if g is not None
        )
        if subject.dtype != torch.float64:
            continue
        change = _oracle_change(pair, moved, direction)
        size = sum(
            float(g.norm() * moved[k].norm())
            for (k, g) in zip(trainable, found, strict=True)
            if g is not None
        )
        expect(
            abs(change - slope) <= 1e-3 * (size + abs(change)) + 1e-13,
            f"{pair.name}: the derivative of F(x; W0 + dW) is {change:.6g}, not {slope:.6g}",
        )


@torch.no_grad()
def _oracle_change(pair: Pair, moved: dict[str, Tensor], direction: Tensor) -> float:
    """Return the central difference of the oracle along a direction in the adapter."""
    values: list[float] = []
    for sign in (1, -2):
        for k, p in pair.trainable().items():
            p.add_(sign * moved[k])
        values.append(float((pair.oracle() * direction).sum()))
    for k, p in pair.trainable().items():
        p.add_(moved[k])
    return (values[0] - values[1]) / 2


def merging(subject: Subject) -> None:
    """Expect the merged model to compute F(x; W0 + dW), and unmerging to undo it bit for bit."""
    for pair in pairs(subject):
        truth, before = pair.oracle(), pair.adapted(*pair.inputs)
        state = _tensors(pair.adapted)
        pair.method.merge(pair.adapted)
        with torch.no_grad():
            pair.near(pair.adapted(*pair.inputs), truth, "the merged model")
        pair.method.unmerge(pair.adapted)
        after = _tensors(pair.adapted)
        changed = [k for k, v in state.items() if k not in after or not torch.equal(v, after[k])]
        expect(not changed, f"{pair.name}: merging and unmerging changes {changed[:3]}")
        same = torch.equal(before, pair.adapted(*pair.inputs))
        expect(same, f"{pair.name}: unmerging does not restore the forward bit for bit")


def disabling(subject: Subject) -> None:
    """Expect the base model while disabled, merged or not, and the adapted one afterwards."""
    for pair in pairs(subject):
        truth, adapted = pair.base(*pair.inputs), pair.adapted(*pair.inputs)
        with pair.method.disabled(pair.adapted):
            pair.near(pair.adapted(*pair.inputs), truth, "the disabled model, as dW = 0, ")
        same = torch.equal(adapted, pair.adapted(*pair.inputs))
        expect(same, f"{pair.name}: the adapter is not enabled again")
        pair.method.merge(pair.adapted)
        with pair.method.disabled(pair.adapted):
            pair.near(pair.adapted(*pair.inputs), truth, "the merged model, disabled,")


def frozen(subject: Subject) -> None:
    """Expect steps of an optimizer to leave every base weight as it is."""
    for pair in pairs(subject):
        kept = {k: v for k, v in _tensors(pair.adapted).items() if k not in pair.trainable()}
        optimizer = torch.optim.SGD(pair.adapted.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            pair.adapted(*pair.inputs).square().sum().backward()
            optimizer.step()
        after = _tensors(pair.adapted)
        changed = [k for k, v in kept.items() if not torch.equal(v, after[k])]
        expect(not changed, f"{pair.name}: training changes {changed[:3]}")
        pair.near(pair.adapted(*pair.inputs), pair.oracle(), "forward after training")


def state(subject: Subject) -> None:
    """Expect the state dict, and a deep copy, to carry the whole adapted model."""
    for pair in pairs(subject):
        expected = pair.adapted(*pair.inputs)
        other = _adapted(subject, pair.base)
        try:
            other.load_state_dict(pair.adapted.state_dict())
        except RuntimeError as error:
            expect(False, f"{pair.name}: the state dict does not load: {error}")
        pair.near(other(*pair.inputs), expected, "another model with the state dict")
        twin = copy.deepcopy(pair.adapted)
        shake(pair)
        pair.near(twin(*pair.inputs), expected, "a deep copy, the original having moved,")


def orders(subject: Subject) -> None:
    """Expect a model to stay equal to the dictionary, whatever is done to its adapters."""
    trial, case = _trial(subject), subject.case
    if trial.method is not METHOD:
        raise NotApplicable("the operations that are played are those of lowrank_opt.nn")

    def make(shape: tuple[int, int]) -> Parameterization:
        return trial.make(shape, min(case.rank, *shape))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        stages = {
            name: _stage(base.to(subject.dtype), inputs, subject.dtype)
            for name, (base, inputs) in trial.models(case.shape).items()
        }
        machine = adapter_machine(stages, make, tolerance=4e4 * subject.eps)
        try:
            play_out(machine, seed=subject.seed, runs=3, steps=8)
        except (ShapeError, RankError) as error:
            raise RefusedCase(str(error)) from error


def _stage(base: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Stage:
    given = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return Stage(lambda: copy.deepcopy(base), given, ".*")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
