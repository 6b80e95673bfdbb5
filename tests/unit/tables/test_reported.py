"""Inputs that users of other libraries reported as misread: read as they are meant, or refused."""

import bz2
import datetime as dt
import gzip
import io
import lzma
import zipfile
from array import array
from collections import deque, namedtuple
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pyarrow.dataset import dataset

from lowrank_opt.errors import LowRankError
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.tables import read_triplets

TEXT = "user,item,rating\nann,heat,5\nbob,alien,3\n"
ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w") as archive:
    archive.writestr("r.csv", TEXT)
PLAIN = (["ann", "bob"], ["heat", "alien"], [5.0, 3.0])

BYTES = {
    "byte order mark": TEXT.encode("utf-8-sig"),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "zstd": pa.compress(TEXT.encode(), codec="zstd", asbytes=True),
    "zip": ARCHIVE.getvalue(),
    "JSON lines": b"""{ "item": "heat", "rating": 5, "user": "ann"}
{"item": "alien", "rating": 3, "user": "bob"}""",
    "trailing separator": TEXT.replace("\n", ",\n").encode(),
}


def parts(data: object) -> tuple[list, list, list]:
    found = read_triplets(data)
    return found.rows.tolist(), found.cols.tolist(), found.values.tolist()


@pytest.mark.parametrize("form", BYTES)
def test_bytes_of_every_make(form: str, tmp_path: Path):
    path = tmp_path / "r.csv"
    path.write_bytes(BYTES[form])
    assert parts(path) == PLAIN


EXACT = [
    "ann ",
    "café",
    "cafe\u0301",
    "[x]",
    "PK1",
    "{y}",
    "{ y}",
    "a" * 100_000,
    "0x10",
    "1e3",
    "TRUE",
]


@pytest.mark.parametrize("first", EXACT, ids=range(len(EXACT)))
def test_ids_of_files_stay(first: str, tmp_path: Path):
    path = tmp_path / "r.csv"
    path.write_text(f"{first},heat,5\nbob,heat,3\n", encoding="utf-8")
    assert [first, "bob"] == parts(path)[0]


PAIRS = pd.MultiIndex.from_tuples([("ann", "heat"), ("bob", "alien")], names=["user", "item"])
Rating = namedtuple("Rating", "rating user item")
FRAMES = {
    "two levels of index": pd.DataFrame({"rating": [5.0, 3.0]}, index=PAIRS),
    "series": pd.Series([5.0, 3.0], index=PAIRS, name="rating"),
    "index of users": pd.DataFrame(
        {"item": PLAIN[1], "rating": PLAIN[2]}, index=pd.Index(PLAIN[0], name="user")
    ),
    "unused categories": pd.DataFrame(
        {
            "user": pd.Categorical(PLAIN[0], categories=["zoe", "bob", "ann"]),
            "item": PLAIN[1],
            "rating": pd.Categorical([5, 3], ordered=True),
        }
    ),
    "text of numbers": pd.DataFrame({"user": PLAIN[0], "item": PLAIN[1], "rating": ["5", "3"]}),
    "sparse ratings": pd.DataFrame(
        {"user": PLAIN[0], "item": PLAIN[1], "rating": pd.arrays.SparseArray([5.0, 3.0])}
    ),
    "records": [
        {"rating": v, "userId": i, "movieId": j, "timestamp": 9}
        for i, j, v in zip(*PLAIN, strict=True)
    ],
    "batch of Arrow": pa.RecordBatch.from_pydict({"user": PLAIN[0], "i": PLAIN[1], "r": PLAIN[2]}),
    "data set of Arrow": dataset(pa.table({"score": PLAIN[2], "item": PLAIN[1], "user": PLAIN[0]})),
    "named tuples": [Rating(v, i, j) for i, j, v in zip(*PLAIN, strict=True)],
    "queue": deque(zip(*PLAIN, strict=True)),
    "named fields": np.array(
        [("ann", "heat", 5), ("bob", "alien", 3)],
        dtype=[("user", object), ("item", object), ("rating", "f8")],
    ),
}


@pytest.mark.parametrize("form", FRAMES)
def test_frames_with_ids_elsewhere(form: str):
    assert parts(FRAMES[form]) == PLAIN


@pytest.mark.parametrize("pairs", [PAIRS, pd.DataFrame(list(PAIRS))], ids=["index", "frame"])
def test_pairs_beside_values(pairs: object):
    found = read_triplets(pairs, iter(PLAIN[2]))
    assert PLAIN == (found.rows.tolist(), found.cols.tolist(), found.values.tolist())


def test_vectors_of_the_standard_library():
    assert ([0, 1], [7, 8], [5.0, 3.0]) == parts((range(2), array("q", [7, 8]), array("d", [5, 3])))


ZONE = dt.UTC
IDS = {
    "truth values": [True, False],
    "zoned": [pd.Timestamp("2020", tz="Europe/Berlin"), pd.Timestamp("2021", tz="Europe/Berlin")],
    "periods": list(pd.period_range("2020", periods=2, freq="M")),
    "intervals": list(pd.interval_range(0, 2)),
    "empty text": ["", "b"],
    "beyond 64 bits": [2**70, 1],
    "decimals": [Decimal("1.10"), Decimal("2")],
    "UUIDs": [UUID(int=1), UUID(int=2)],
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_frames_stay(kind: str):
    frame = pd.DataFrame({"user": IDS[kind], "item": ["x", "y"], "rating": [1.0, 2.0]})
    found = parts(frame)[0]
    assert IDS[kind] == found
    assert [type(x) for x in IDS[kind]] == [type(x) for x in found]


def test_time_zones_of_polars_stay():
    days = [dt.datetime(2020, 1, 1, tzinfo=ZONE), dt.datetime(2021, 1, 1, tzinfo=ZONE)]
    frame = pl.DataFrame({"user": days, "item": ["x", "y"], "rating": [1.0, 2.0]})
    assert days == parts(frame)[0]
    model = MatrixCompletion(rank=1, penalty=1.0, bias_penalty=1.0).fit(frame)
    assert "pair" == model.predict([(days[0], "x")], return_known=True)[1][0]


def text(content: str | bytes, name: str = "r.csv"):
    def write(folder: Path) -> Path:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return folder / name

    return write


SHUFFLED = pd.DataFrame({"user": PLAIN[0], "item": PLAIN[1]})

REFUSED = {
    "records of several kinds": (
        lambda _: [{"user": 1, "item": 2, "rating": 3}, {"user": 1, "item": 2}],
        "the same names; got .* at position 1",
    ),
    "stored twice": (
        lambda _: sp.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2)),
        "which could be added up or count each",
    ),
    "text with another ending": (text(TEXT, "r.parquet"), "Parquet or Arrow; got .*begins with"),
    "UTF-16": (text(TEXT.encode("utf-16")), "binary data, or UTF-16"),
    "Latin-1": (text(TEXT.replace("a", "ä").encode("latin-1")), "UTF-8"),
    "JSON array": (text('[{"user": "ann", "item": "heat", "rating": 5}]\n'), "begins like JSON"),
    "quoted line break": (text('user,item,rating\nann,"he\nat",5\n'), "quotes that do not match"),
    "broken header": (text('user,"item"x,rating\nann,heat,5\n'), "quotes must match"),
    "decimal comma": (text("user;item;rating\nann;heat;4,5\n"), "could be of decimals or of"),
    "thousands": (text('user,item,plays\nann,heat,"1,234"\n'), "decimals or of thousands"),
    "percent": (text("user,item,rating\nann,heat,50%\n"), "'50%' is not a finite number"),
    "half a gzip": (text(gzip.compress(TEXT.encode() * 50)[:60], "r.csv.gz"), "must be readable"),
    "open file": (lambda _: io.StringIO(TEXT), "pass the path"),
    "masked triplets": (
        lambda _: np.ma.array([[1.0, 2, 3], [4, 5, 6]], mask=[[0, 0, 1], [0, 0, 0]]),
        "could be both",
    ),
    "sparse frame": (lambda _: pd.DataFrame.sparse.from_spmatrix(sp.eye(3)), "sparse ones alone"),
    "a matrix or triplets": (
        lambda _: pd.DataFrame(np.eye(3), columns=[*"xyz"], index=pd.Index([*"abc"], name="user")),
        "index named 'user'.*which could be both",
    ),
    "equal ids of two types": (
        lambda _: ([True, 1, Decimal(1)], [1, 2, 3], [1.0, 2.0, 3.0]),
        "got True and 1, which are equal, so that they could be one id or two",
    ),
    "same name twice": (
        lambda _: pd.DataFrame([["a", "b", 1.0]], columns=["user", "user", "rating"]),
        "distinct names",
    ),
    "groups": (lambda _: pd.DataFrame({"user": [1], "x": [2]}).groupby("user"), "one length"),
    "missing category": (
        lambda _: pd.DataFrame(
            {"user": pd.Categorical(["a", None]), "item": ["x", "y"], "rating": [1, 2]}
        ),
        "user must not be missing",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_named(kind: str, tmp_path: Path):
    make, said = REFUSED[kind]
    with pytest.raises(LowRankError, match=said):
        read_triplets(make(tmp_path))


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_lines_that_could_belong_together_in_two_ways_are_refused(name: str):
    beside = pd.Series([5.0, 3.0])
    given = {"y": (beside[::-1], None), "sample_weight": (PLAIN[2], beside[::-1])}
    with pytest.raises(LowRankError, match=f"by place or by index: pass {name}.loc"):
        read_triplets(SHUFFLED, *given[name])
    # Another index says nothing of the order.
    found = read_triplets(SHUFFLED, beside.set_axis([7, 8]), beside)
    assert ([5.0, 3.0], [5.0, 3.0]) == (found.values.tolist(), found.weights.tolist())


def test_positions_that_count_from_one_are_named():
    with pytest.raises(LowRankError, match="subtract one from ids that count from 1"):
        MatrixCompletion(shape=(2, 2)).fit([(1, 1), (2, 2)], [1.0, 2.0])
