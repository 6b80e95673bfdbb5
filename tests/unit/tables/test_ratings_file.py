"""Files of ratings: every line is read, or named as malformed."""

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.observations.ratings import Ratings, read_ratings
from lowrank_opt.tables import delimited

CLEAN = "user,item,stars\nann,heat,5\nbob,heat,3\nann,alien,4.5\n"


def read(path: Path, text: str | bytes = "", **options: object) -> Ratings:
    if text:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_ratings(path, **({"row": "user", "col": "item", "value": "stars"} | options))


def content(ratings: Ratings) -> list[tuple[str, str, float]]:
    obs = ratings.observations
    triples = zip(obs.rows.tolist(), obs.cols.tolist(), obs.values.tolist(), strict=True)
    return [(ratings.row_ids[i], ratings.col_ids[j], v) for i, j, v in triples]


EXPECTED = [("ann", "heat", 5.0), ("bob", "heat", 3.0), ("ann", "alien", 4.5)]


@pytest.mark.parametrize(
    "text",
    [
        CLEAN,
        CLEAN.removesuffix("\n"),
        CLEAN + "\n  \n",
        CLEAN.replace("\n", "\r\n"),
        CLEAN.replace(",", "\t"),
        CLEAN.replace(",", "::"),
        CLEAN.replace(",", ";"),
        CLEAN.replace(",", "|"),
        "\ufeff" + CLEAN,
        CLEAN.replace("heat", '"heat"'),
        gzip.compress(CLEAN.encode(), mtime=0),
        CLEAN.replace("user,item,stars", "user, item ,stars"),
        "title,user,x,stars,item\n" + 'é,ann,,5,heat\n"a,b",bob,,3,heat\nx,ann,,4.5,alien\n',
        b"title,user,stars,item\n\xe9,ann,5,heat\n,bob,3,heat\n,ann,4.5,alien\n",
    ],
)
def test_formats(tmp_path: Path, text: str | bytes):
    ratings = read(tmp_path / "r", text)
    assert EXPECTED == content(ratings)
    assert (["ann", "bob"], ["heat", "alien"]) == (ratings.row_ids, ratings.col_ids)
    assert torch.float32 == ratings.observations.dtype


def test_without_header_columns_are_numbers(tmp_path: Path):
    text = CLEAN.split("\n", 1)[1]
    assert EXPECTED == content(read(tmp_path / "r", text, row=1, col="2", value=3, header=False))


def test_ids_are_kept_as_they_are(tmp_path: Path):
    ratings = read(tmp_path / "r", "user,item,stars\n7,a,1\n007,a,2\n 7,a,3\n7.0,日本,4\n")
    assert ["7", "007", " 7", "7.0"] == ratings.row_ids
    assert ["a", "日本"] == ratings.col_ids


BAD = [
    ("ann,heat", "2 fields instead of 3"),
    ("ann,heat,5,6", "4 fields instead of 3"),
    ("ann,he", "2 fields instead of 3"),
    ("ann,heat,", "'' is not a finite number"),
    ("ann,heat,five", "'five' is not a finite number"),
    ("ann,heat,nan", "'nan' is not a finite number"),
    ("ann,heat,-inf", "'-inf' is not a finite number"),
    ("ann,heat,1e39", "'1e39' is not a finite number"),
    ("ann,heat,1_0", "'1_0' is not a finite number"),
    ("ann,,5", "nothing in column 2"),
    ('ann,"heat,5', "quotes that do not match"),
    ("", "an empty line"),
]


@pytest.mark.parametrize(("line", "fault"), BAD)
def test_malformed_line_is_named(tmp_path: Path, line: str, fault: str):
    text = CLEAN + line + "\neve,heat,1\n"
    with pytest.raises(DataError, match=f"at most 0 .* has 1 in its first 6: line 5: {fault}"):
        read(tmp_path / "r", text)
    ratings = read(tmp_path / "r", max_bad_lines=1)
    assert [*EXPECTED, ("eve", "heat", 1.0)] == content(ratings)
    assert [5] == ratings.bad.numbers


@pytest.mark.parametrize("tail", ["eve,he", "eve,heat", "eve,heat,", 'eve,"he'])
def test_cut_last_line_is_malformed(tmp_path: Path, tail: str):
    with pytest.raises(DataError, match="line 5: "):
        read(tmp_path / "r", CLEAN + tail)


def test_end_that_may_have_been_cut_is_told(tmp_path: Path):
    assert read(tmp_path / "a", CLEAN + "eve,heat,4").unterminated
    assert not read(tmp_path / "b", CLEAN + "eve,heat,4\n").unterminated
    assert not read(tmp_path / "c", "user,item,stars,time\na,b,3,12").unterminated


def test_ids_that_are_not_utf8(tmp_path: Path):
    with pytest.raises(DataError, match="line 5: column 1 is not UTF-8"):
        read(tmp_path / "r", CLEAN.encode() + b"\xe9ve,heat,4\n")


def test_long_lists_are_cut(tmp_path: Path):
    with pytest.raises(DataError, match=r"has 12 in its first 16: line 5.*; and 7 more: repair"):
        read(tmp_path / "r", CLEAN + "x\n" * 12, max_bad_lines=11)
    assert 12 == len(read(tmp_path / "r", max_bad_lines=12).bad.numbers)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [("bob", "heat", 3.0), ("ann", "heat", 2.5)]),
        ("last", [("bob", "heat", 3.0), ("ann", "heat", 1.0)]),
    ],
)
def test_duplicates_merged(tmp_path: Path, rule: str, expected: list):
    text = "user,item,stars\nann,heat,5\nbob,heat,3\nann,heat,1.5\nann,heat,1\n"
    ratings = read(tmp_path / "r", text, duplicates=rule)
    assert expected == content(ratings)
    assert 2 == ratings.merged


def test_duplicates_are_named_with_their_lines(tmp_path: Path):
    text = "user,item,stars\nx\nann,heat,5\n\ny\nbob,heat,3\nz\nann,heat,5\n"
    with pytest.raises(ObservationError, match=r"1 repet.* \('ann', 'heat'\) on lines 3 and 8:"):
        read(tmp_path / "r", text, max_bad_lines=4)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "must be readable; got .*No such file"),
        ("\n", {}, "must begin with a line of data"),
        ("user\n", {}, "fields with a separator; .* begins with 'user': name"),
        ("user,item,stars\n", {}, "must have a line of data"),
        (CLEAN.encode("utf-16"), {}, "table as text in UTF-8; .* or UTF-16: write CSV"),
        (CLEAN, {"row": "usr"}, r"one of \['user', 'item', 'stars'\]; got 'usr'"),
        (CLEAN, {"row": "1"}, "got '1' for"),
        (CLEAN, {"header": False}, r"must be in 1\.\.3; got 'user'"),
        ("1,2,3\n", {"header": False, "row": 1, "col": 2, "value": 4}, "got 4 for"),
        ("user,item,3\n", {"value": "3"}, "must have the names of the columns"),
        ("user,user,stars,item\n1,2,3,4\n", {}, "got 'user' for"),
        (
            gzip.compress(CLEAN.encode() * 9, mtime=0)[:-9],
            {},
            "must be readable; got .*ended before",
        ),
        (gzip.compress(CLEAN.encode(), mtime=0)[:20] + b"x" * 30, {}, "must be readable"),
    ],
)
def test_unusable_file(tmp_path: Path, text: str | bytes, options: dict, message: str):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "r", text, **options)


def test_progress_counts_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delimited, "CHUNK", 2)
    seen: list[int] = []
    read(tmp_path / "r", CLEAN, progress=seen.append)
    assert [2, 3] == seen


def test_unknown_rule(tmp_path: Path):
    with pytest.raises(ObservationError, match="duplicates must be 'error', 'mean' or 'last'"):
        read(tmp_path / "r", CLEAN, duplicates="sum")


FIELD = st.sampled_from(["a", "bb", "7", "", '"q"', 'q"', "é", "4", "nan", "1_0", " ", ":", "3:"])
# A line of no fields is empty.
LINES = st.lists(st.lists(FIELD, max_size=4), max_size=30)


@example([["a", "b", "1"], [], ["c", "d", "4"]], 4, ",")
@given(LINES, st.integers(1, 7), st.sampled_from([",", "::"]))
def test_chunks_and_paths_agree(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], size: int, separator: str
):
    """Short chunks, the fast path and the slow path find the same lines."""
    path = tmp_path_factory.mktemp("r") / "r.csv"
    records = [["user", "item", "stars"], ["a", "b", "1"], *lines]
    path.write_text("\n".join(map(separator.join, records)) + "\n", encoding="utf-8")
    whole = _records(path, 1 << 12, fast=False)
    assert whole == _records(path, size, fast=True)


def _records(path: Path, size: int, *, fast: bool) -> tuple[list, list]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "CHUNK", size)
        if not fast:
            patch.setattr(delimited.DelimitedFile, "_fast", lambda *_: None)
        file = delimited.DelimitedFile(path, ("user", "item"), "stars", max_bad_lines=99)
        records = [
            record
            for chunk in file.chunks()
            for record in zip(*chunk.texts, chunk.values.tolist(), strict=True)
        ]
    return records, file.bad.numbers
