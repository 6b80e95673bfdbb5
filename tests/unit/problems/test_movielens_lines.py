"""Files of ratings: each bad line is refused and named by its number."""

import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowrank_opt.errors import DataError, LowRankError, ObservationError
from problems import movielens
from problems._parse import read_ratings
from problems._variants import U_DATA
from problems.ratings import Ratings
from tests.unit.problems.lines import ROWS, tab_lines


def load_text(folder: Path, text: str) -> Ratings:
    (folder / "u.data").write_bytes(text.encode("latin-1"))
    return movielens.load("ml-100k", path=folder, allow_partial=True)


GOOD = tab_lines(*ROWS)
BAD_LINES = {
    "text in a rating": (
        "1\t2\tgood\t5\n",
        DataError,
        r"u\.data.*line 4: 'good' is not a finite number",
    ),
    "text in an id": ("x\t2\t3\t5\n", DataError, r"line 4: user must be a whole number.*'x'"),
    "fraction in an id": ("1.5\t2\t3\t5\n", DataError, r"line 4: user must be a whole"),
    "zero before an id": ("007\t2\t3\t5\n", DataError, r"line 4: user must be a whole.*'007'"),
    "sign before an id": ("1\t+2\t3\t5\n", DataError, r"line 4: item must be a whole.*'\+2'"),
    "space before an id": (" 1\t2\t3\t5\n", DataError, r"line 4: user must be a whole"),
    "id beyond 64 bits": ("1" * 30 + "\t2\t3\t5\n", DataError, r"line 4: user must be a whole"),
    "fraction in a time": ("1\t2\t3\t5.5\n", DataError, r"line 4: timestamp must be a whole"),
    "empty rating": ("1\t2\t\t5\n", DataError, r"line 4: '' is not a finite number"),
    "empty id": ("1\t\t3\t5\n", DataError, r"line 4: nothing in column 2"),
    "three fields": ("1\t2\t3\n", DataError, r"line 4: 3 fields instead of 4"),
    "five fields": ("1\t2\t3\t4\t5\n", DataError, r"line 4: 5 fields instead of 4"),
    "other separator": ("1,2,3,4\n", DataError, r"line 4: 1 fields instead.*'1,2,3,4'"),
    "blank line": ("\n", DataError, r"line 4: an empty line"),
    "blank line between": ("\n7\t7\t3\t0\n", DataError, r"line 4: an empty line"),
    "bytes": ("\x00\xff\t\xfe\n", DataError, r"line 4: 2 fields instead of 4"),
    "cut off in a field": ("1\t2\t3\t88", DataError, r"the last line must end in a newline"),
    "cut off between": ("1\t2", DataError, r"line 4: 2 fields instead of 4"),
    "nan": ("1\t2\tnan\t5\n", DataError, r"line 4: 'nan' is not a finite number"),
    "inf": ("1\t2\tinf\t5\n", DataError, r"line 4: 'inf' is not a finite number"),
    "above scale": ("1\t2\t6\t5\n", ObservationError, r"line 4: rating must be in .*; got 6"),
    "negative user": ("-1\t2\t3\t5\n", ObservationError, r"line 4: user id must be positive; .*-1"),
    "item zero": ("1\t0\t3\t5\n", ObservationError, r"line 4: item id must be positive; got 0"),
    "duplicate": (
        "1\t10\t4\t5\n",
        ObservationError,
        r"line 4: each user rates an item once; got user 1, item 10 again after .*line 2",
    ),
}


@pytest.mark.parametrize(("line", "error", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_is_named_by_its_number(
    folder: Path, line: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_text(folder, GOOD + line)


BAD_TAILS = {
    "a bad rating": (tab_lines((8, 8, "x", 0)), r"line 5: 'x' is not"),
    "a bad id": (tab_lines(("x", 8, 3, 0)), r"line 5: user must be"),
    "an empty line": ("\n", r"line 5: an empty line"),
}


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
@pytest.mark.parametrize(("tail", "message"), BAD_TAILS.values(), ids=BAD_TAILS)
def test_bad_line_is_named_by_its_number_beyond_the_first_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, tail: str, message: str
) -> None:
    monkeypatch.setattr("lowrank_opt.tables.delimited.CHUNK", chunk)
    with pytest.raises(DataError, match=message):
        load_text(folder, GOOD + tab_lines((7, 7, 3, 0)) + tail + tab_lines((9, 9, 3, 0)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_columns_do_not_depend_on_the_chunk_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("lowrank_opt.tables.delimited.CHUNK", chunk)
    ratings = load_text(folder, GOOD)
    assert [5.0, 3.0, 1.0] == ratings.rating.tolist()


def test_bad_line_after_a_header_is_counted_from_it(tmp_path: Path) -> None:
    path = tmp_path / "ml-25m"
    path.mkdir()
    (path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,0\n1,2,x,0\n")
    with pytest.raises(DataError, match=r"line 3: 'x' is not a finite number"):
        movielens.load("ml-25m", path=path)


lines = st.tuples(st.integers(1, 10**18 - 1), st.integers(1, 10**18 - 1), st.integers(1, 5))


@given(rows=st.lists(lines, min_size=1, max_size=20, unique_by=lambda row: row[:2]))
def test_written_ratings_are_read_back(rows: list[tuple[int, int, int]]) -> None:
    stream = io.BytesIO(tab_lines(*[(*row, 0) for row in rows]).encode())
    table = read_ratings(stream, U_DATA, scale=(1.0, 5.0), where="here")
    assert rows == [(int(u), int(i), int(r)) for u, i, r, _ in table]


@given(
    text=st.binary(max_size=60)
    | st.text(alphabet="0123456789.-+e\t\r\n _naif:", max_size=60).map(str.encode)
)
@example(text=b"1\t2\t3\t4\r\r\n")
@example(text=b"1\t2\t3\t1_0\n")
def test_any_bytes_give_ratings_or_an_error_of_ours(text: bytes) -> None:
    with contextlib.suppress(LowRankError):
        table = read_ratings(io.BytesIO(text), U_DATA, scale=(1.0, 5.0), where="here")
        assert len(text.splitlines()) == len(table)
        assert text.endswith((b"\n", b"\r"))
        assert {3} == {line.count(b"\t") for line in text.splitlines()}


def test_single_colon_is_not_a_separator(tmp_path: Path) -> None:
    path = tmp_path / "ml-1m"
    path.mkdir()
    (path / "ratings.dat").write_text("1::2::3::4\n1:2:3:4\n")
    with pytest.raises(DataError, match=r"line 2: 1 fields instead of 4, in '1:2:3:4'"):
        movielens.load("ml-1m", path=path)


def test_wrong_header_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ml-25m"
    path.mkdir()
    (path / "ratings.csv").write_text("movieId,userId,rating,timestamp\n1,1,5,0\n")
    with pytest.raises(DataError, match=r"line 1: must be the header 'userId.*got 'movieId"):
        movielens.load("ml-25m", path=path)


def test_empty_file_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"must begin with a line of data; .*u\.data"):
        load_text(folder, "")


def test_file_of_a_header_alone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ml-25m"
    path.mkdir()
    (path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(DataError, match=r"ratings\.csv must hold at least one rating"):
        movielens.load("ml-25m", path=path)


def test_file_cut_between_lines_is_an_error(folder: Path) -> None:
    (folder / "u.data").write_text(GOOD)
    with pytest.raises(
        DataError, match=r"must hold the 100000 ratings of ml-100k; got 3; .*partial"
    ):
        movielens.load("ml-100k", path=folder)
