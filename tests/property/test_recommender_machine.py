"""Ratings that come in any order and container: a dictionary is the model of a `Recommender`."""

import csv
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lowrank_opt.errors import LowRankError
from lowrank_opt.estimators import MatrixCompletion, Recommender

QUICK = {"rank": 1, "penalty": 0.5, "bias_penalty": 1.0, "random_state": 0, "max_iterations": 3}

Line = tuple[object, object, float, float]
Lines = list[Line]

KINDS = {
    "integers": (st.integers(0, 4) | st.integers(2**53, 2**53 + 2), 99),
    "text": (st.sampled_from(["7", "007", "7.0", "ä", "NA", "u1", " 7"]), "one more"),
}
HALVES = st.integers(-8, 8).map(lambda x: x / 2)
# float32 has no integer next to 2**24.
VALUES = st.one_of(HALVES, HALVES, st.just(2.0**24 + 1))
WEIGHTS = st.sampled_from([1.0, 1.0, 0.5, 3.0, 0.0])


def columns(lines: Lines) -> tuple[list, list, list[float]]:
    return tuple(map(list, zip(*(line[:3] for line in lines), strict=True)))


def narrow(lines: Lines) -> object:
    """Return values in float32 where that holds them all."""
    i, j, v = columns(lines)
    single = np.array(v, dtype=np.float32)
    return (i, j, single) if single.tolist() == v else (i, j, v)


def written(lines: Lines) -> str:
    with tempfile.NamedTemporaryFile(
        "w", suffix=".csv", delete=False, encoding="utf-8", newline=""
    ) as file:
        csv.writer(file).writerows([("user", "item", "y"), *(x[:3] for x in lines)])
    return file.name


CONTAINERS: dict[str, Callable[[Lines], Any]] = {
    "lines": lambda lines: [x[:3] for x in lines],
    "columns": columns,
    "float32": narrow,
    "pandas": lambda x: pd.DataFrame(dict(zip(("user", "item", "y"), columns(x), strict=True))),
    "polars": lambda x: pl.DataFrame(dict(zip(("user", "item", "y"), columns(x), strict=True))),
    "file": written,
}


def merged(lines: Lines) -> dict[tuple[object, object], tuple[float, float]]:
    """Return the mean and the weight of each pair; what has no weight is not there."""
    found: dict[tuple[object, object], list[tuple[float, float]]] = {}
    for i, j, v, w in lines:
        if w > 0:
            found.setdefault((i, j), []).append((v, w))
    return {
        pair: (sum(v * w for v, w in x) / sum(w for _, w in x), sum(w for _, w in x))
        for pair, x in found.items()
    }


class Ratings(RuleBasedStateMachine):
    """Plays with a recommender, and with a dictionary of what it was told."""

    @initialize(data=st.data(), kind=st.sampled_from(list(KINDS)))
    def fit(self, data: st.DataObject, kind: str) -> None:
        self.kind = kind
        self.ids, self.stranger = KINDS[kind]
        single = data.draw(st.booleans())
        lines, given = self._drawn(data, HALVES, ["float32"] if single else list(CONTAINERS))
        self.model = Recommender(MatrixCompletion(**QUICK)).fit(*given)
        self.seen = merged(lines)
        self.rows, self.cols = ({x[k] for x in lines} for k in (0, 1))

    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        lines, given = self._drawn(data)
        self.model.partial_fit(*given)
        self._told(lines)

    @rule(data=st.data(), side=st.sampled_from(["rows", "cols"]))
    def fold_in(self, data: st.DataObject, side: str) -> None:
        lines, given = self._drawn(data)
        known, ids = (self.cols, {x[1] for x in lines}), (self.rows, {x[0] for x in lines})
        (there, asked) = known if side == "rows" else ids
        fold = getattr(self.model, f"fold_in_{side}")
        if asked <= there:
            fold(*given)
            self._told(lines)
            return
        with pytest.raises(LowRankError, match=r"must be among the|as they were fitted"):
            fold(*given)

    @rule(data=st.data())
    def come_back_from_a_folder(self, data: st.DataObject) -> None:
        pairs = [(i, j) for i in self.rows for j in self.cols]
        with tempfile.TemporaryDirectory() as folder:
            self.model.save(folder)
            again = Recommender.load(folder)
        np.testing.assert_array_equal(self.model.predict(pairs), again.predict(pairs))
        self.model = again

    @rule(fault=st.sampled_from(["NaN", "kind", "weight", "missing"]))
    def refuse(self, fault: str) -> None:
        """What is refused changes nothing, as the invariants say."""
        (i, j), other = next(iter(self.seen)), 5 if self.kind == "text" else "five"
        lines = {
            "NaN": ([(i, j, 1.0), (self.stranger, j, float("nan"))],),
            "kind": ([(other, other, 1.0)],),
            "weight": ([(self.stranger, j, 1.0)], None, [-1.0]),
            "missing": ([(i, None, 1.0)],),
        }
        with pytest.raises(LowRankError):
            self.model.partial_fit(*lines[fault])

    @invariant()
    @precondition(lambda self: hasattr(self, "model"))
    def entries_are_those_of_the_dictionary(self) -> None:
        model = self.model
        rows, cols = model.row_labels_.to_ids(), model.col_labels_.to_ids()
        assert (self.rows, self.cols) == (set(rows), set(cols))
        assert {type(x) for x in self.rows | self.cols} == {type(x) for x in (*rows, *cols)}
        seen = model.observations_
        weights = [1.0] * len(seen) if seen.weights is None else seen.weights.tolist()
        parts = (seen.rows.tolist(), seen.cols.tolist(), seen.values.tolist(), weights)
        found = {(rows[i], cols[j]): (v, w) for i, j, v, w in zip(*parts, strict=True)}
        assert self.seen.keys() == found.keys()
        # Means of repeated lines are rounded as values are; whole values are none that round.
        single = max(abs(v) for v, _ in self.seen.values()) <= 2**24
        rel = 2 * torch.finfo(seen.dtype if single else torch.float64).eps
        for pair, expected in self.seen.items():
            assert expected == pytest.approx(found[pair], rel=rel, abs=8 * rel if single else 0)

    @invariant()
    @precondition(lambda self: hasattr(self, "model"))
    def answers_are_of_what_is_known(self) -> None:
        known = [{pair[k] for pair in self.seen} for k in (0, 1)]
        users, items = [*self.rows, self.stranger], [*self.cols, self.stranger]
        levels = {(True, True): "pair", (True, False): "row", (False, True): "column"}
        asked = [(i, j) for i in users for j in items]
        expected = [levels.get((i in known[0], j in known[1]), "mean") for i, j in asked]
        assert expected == self.model.predict(asked, return_known=True)[1].tolist()
        found = self.model.recommend(users, k=len(items))
        for user, line in zip(users, found.ids.tolist(), strict=True):
            assert known[1] - {j for i, j in self.seen if i == user} == {
                x for x in line if x is not None
            }

    def _told(self, lines: Lines) -> None:
        self.seen |= merged(lines)
        self.rows |= {x[0] for x in lines}
        self.cols |= {x[1] for x in lines}

    def _drawn(
        self,
        data: st.DataObject,
        values: st.SearchStrategy[float] = VALUES,
        containers: Sequence[str] = tuple(CONTAINERS),
    ) -> tuple[Lines, tuple[Any, ...]]:
        """Return lines, some of them twice, and a container of them."""
        line = st.tuples(self.ids, self.ids, values, WEIGHTS)
        lines = data.draw(st.lists(line, min_size=1, max_size=6))
        weighted = data.draw(st.booleans()) and any(w > 0 for *_, w in lines)
        if not weighted:
            lines = [(*x[:3], 1.0) for x in lines]
        allowed = [x for x in containers if x != "file" or self.kind == "text"]
        table = CONTAINERS[data.draw(st.sampled_from(allowed))](lines)
        return lines, (table, None, [x[3] for x in lines] if weighted else None)


TestRatings = Ratings.TestCase
TestRatings.settings = settings(
    max_examples=15, stateful_step_count=6, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_machine_notices_a_line_that_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recommender, "fold_in_rows", lambda self, *_: self)
    monkeypatch.setattr(Recommender, "partial_fit", lambda self, *_: self)
    brief = settings(TestRatings.settings, phases=(Phase.generate,), max_examples=5)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_state_machine_as_test(Ratings, settings=brief)
