"""What fits comes back from a file, equal and of its type; all else is refused at the fit."""

import collections
import datetime as dt
import enum
import ipaddress
from pathlib import Path, PurePosixPath, PureWindowsPath
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus
from lowrank_opt.completion.loop.history import History
from lowrank_opt.errors import ObservationError
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.estimators.folders.saving import labels_from_tensors, labels_to_tensors
from lowrank_opt.tables import Labels

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
INSTANTS = st.integers(0, 4 * 10**9)
PLAIN = {
    "text": st.text(),
    "integers": st.integers(),
    "bytes": st.binary(),
    "fractions": st.fractions().filter(lambda x: x.denominator > 1),
    "decimals": st.decimals(allow_nan=False, allow_infinity=False, places=2),
    "UUIDs": st.uuids(),
    "paths": st.builds(Path, WORDS),
    "pure paths": st.one_of(*(st.builds(x, WORDS) for x in (PurePosixPath, PureWindowsPath))),
    "addresses": st.ip_addresses(),
    "networks": st.builds(lambda x: ipaddress.ip_network((x, 24)), st.just("10.0.0.0")),
    "dates": st.dates(),
    "times": st.times(),
    "datetimes": st.datetimes(),
    "datetimes in zones": st.datetimes(timezones=st.builds(ZoneInfo, ZONES)),
    "datetimes with offsets": st.datetimes(
        timezones=st.builds(lambda h: dt.timezone(dt.timedelta(hours=h)), st.integers(-12, 12))
    ),
    "differences": st.timedeltas(),
    "NumPy dates": st.builds(np.datetime64, INSTANTS, st.sampled_from(["s", "ms", "D", "M"])),
    "NumPy differences": st.builds(np.timedelta64, INSTANTS, st.sampled_from(["s", "ms", "ns"])),
    "stamps": st.builds(
        lambda t, unit: pd.Timestamp(np.datetime64(t, unit)), INSTANTS, st.sampled_from(["s", "ns"])
    ),
    "stamps in zones": st.builds(lambda t, z: pd.Timestamp(t, unit="s", tz=z), INSTANTS, ZONES),
    "pandas differences": st.builds(
        lambda t, unit: pd.Timedelta(np.timedelta64(t, unit)),
        INSTANTS,
        st.sampled_from(["s", "ns"]),
    ),
    "periods": st.builds(
        lambda n, freq: pd.Period(ordinal=n, freq=freq),
        st.integers(0, 9999),
        st.sampled_from(["D", "M", "Q-MAR", "W-SUN", "Y-DEC", "h", "5min"]),
    ),
    "intervals": st.builds(
        lambda a, closed: pd.Interval(a, a + 1, closed),
        st.integers(-9, 9) | st.floats(0, 1),
        st.sampled_from(["left", "right", "both", "neither"]),
    ),
}
MADE = st.one_of(
    *(st.tuples(x, st.integers(), st.floats(allow_nan=False)) for x in PLAIN.values()),
    st.frozensets(st.integers() | WORDS, max_size=3),
)


def exactly(value: object) -> tuple[type, str]:
    # Times without a zone are the same on either side of a change of clocks.
    return type(value), repr(value).replace(", fold=1", "")


def check(ids: list[object]) -> None:
    labels, positions = Labels.of(ids)
    found = labels_from_tensors("rows", labels_to_tensors("rows", labels))
    came, back = labels.to_ids(), found.to_ids()
    assert came == back
    assert [exactly(x) for x in came] == [exactly(x) for x in back]
    assert positions.tolist() == found.positions(ids).tolist()
    assert {type(x) for x in ids} == {type(x) for x in back}


@pytest.mark.parametrize("kind", PLAIN)
@settings(max_examples=20)
@given(data=st.data())
def test_ids_of_a_kind_come_back(kind: str, data: st.DataObject):
    check(data.draw(st.lists(PLAIN[kind], min_size=1, max_size=4)))


@settings(max_examples=50)
@given(st.lists(MADE, min_size=1, max_size=4))
@example([(np.datetime64(1, "s"), 1, 1.0), (np.datetime64(1, "D"), 1, 1.0)])
def test_ids_of_several_parts_come_back(ids: list[object]):
    check(ids)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    __slots__ = ()


Pair = collections.namedtuple("Pair", "a b")
LOST = [
    Colour.RED,
    Level.LOW,
    Name("ann"),
    Pair(1, 2),
    (1, Colour.RED),
    (1, float("nan")),
    range(3),
    object(),
    Colour,
    len,
    1j,
    np.longdouble(1) / 3,
    memoryview(b"a"),
]


@pytest.mark.parametrize("lost", LOST, ids=lambda x: type(x).__name__)
def test_ids_that_would_not_come_back_are_refused(lost: object):
    pairs = [(lost, "a"), ("ann", "a")]
    with pytest.raises(ObservationError, match=r"rows must be .*(of a type|whole|equal)"):
        MatrixCompletion().fit(pairs, [1.0, 2.0])
    op = lo.LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(3, 1))
    parts = (op, AdditiveBias(0.0, torch.zeros(2), torch.zeros(3)))
    ended = (CompletionStatus.CONVERGED, History())
    with pytest.raises(ObservationError, match="row_ids must be of a type that a saved model"):
        _ = CompletionResult(*parts, *ended, row_ids=[lost, "eve"])


def test_ids_of_another_system_are_said(tmp_path: Path):
    ids = [Path("a"), Path("b")]
    model = MatrixCompletion(validation=None, rank=1).fit((ids, [1, 2]), [1.0, 2.0])
    model.save(tmp_path)
    assert ids == MatrixCompletion.load(tmp_path).row_labels_.to_ids()
    name = type(ids[0]).__name__
    other = {"PosixPath": "WindowsPath", "WindowsPath": "PosixPath"}[name]
    tensors = labels_to_tensors("rows", model.row_labels_)
    text = bytes(tensors["rows"].tolist()).replace(name.encode(), other.encode())
    shift = len(other) - len(name)
    tensors["rows"] = tensors["rows"].new_tensor(list(text))
    tensors["rows_json_ends"] += shift * tensors["rows_json_ends"].new_tensor([1, 2])
    with pytest.raises(ValueError, match=f"{other}.* on (your|this) system"):
        labels_from_tensors("rows", tensors)
