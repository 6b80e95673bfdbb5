"""The whole comparison: rates on validation data, the same for every method; then one test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

from experiments.skeleton import Session
from experiments.tables import markdown_table, text_table
from experiments.transfer.figures import draw_fronts, draw_rates
from experiments.transfer.methods import HEAD, methods
from experiments.transfer.report import (
    best,
    curve,
    final_table,
    kept_when_rewound,
    measured,
    rate_table,
)
from experiments.transfer.runs import BATCH, Outcome, Setting

Run = Callable[..., Outcome]


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Parameters
    ----------
    rates, seeds : sequences
        Of the choice.
    final_seeds : sequence of int
        Of the test.
    rank, epochs, batch : int
    names : sequence of str
        Of methods besides a head alone; all for none.
    rewound : sequence of str
        Those of them that are taken back towards zero after the test, and tested again.
    head_rates : sequence of float
        For a head alone; `rates` for none.
    beyond : float, optional
        How many times the chosen rate is tested as well.
    """

    rates: Sequence[float]
    seeds: Sequence[int]
    final_seeds: Sequence[int]
    rank: int
    epochs: int
    batch: int = BATCH
    names: Sequence[str] = ()
    rewound: Sequence[str] = ()
    head_rates: Sequence[float] = ()
    beyond: float | None = None

    @property
    def others(self) -> list[str]:
        """Names of all methods but a head alone."""
        return [*(self.names or (name for name in methods() if name != HEAD))]


SMOKE = Plan((1e-3, 1e-2), (0,), (1,), rank=2, epochs=1)


def study(
    session: Session,
    name: str,
    run: Run,
    plan: Plan,
    labels: tuple[str, str],
    again: Callable[..., tuple[Outcome, Outcome]] | None = None,
) -> None:
    """Compare, and write tables, figures and the record.

    Parameters
    ----------
    session : Session
    name : str
        Of the record.
    run : callable
        Function of a module: method, rate, seed and setting to an outcome.
    plan : Plan
    labels : tuple of str
        What is learnt and what is kept.
    again : callable, optional
        As `run`, for updates that are rewound: what the test says before and after.
    """
    # The new head has a rate of its own, the best one of a head alone, for all updates: rates of
    # updates are compared, not what they do to the head.
    heads = _runs(session, run, plan, {HEAD: plan.head_rates or plan.rates}, None)
    head_rate = _rate(heads, HEAD)
    swept = _runs(session, run, plan, dict.fromkeys(plan.others, plan.rates), head_rate)
    runs = [*heads, *swept]
    chosen = {method: _rate(runs, method) for method in (HEAD, *plan.others)}
    setting = Setting(plan.rank, plan.epochs, head_rate, plan.batch)
    final = _tests(session, run, plan, chosen, setting, again)
    found = measured(runs)
    tables = {"test": final_table(final), "rates": rate_table(runs, found)}
    beyond: list[Outcome] = []
    if plan.beyond is not None:
        higher = {method: chosen[method] * plan.beyond for method in plan.others}
        beyond = _tests(session, run, replace(plan, rewound=()), higher, setting, again)
        tables["beyond"] = final_table(beyond)
    for content in tables.values():
        print(text_table(*content), end="\n\n")
    draw_rates(runs, session.folder / f"{name}-rates.png", labels[0])
    draw_fronts(runs, final, session.folder / f"{name}-fronts.png", labels, beyond=beyond)
    session.write(
        f"{name}.json",
        settings={
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items() if v != ()
        },
        head_rate=head_rate,
        peft=version("peft") if find_spec("peft") is not None else "not installed",
        runs=[asdict(o) for o in runs],
        final=[asdict(o) for o in final],
        beyond=[asdict(o) for o in beyond],
        measured=[*found],
        rewound=[*kept_when_rewound(final)],
        tables={key: markdown_table(*content) for key, content in tables.items()},
    )


def _runs(
    session: Session,
    run: Run,
    plan: Plan,
    rates: Mapping[str, Sequence[float]],
    head_rate: float | None,
) -> list[Outcome]:
    calls = [
        partial(run, method, lr, seed, Setting(plan.rank, plan.epochs, head_rate or lr, plan.batch))
        for seed in plan.seeds
        for method, every in rates.items()
        for lr in every
    ]
    return session.run(calls, "rates" if head_rate else "rates of the head")


def _tests(
    session: Session,
    run: Run,
    plan: Plan,
    rates: Mapping[str, float],
    setting: Setting,
    again: Callable[..., tuple[Outcome, Outcome]] | None,
) -> list[Outcome]:
    """Return tests at some rates, method by method; of all methods for one seed after another."""
    calls: list[partial[Outcome]] = []
    rewound: list[partial[tuple[Outcome, Outcome]]] = []
    for seed in plan.final_seeds:
        for method, lr in rates.items():
            if again is not None and method in plan.rewound:
                rewound.append(partial(again, method, lr, seed, setting))
            else:
                calls.append(partial(run, method, lr, seed, setting, test=True))
    once = session.run(calls, "test")
    twice = session.run(rewound, "test and back")
    found = [*once, *(outcome for pair in twice for outcome in pair)]
    order = [name for method in rates for name in (method, f"{method}, rewound")]
    return sorted(found, key=lambda o: order.index(o.method))


def _rate(runs: Sequence[Outcome], method: str) -> float:
    seeds = {o.seed for o in runs}
    top = best(curve(runs, method, sorted(seeds))).log_rate
    return min((o.lr for o in runs), key=lambda lr: abs(10**top / lr - 1))
