"""The whole comparison: rates on validation data, the same for every method; then one test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

from experiments.skeleton import Session
from experiments.tables import markdown_table, text_table
from experiments.transfer.figures import draw_fronts, draw_rates
from experiments.transfer.methods import HEAD, methods
from experiments.transfer.report import best, curve, final_table, measured, rate_table
from experiments.transfer.runs import Outcome, Setting

Run = Callable[..., Outcome]


@dataclass(frozen=True)
class Plan:
    """How much is run: rates and seeds of the choice, seeds of the test, rank, epochs."""

    rates: Sequence[float]
    seeds: Sequence[int]
    final_seeds: Sequence[int]
    rank: int
    epochs: int


SMOKE = Plan((1e-3, 1e-2), (0,), (1,), rank=2, epochs=1)


def study(session: Session, name: str, run: Run, plan: Plan, labels: tuple[str, str]) -> None:
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
    """
    # The new head has a rate of its own, the best one of a head alone, for all updates: rates of
    # updates are compared, not what they do to the head.
    heads = _runs(session, run, plan, {HEAD: plan.rates}, None)
    head_rate = _rate(heads, HEAD)
    others = [method for method in methods() if method != HEAD]
    swept = _runs(session, run, plan, dict.fromkeys(others, plan.rates), head_rate)
    runs = [*heads, *swept]
    setting = Setting(plan.rank, plan.epochs, head_rate)
    final = session.run(
        [
            partial(run, method, _rate(runs, method), seed, setting, test=True)
            for method in methods()
            for seed in plan.final_seeds
        ],
        "test",
    )
    found = measured(runs)
    tables = {"test": final_table(final), "rates": rate_table(runs, found)}
    for content in tables.values():
        print(text_table(*content), end="\n\n")
    draw_rates(runs, session.folder / f"{name}-rates.png", labels[0])
    draw_fronts(runs, final, session.folder / f"{name}-fronts.png", labels)
    session.write(
        f"{name}.json",
        settings={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items()},
        head_rate=head_rate,
        peft=version("peft") if find_spec("peft") is not None else "not installed",
        runs=[asdict(o) for o in runs],
        final=[asdict(o) for o in final],
        measured=[*found],
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
        partial(run, method, lr, seed, Setting(plan.rank, plan.epochs, head_rate or lr))
        for seed in plan.seeds
        for method, every in rates.items()
        for lr in every
    ]
    return session.run(calls, "rates" if head_rate else "rates of the head")


def _rate(runs: Sequence[Outcome], method: str) -> float:
    seeds = {o.seed for o in runs}
    top = best(curve(runs, method, sorted(seeds))).log_rate
    return min((o.lr for o in runs), key=lambda lr: abs(10**top / lr - 1))
