"""Adapters in every order: a Hypothesis state machine against the dictionary model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from lowrank_opt.testing.laws import adapter_moves as moves
from lowrank_opt.testing.laws.adapter_play import Make, Play
from lowrank_opt.testing.laws.adapter_stage import Operations, Stage
from lowrank_opt.testing.search.verdict import Violation

NAMES = ["a", "b", "c"]
ONE = st.lists(st.integers(0, 2), min_size=1, max_size=1)
CHOICE = st.lists(st.integers(0, 2), min_size=1, max_size=2)
WEIGHTS = st.lists(st.sampled_from([1.0, 1.0, 0.5, -2.0]), min_size=2, max_size=2)
STEPS = ["train", "train", "freeze", "convert"]


def adapter_machine(
    stages: Mapping[str, Stage],
    make: Make,
    operations: Operations | None = None,
    *,
    tolerance: float = 1e-9,
) -> type[RuleBasedStateMachine]:
    """Return a state machine that plays operations on adapters in every order.

    Parameters
    ----------
    stages : mapping of str to Stage
        The kinds of models to play with.
    make : callable
        From a shape to a parameterization.
    operations : Operations, optional
        Those of `lowrank_opt.nn` by default.
    tolerance : float
        Of outputs, relative to their size and one more.

    Examples
    --------
    >>> import lowrank_opt as lo
    >>> import torch
    >>> stage = Stage(lambda: torch.nn.Linear(3, 2).double(), (torch.ones(4, 3).double(),), ".*")
    >>> adapter_machine({"linear": stage}, lambda shape: lo.Factored(shape, 1)).__name__
    'AdapterMachine'
    """

    class AdapterMachine(RuleBasedStateMachine):
        play: Play

        @initialize(kind=st.sampled_from(sorted(stages)), heads=st.lists(st.booleans(), max_size=2))
        def start(self, kind: str, heads: list[bool]) -> None:
            self.play = Play(stages[kind], make, operations, tolerance=tolerance)
            for name, head in zip(NAMES, heads, strict=False):
                self.play.step("adapt", name=name, head=head)

        @rule(
            name=st.sampled_from(NAMES),
            head=st.booleans(),
            magnitude=st.booleans(),
            dropout=st.sampled_from([0.0, 0.5]),
        )
        def adapt(self, name: str, head: bool, magnitude: bool, dropout: float) -> None:
            given = {"head": head, "magnitude": magnitude, "dropout": dropout}
            self.play.step("adapt", name=name, **given)

        @rule(chosen=CHOICE, weights=WEIGHTS)
        def switch(self, chosen: list[int], weights: list[float]) -> None:
            self.play.step("switch", weights=dict(zip(self.known(chosen), weights, strict=False)))

        @rule(chosen=CHOICE, weights=WEIGHTS, name=st.sampled_from(NAMES))
        def combine(self, chosen: list[int], weights: list[float], name: str) -> None:
            given = dict(zip(self.known(chosen), weights, strict=False))
            self.play.step("combine", weights=given, name=name)

        @rule(chosen=ONE)
        def remove(self, chosen: list[int]) -> None:
            self.play.step("remove", name=self.known(chosen)[0])

        @rule(step=st.sampled_from(STEPS))
        def do(self, step: str) -> None:
            self.play.step(step)

        @rule(assign=st.booleans())
        def state(self, assign: bool) -> None:
            self.play.step("state", assign=assign)

        @rule(step=st.sampled_from(["merge", "unmerge", "enter", "leave"]))
        def block(self, step: str) -> None:
            self.play.step(step)

        @rule(how=st.sampled_from(["deepcopy", "pickle"]))
        def copy(self, how: str) -> None:
            self.play.step("copy", how=how)

        @rule(chosen=ONE, new=st.sampled_from(NAMES), fresh=st.booleans())
        def reload(self, chosen: list[int], new: str, fresh: bool) -> None:
            self.play.step("reload", name=self.known(chosen)[0], new=new, fresh=fresh)

        @rule(chosen=st.lists(st.integers(-1, 2), min_size=1, max_size=3))
        def per_sample(self, chosen: list[int]) -> None:
            known = [None if i < 0 else self.known([i])[0] for i in chosen]
            self.play.step("check_samples", names=known)

        @rule(chosen=st.lists(st.integers(-1, 2), min_size=1, max_size=3))
        def route(self, chosen: list[int]) -> None:
            known = [None if i < 0 else self.known([i])[0] for i in chosen]
            self.play.step("route", names=known)

        @rule(
            chosen=ONE,
            new=st.sampled_from(NAMES),
            fresh=st.booleans(),
            wrapper=st.sampled_from(sorted(moves.WRAPPERS)),
        )
        def wrap(self, chosen: list[int], new: str, fresh: bool, wrapper: str) -> None:
            name = self.known(chosen)[0]
            self.play.step(moves.reload_wrapped, name=name, new=new, fresh=fresh, wrapper=wrapper)

        @rule(chosen=ONE, new=st.sampled_from(NAMES))
        def exchange(self, chosen: list[int], new: str) -> None:
            self.play.step(moves.exchange_with_peft, name=self.known(chosen)[0], new=new)

        @rule(chosen=ONE)
        def set_free(self, chosen: list[int]) -> None:
            self.play.step(moves.set_free, name=self.known(chosen)[0])

        @rule(chosen=ONE, through_data=st.booleans())
        def write(self, chosen: list[int], through_data: bool) -> None:
            given = {"name": self.known(chosen)[0], "through_data": through_data}
            self.play.step(moves.write, **given)

        @rule(which=st.integers(0, 5))
        def freeze_one(self, which: int) -> None:
            self.play.step(moves.freeze_one, which=which)

        @rule(which=st.integers(0, 5))
        def train_base(self, which: int) -> None:
            self.play.step(moves.train_base, which=which)

        @rule(chosen=CHOICE, weights=WEIGHTS)
        def repeat(self, chosen: list[int], weights: list[float]) -> None:
            given = dict(zip(self.known(chosen), weights, strict=False))
            self.play.step(moves.switch_before_backward, weights=given)

        def known(self, chosen: list[int]) -> list[str]:
            """Return adapters that the model has, or a name that it has not."""
            names = sorted(self.play.book.pages)
            return [names[i % len(names)] for i in chosen] if names else ["none"]

        def teardown(self) -> None:
            if hasattr(self, "play"):
                self.play.leave_all()

    return AdapterMachine


def play_out(
    machine: type[RuleBasedStateMachine],
    *,
    seed: int,
    runs: int,
    steps: int,
    shrink: bool = True,
) -> None:
    """Run a machine; raise `Violation` with the shortest sequence that breaks the equality.

    Processes that play together take the same steps; they find the first sequence (`shrink=False`),
    for after a failure they are not together any more.
    """
    options = settings(
        max_examples=runs,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
    )
    run: Callable[..., Any] = seeded(seed)(machine)
    try:
        run_state_machine_as_test(run, settings=options)
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
