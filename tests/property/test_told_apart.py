"""What differs stays different, or is refused: ids, whole numbers, and zeros that are entries."""

import datetime as dt
import gzip
import re
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lowrank_opt.cli import main
from lowrank_opt.errors import DataError, LowRankError, ObservationError
from lowrank_opt.estimators import LowRankImputer, MatrixCompletion
from lowrank_opt.tables import Labels, as_ids, read_triplets
from lowrank_opt.tables.files import open_table

T = TypeVar("T")

BERLIN = ZoneInfo("Europe/Berlin")
# All are near each other, in every unit and type.
MOMENTS = st.one_of(
    st.sampled_from([dt.date(2020, 10, 25), dt.datetime(2020, 10, 25), pd.Timestamp(2020, 10, 25)]),
    st.integers(0, 2).map(lambda k: pd.Timestamp(2020, 10, 25) + pd.Timedelta(k, "ns")),
    st.sampled_from(["Y", "M", "D", "h", "ns", "3D"]).map(lambda u: np.datetime64("2020", u)),
    st.sampled_from(["D", "h", "us"]).map(lambda u: np.datetime64("2020-10-25", u)),
    st.sampled_from(["fs", "as"]).map(lambda u: np.datetime64(1, u)),
    st.sampled_from(["-9000", "12000", "12000-01"]).map(np.datetime64),
    st.integers(0, 1).map(lambda k: dt.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=k)),
)
PLAIN = st.sampled_from([0, 1, True, False, 1.0, "1", b"1", Decimal(1), Fraction(1, 2)])
NESTED = st.one_of(
    st.tuples(PLAIN, PLAIN),
    st.frozensets(PLAIN, min_size=1, max_size=2),
    st.sampled_from([pd.Interval(0, 1), pd.Interval(0.0, 1.0), pd.Interval(0, 2)]),
)


def tried(action: Callable[[], T]) -> tuple[T | None, str]:
    """Return what the action does, or why it is refused."""
    try:
        return action(), ""
    except LowRankError as error:
        return None, str(error)


def moment(x: object) -> object:
    """Return a date of any type as text of one form, to attoseconds; anything else as it is."""
    if isinstance(x, dt.datetime) and x.tzinfo is not None:
        return "in a zone", x.astimezone(dt.UTC).isoformat()
    if not isinstance(x, dt.date | np.datetime64):
        return x
    text = str(x.asm8) if isinstance(x, pd.Timestamp) else str(x).replace(" ", "T")
    year, rest = re.fullmatch(r"(-?\d+)(.*)", text).groups()
    return year, rest + "-01-01T00:00:00.000000000000000000"[len(rest) :]


@settings(max_examples=60)
@given(ids=st.lists(MOMENTS, min_size=2, max_size=4) | st.lists(PLAIN | NESTED, max_size=4))
@example([dt.date(2020, 1, 1), dt.datetime(2020, 1, 1)])
@example([np.datetime64("12000"), np.datetime64("12000-01")])
@example([(1, "a"), (True, "a")])
@example([dt.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=k) for k in (0, 1)])
def test_labels_find_what_they_hold(ids: list):
    found, fault = tried(lambda: Labels.of(ids))
    if found is None:
        kinds = {type(x) for x in ids}
        assert "could be one id or two" in fault
        assert len(kinds) > 1 or kinds <= {tuple, frozenset, pd.Interval, dt.datetime}
        return
    labels, positions = found
    assert positions.tolist() == labels.positions(ids).tolist()
    moments = [moment(x) for x in ids]
    for x, i in zip(moments, positions, strict=True):
        assert [x == y for y in moments] == [bool(i == j) for j in positions]


NEAR = st.integers(2**53 - 2, 2**53 + 3) | st.integers(-(2**60), 2**60)
FORMS: dict[str, Callable[[int], object]] = {
    "beside a half": lambda k: [k, 0.5],
    "NumPy in a list": lambda k: [np.int64(k), np.float32(0.5)],
    "text": lambda k: [f"{k}", "0.5"],
    "decimal": lambda k: [Decimal(k), Decimal("0.5")],
    "fraction": lambda k: [Fraction(k), Fraction(1, 2)],
    "long": lambda k: np.array([np.longdouble(k), np.longdouble(0.5)]),
    "arrow": lambda k: pa.array([Decimal(k), Decimal(0)]),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10)
@given(whole=NEAR)
@example(2**53 + 1)
def test_whole_values_are_what_they_were(form: str, whole: int):
    found, fault = tried(lambda: read_triplets((["a", "b"], ["x", "y"]), FORMS[form](whole)))
    if found is None:
        assert float(whole) != whole, fault
        return
    assert whole == int(found.values[0])


@pytest.mark.parametrize("large", [2**53 + 1, 2**53])
def test_whole_entries_of_a_matrix_are_what_they_were(large: int):
    gaps = np.ma.array([[large, 1, 2, 3, 4]], mask=[[0, 1, 0, 0, 0]])
    pivot = pd.DataFrame({"x": [large], "y": [1]}).rename_axis(columns="item")
    for matrix in (gaps, pivot):
        if large == 2**53:
            assert large == int(read_triplets(matrix).values[0])
        else:
            with pytest.raises(ObservationError, match="float64"):
                read_triplets(matrix)


@settings(max_examples=20)
@given(st.sampled_from([("f2", 11), ("f4", 24), ("f8", 53)]), st.integers(-2, 3))
def test_whole_floats_are_the_integers_they_were(kind: tuple[str, int], offset: int):
    dtype, bits = kind
    whole = 2**bits + offset
    found, fault = tried(lambda: as_ids(np.array([whole], dtype=dtype), "ids"))
    if found is None:
        assert offset >= 0, fault
        return
    assert [whole] == found.tolist()


TEXTS = st.sampled_from(["b", "b\0", "\0b", "", "ä", "a\u0308"])
COLUMNS: dict[str, Callable[[list], object]] = {
    "polars": pl.Series,
    "category": lambda x: pl.Series(x, dtype=pl.Categorical),
    "arrow": pa.array,
    "arrow dictionary": lambda x: pa.array(x).dictionary_encode(),
    "arrow view": lambda x: pa.array(x, pa.string_view()),
    "chunks": lambda x: pa.chunked_array([x[:1], x[1:]]),
    "pandas arrow": lambda x: pd.Series(x, dtype="string[pyarrow]"),
    "queue": deque,
    "iterator": iter,
    "view": lambda x: dict(enumerate(x)).values(),
}


@pytest.mark.parametrize("form", COLUMNS)
@settings(max_examples=8)
@given(ids=st.lists(TEXTS, min_size=1, max_size=4))
@example(["b\0", "b"])
def test_columns_of_text(form: str, ids: list[str]):
    make, values = COLUMNS[form], [1.0] * len(ids)
    for data in ((make(ids), ids, values), {"user": make(ids), "item": ids, "y": values}):
        assert ids == read_triplets(data).rows.tolist()


TYPED = {
    "zone": [dt.datetime(2020, 1, 1, tzinfo=BERLIN)],
    "decimal": [Decimal("1.50")],
    "bytes": [b"a\0"],
    "time": [dt.time(1)],
}


@pytest.mark.parametrize("kind", TYPED)
def test_columns_keep_types(kind: str):
    ids = TYPED[kind]
    for column in (pl.Series(ids), pa.array(ids), pl.Series(ids).to_arrow()):
        found = read_triplets((column, ["x"], [1.0])).rows.tolist()
        table = pa.table({"user": column, "item": ["x"], "y": [1.0]})
        assert ids == found == read_triplets(table).rows.tolist()
        assert type(ids[0]) is type(found[0])


def test_what_arrow_has_not_is_missing():
    for column in (pa.array([1, None]), pl.Series([1, None]), pa.nulls(2)):
        with pytest.raises(ObservationError, match="must not be missing"):
            read_triplets((column, ["x", "y"], [1.0, 2.0]))
        with pytest.raises(ObservationError, match="must not be missing"):
            read_triplets((["x", "y"], ["x", "y"]), column)


@settings(max_examples=40)
@given(
    form=st.sampled_from(["csr", "csc", "coo", "bsr", "dia", "lil", "dok", "torch bsr"]),
    model=st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(0, 2).map(float), min_size=1
    ),
)
@example("bsr", {(0, 0): 1.0})
@example("dia", {(0, 0): 0.0, (1, 1): 1.0})
def test_zeros_are_entries_or_not_or_refused(form: str, model: dict):
    (i, j), values = zip(*model, strict=True), list(model.values())
    matrix = sp.coo_array((values, (i, j)), shape=(4, 4))
    if form == "torch bsr":
        assume(all(values))
        table = torch.from_numpy(matrix.toarray()).to_sparse_bsr((2, 2))
    else:
        table = matrix.asformat(form)
    found, fault = tried(lambda: read_triplets(table))
    if found is None:
        assert "could be values of 0" in fault
        assert form in ("bsr", "dia", "torch bsr")
        return
    got = zip(found.rows.tolist(), found.cols.tolist(), found.values.tolist(), strict=True)
    assert model == {(a, b): v for a, b, v in got}


def test_entries_of_a_huge_matrix_are_not_taken_for_one():
    huge = sp.coo_array(([1.0, 2.0], ([0, 2**24], [5, 5])), shape=(2**25, 2**40))
    assert [0, 2**24] == read_triplets(huge).rows.tolist()


def test_sums_of_small_integers_do_not_start_again_from_below():
    values = torch.tensor([100, 100], dtype=torch.int8)
    twice = torch.sparse_coo_tensor([[0, 0], [1, 1]], values, (2, 2), check_invariants=True)
    assert [200.0] == read_triplets(twice).values.tolist()


NAMED = pd.DataFrame({"user": [1, 2], "item": [3, 4], "rating": [5.0, 1.0]})
REFUSED = {
    "triplets or pivot": (NAMED.rename_axis(columns="field"), "which could be both"),
    "dates in a pivot": (
        pd.DataFrame({"x": [pd.Timestamp(2020, 1, 1)]}).rename_axis(columns="item"),
        "must be real numbers",
    ),
    "text in a pivot": (pd.DataFrame({"x": ["a"]}).rename_axis(columns="item"), "real numbers"),
    "a name twice": (pa.table([[1], [2], [3.0]], names=["user", "user", "y"]), "distinct names"),
    "names in the other order": (pd.DataFrame({"item": [1], "user": [2]}), "order or the names"),
    "a zone that is not kept": (
        ([pd.Timestamp(2020, 1, 1, tz=dt.timezone(dt.timedelta(seconds=4623)))], [1], [1.0]),
        "gives back",
    ),
    "no unit": ((np.array([1], "m8"), [1], [1.0]), "without a unit"),
    "no numbers": (torch.ones(2, 3, device="meta"), "without any"),
    "lines or columns": ([np.arange(3), np.arange(3), np.ones(3)], "could be lines or columns"),
    "pairs or columns": ([torch.arange(2), torch.arange(2)], "could be lines or columns"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str):
    table, said = REFUSED[kind]
    with pytest.raises(LowRankError, match=said):
        read_triplets(table)


def test_a_line_of_named_fields_is_a_record():
    lines = np.array([(5.0, "a", 1)], dtype=[("rating", "f4"), ("item", object), ("user", "i4")])
    found = read_triplets(list(lines))
    assert ([1], ["a"], [5.0]) == (found.rows.tolist(), found.cols.tolist(), found.values.tolist())


FIRST = ["NA", "nan", "inf", "null", "1e39", "5*", "$5", "50%", "true", "1_0", "-", "5 stars"]


@pytest.mark.parametrize("value", FIRST)
def test_a_first_line_is_no_heading_because_its_value_is_none(value: str, tmp_path: Path):
    """Ids of text beside a value that is missing: the line would be lost as one of names."""
    path = tmp_path / "r.csv"
    path.write_text(f"ann,heat,{value}\nbob,heat,3\n")
    with pytest.raises(DataError, match="could be names, or ids"):
        read_triplets(path)
    with pytest.raises(DataError, match="could be names, or ids"):
        open_table(path, number="3")
    assert not open_table(path, values=True, header=False).header


@pytest.mark.parametrize("names", ["u,i,y", "nutzer,film,note", "a,b,rating (1-5)"])
def test_names_are_a_heading(names: str, tmp_path: Path):
    path = tmp_path / "r.csv"
    path.write_text(f"{names}\nbob,heat,3\n")
    assert ["bob"] == read_triplets(path).rows.tolist()


@pytest.mark.parametrize("value", ["9007199254740993", "-9007199254740993", "9007199254740992"])
def test_whole_values_of_files_are_what_they_were(value: str, tmp_path: Path):
    path = tmp_path / "r.csv"
    path.write_text(f"ann,heat,1\nbob,heat,{value}\n")
    if int(value) == 2**53:
        assert 2**53 == int(read_triplets(path).values[1])
        return
    with pytest.raises(DataError, match="float64 would round"):
        read_triplets(path)


def test_what_is_compressed_twice_is_read(tmp_path: Path):
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(gzip.compress(b"ann,heat,5\n")))
    assert ["ann"] == read_triplets(path).rows.tolist()


IDS = {
    "integers": pa.array([1, 2]),
    "64 bits": pa.array([1, 2**64 - 1], pa.uint64()),
    "days": pa.array([dt.date(2020, 1, 1), dt.date(2020, 1, 2)]),
    "text": pa.array(["1", "2"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_the_command_writes_ids_of_the_types_that_were_fitted(kind: str, tmp_path: Path):
    path, out, lists = tmp_path / "r.parquet", str(tmp_path / "m"), tmp_path / "l.parquet"
    table = pa.table({"user": IDS[kind], "item": IDS[kind], "y": [1.0, 2.0]})
    pq.write_table(table, path)
    assert main(["complete", str(path), "--out", out, "--rank", "1", "--quiet"]) < 2
    options = ["--quiet", "--out", str(lists)]
    for command in (["recommend", out, "--all", "-k", "1"], ["predict", out, str(path)]):
        assert 0 == main([*command, *options])
        assert IDS[kind].to_pylist() == pq.read_table(lists)["user"].to_pylist()


def test_columns_of_one_name_and_columns_read_twice_are_refused(tmp_path: Path):
    ids = pa.array(["a", "b"])
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table([ids, ids, ids, [1.0, 2.0]], names=["user", "user", "item", "y"]), path)
    with pytest.raises(DataError, match="a name of its own"):
        open_table(path, ("2", "3"), "4")
    text = tmp_path / "r.csv"
    text.write_text("a,b,1\n")
    with pytest.raises(DataError, match="read twice"):
        open_table(text, ("1", "1"), "3")
    with pytest.raises(DataError, match="with the separator"):
        open_table(text, separator=";")


def test_lazy_frames_are_imputed_as_others():
    frame = pl.DataFrame({"a": [1.0, None, 2.0], "b": [2.0, 3.0, None], "c": [1.0, 2.0, 3.0]})
    lazy, eager = (LowRankImputer(random_state=0).fit_transform(x) for x in (frame.lazy(), frame))
    np.testing.assert_array_equal(eager, lazy)


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_dates_are_no_numbers_to_impute(kind: type):
    table = kind({"a": [dt.datetime(2020, 1, 1), None], "b": [1.0, 2.0]})
    with pytest.raises(ObservationError, match="got column 'a'"):
        LowRankImputer().fit_transform(table)
    fields = np.zeros(3, [("a", "f8"), ("b", "f8")])
    with pytest.raises(ObservationError, match="array of fields"):
        LowRankImputer().fit_transform(fields)


@pytest.mark.parametrize("other", [("instant", 0), 0, "1970-01-01T00:00:00"])
def test_dates_are_no_other_ids(other: object):
    ids = [other, np.datetime64(0, "s"), "z"]
    fitted = MatrixCompletion(rank=1, max_iterations=2).fit(
        [(i, k % 2) for k, i in enumerate(ids)], [1.0, 5.0, 2.0]
    )
    assert (3, 2) == fitted.result_.shape


def test_values_whose_differences_overflow_are_refused():
    pairs, model = [("a", "x"), ("a", "y"), ("b", "x")], MatrixCompletion(rank=1, max_iterations=2)
    with pytest.raises(ObservationError, match="differences are finite"):
        model.fit(pairs, [1e308, -1e308, 0.0])
    assert np.isfinite(model.fit(pairs, [1e306, -1e306, 0.0]).predict([("b", "y")])).all()
