"""Every form of input gives the same triplets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from lowrank_opt.errors import DataError, ObservationError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.ratings import read_ratings
from lowrank_opt.tables import Triplets, read_pairs, read_triplets
from lowrank_opt.tables.files import FORMATS, open_table
from lowrank_opt.tables.whole import WholeFile

ROWS, COLS, VALUES = [2, 0, 2], [1, 0, 0], [4.0, 0.0, 3.5]
USERS, ITEMS = ["zoe", "äda", "zoe"], ["b", "a", "a"]


def as_set(found: Triplets) -> set[tuple[object, object, float]]:
    assert found.values is not None
    return set(zip(found.rows.tolist(), found.cols.tolist(), found.values.tolist(), strict=True))


EXPECTED = set(zip(ROWS, COLS, VALUES, strict=True))
COO = sp.coo_array((VALUES, (ROWS, COLS)), shape=(3, 2))
DENSE = np.full((3, 2), np.nan)
DENSE[ROWS, COLS] = VALUES
TORCH = torch.sparse_coo_tensor(
    torch.tensor([ROWS, COLS]), torch.tensor(VALUES), (3, 2), check_invariants=True
)


@pytest.mark.parametrize(
    "data",
    [
        COO,
        COO.tocsr(),
        COO.tocsc(),
        sp.csr_matrix(COO),
        TORCH,
        TORCH.to_sparse_csr(),
        DENSE,
        torch.from_numpy(DENSE),
        Observations(ROWS, COLS, VALUES, (3, 2)),
        pd.DataFrame({"u": ROWS, "i": COLS, "v": VALUES}),
        (np.array(ROWS), np.array(COLS), np.array(VALUES)),
        (ROWS, COLS, VALUES),
        (torch.tensor(ROWS), torch.tensor(COLS), torch.tensor(VALUES)),
        list(zip(ROWS, COLS, VALUES, strict=True)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_holds_values_needs_no_y(data: object):
    assert as_set(read_triplets(data)) == EXPECTED


@pytest.mark.parametrize(
    "pairs",
    [
        np.array([ROWS, COLS]).T,
        np.array([ROWS, COLS], dtype=np.float32).T,
        np.array([ROWS, COLS], dtype=object).T,
        torch.tensor([ROWS, COLS]).T,
        list(zip(ROWS, COLS, strict=True)),
        [list(x) for x in zip(ROWS, COLS, strict=True)],
        pd.DataFrame({"u": ROWS, "i": COLS}),
        (ROWS, COLS),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("y", [VALUES, np.array(VALUES), torch.tensor(VALUES), pd.Series(VALUES)])
def test_pairs_and_y(pairs: object, y: object):
    assert as_set(read_triplets(pairs, y)) == EXPECTED


@pytest.mark.parametrize(
    "pairs",
    [
        list(zip(USERS, ITEMS, strict=True)),
        np.array([USERS, ITEMS]).T,
        np.array([USERS, ITEMS], dtype=object).T,
        pd.DataFrame({"u": USERS, "i": ITEMS}),
        pd.DataFrame({"u": USERS, "i": ITEMS}).astype("category"),
        (USERS, ITEMS),
    ],
    ids=lambda x: type(x).__name__,
)
def test_strings_stay_strings(pairs: object):
    assert as_set(read_triplets(pairs, VALUES)) == set(zip(USERS, ITEMS, VALUES, strict=True))


def test_polars():
    polars = pytest.importorskip("polars")
    numbers = polars.DataFrame({"u": ROWS, "i": COLS, "v": VALUES})
    strings = polars.DataFrame({"u": USERS, "i": ITEMS})
    assert as_set(read_triplets(numbers)) == EXPECTED
    found = read_triplets(strings, polars.Series(VALUES))
    assert as_set(found) == set(zip(USERS, ITEMS, VALUES, strict=True))
    assert ("u", "i") == found.names
    with pytest.raises(ObservationError, match="u must not be missing"):
        read_pairs(polars.DataFrame({"u": ["a", None], "i": ["b", "c"]}))


JSON = [".jsonl", ".ndjson.gz", ".json", ".jsonl.zip"]
ENDINGS = [".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", *JSON, *FORMATS]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"ratings{ending}"
    frame = pd.DataFrame({"u": ROWS, "i": COLS, "v": VALUES})
    if ending == ".mtx":
        scipy.io.mmwrite(path, COO)
    elif ending in (".feather", ".arrow"):
        frame.to_feather(path)
    elif ending in FORMATS:
        frame.to_parquet(path)
    elif ending in JSON:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_files(tmp_path: Path, ending: str):
    path = written(tmp_path, ending)
    # Ids in text are text.
    text = ending not in (*FORMATS, *JSON)
    expected = {(str(i), str(j), v) for i, j, v in EXPECTED} if text else EXPECTED
    for given in (path, str(path)):
        assert as_set(read_triplets(given)) == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_in_chunks_is_the_file_at_once(tmp_path: Path, ending: str):
    path = written(tmp_path, ending)
    file, found = open_table(path, values=True), read_triplets(path)
    chunks = list(file.chunks())
    ids = [[x for chunk in chunks for x in chunk.texts[k]] for k in (0, 1)]
    assert [found.rows.tolist(), found.cols.tolist()] == ids
    assert found.values.tolist() == [x for chunk in chunks for x in chunk.values]
    header = ending not in (*FORMATS, *JSON) or None
    assert [None] == [chunk.values for chunk in open_table(path, header=header).chunks()]


def test_a_matrix_in_a_file_keeps_its_shape(tmp_path: Path):
    path = tmp_path / "ratings.mtx"
    scipy.io.mmwrite(path, sp.coo_array((VALUES, (ROWS, COLS)), shape=(5, 4)))
    ratings = read_ratings(path)
    assert ((5, 4), [*range(5)], [*range(4)]) == (
        ratings.observations.shape,
        ratings.row_ids,
        ratings.col_ids,
    )


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("options", [{"separator": ","}, {"header": False}, {"max_bad_lines": 3}])
def test_options_of_text_are_refused_elsewhere(tmp_path: Path, ending: str, options: dict):
    with pytest.raises(DataError, match=f"{next(iter(options))} can be given for text alone"):
        open_table(written(tmp_path, ending), **options)


def test_columns_of_a_file_read_at_once(tmp_path: Path):
    path = written(tmp_path, ".mtx")
    file = open_table(path, (1, "2"), 3)
    assert (None, [0, 1], 2, 3) == (file.names, file.texts, file.number, len(file.found))
    with pytest.raises(DataError, match="got 'stars' for the values"):
        open_table(path, number="stars")
    named = replace(file.found, names=("user", "film"), values=None)
    assert "rows user, columns film" == WholeFile(lambda _: named, path, ("user", "film")).reading
    with pytest.raises(DataError, match="a column of values is needed"):
        WholeFile(lambda _: named, path, values=True)
    weighted = replace(file.found, weights=np.ones(3))
    with pytest.raises(DataError, match="must have no weights here"):
        next(WholeFile(lambda _: weighted, path, values=True).chunks())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.txt", "1 2", r"which columns hold rows.* begins with '1  2'"),
        ("ratings.mtx", "nonsense", "interactions must be readable; got 'ratings.mtx'"),
        ("ratings.parquet", "nonsense", "Parquet or Arrow; got .*ratings.parquet"),
        ("ratings.csv", "", "must begin with a line of data"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_triplets(tmp_path / name)
    with pytest.raises(DataError):
        read_triplets(tmp_path / f"missing-{name}")


def test_values_come_once():
    frame = pd.DataFrame({"u": ROWS, "i": COLS, "v": VALUES})
    for data in (frame, COO):
        with pytest.raises(ShapeError, match="as y or with the pairs; got both"):
            read_triplets(data, VALUES)


def test_missing_ids_of_pandas_are_refused():
    for missing in (None, pd.NA, np.nan):
        frame = pd.DataFrame({"u": pd.Series(["a", missing], dtype=object), "i": ["b", "c"]})
        with pytest.raises(ObservationError, match="u must not be missing; got 1 of 2"):
            read_pairs(frame)
        with pytest.raises(ObservationError, match="u must not be missing; got 1 of 2"):
            read_pairs(frame.astype("string"))


def test_text_among_ratings_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("u,i,v\na,b,3\na,c,good\n")
    with pytest.raises(DataError, match="line 3: 'good' is not a finite number"):
        read_triplets(tmp_path / "a.csv")


def test_sparse_matrices_know_their_shape():
    assert (3, 2) == read_triplets(COO).shape == read_triplets(TORCH).shape
    assert read_triplets((ROWS, COLS, VALUES)).shape is None


def test_repeated_entries_of_a_torch_matrix_are_added():
    twice = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (1, 2)
    )
    assert {(0, 1, 3.0)} == as_set(read_triplets(twice))


@pytest.mark.parametrize(
    ("given", "kept"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8")]
)
def test_dtype_of_the_values(given: str, kept: str):
    found = read_triplets((ROWS, COLS), np.array(VALUES).astype(given))
    assert np.dtype(kept) == found.values.dtype


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(1, 2), (3,)], r"one length; got lengths \[1, 2\]"),
        (np.zeros((2, 2, 2)), r"shape \(n, 2\); got shape \(2, 2, 2\)"),
        (np.float64(3.0), r"got shape \(\)"),
        (pd.DataFrame({"u": [1]}), "got a frame of 1 feature"),
        (torch.zeros(2, 2, 2).to_sparse(), "two axes"),
    ],
)
def test_other_shapes_are_refused(data: object, message: str):
    with pytest.raises(ShapeError, match=message):
        read_pairs(data)
