"""What goes in is what is fitted: a dictionary is the model of every table."""

import csv
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.cli import main
from lowrank_opt.completion import CompletionResult
from lowrank_opt.errors import LowRankError
from lowrank_opt.estimators import MatrixCompletion, Recommender
from lowrank_opt.observations import Observations
from lowrank_opt.tables import Labels, Triplets, read_pairs, read_triplets

Entries = dict[tuple[object, object], float]

SMALL = st.integers(0, 6)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.sampled_from(["7", "007", "7.0", "NA", "nan", "", "u1", "ä", "b\0", "日本", " 7", "1_0"])
DATES = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1))
MIXED = st.one_of(INTEGERS, TEXTS, st.tuples(SMALL, TEXTS), st.binary(max_size=2), DATES)
VALUES = st.integers(-8, 8).map(lambda x: x / 2)


def entries(ids: st.SearchStrategy, least: int = 1) -> st.SearchStrategy[Entries]:
    return st.dictionaries(st.tuples(ids, ids), VALUES, min_size=least, max_size=9)


def columns(model: Entries) -> tuple[list, list, list[float]]:
    return [i for i, _ in model], [j for _, j in model], list(model.values())


def frame(model: Entries) -> pd.DataFrame:
    i, j, v = columns(model)
    return pd.DataFrame({"user": i, "item": j, "rating": v})


def floats(model: Entries) -> np.ndarray:
    return np.array([[i, j, v] for (i, j), v in model.items()], dtype=np.float64)


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


# Containers of any ids.
ANY: dict[str, Callable[[Entries], object]] = {
    "list of triples": lambda m: [(i, j, v) for (i, j), v in m.items()],
    "tuple of lists": columns,
    "tuple of arrays": lambda m: tuple(objects(list(x)) for x in columns(m)),
    "zip": lambda m: zip(*columns(m), strict=True),
    "dictionary": lambda m: dict(zip(("rating", "item", "user"), columns(m)[::-1], strict=True)),
    "object frame": lambda m: pd.DataFrame(
        {
            "user": pd.Series(objects(columns(m)[0]), dtype=object),
            "item": pd.Series(objects(columns(m)[1]), dtype=object),
            "v": columns(m)[2],
        }
    ),
}
# Containers of small integers, as they are, or as floats.
NUMBERS: dict[str, Callable[[Entries], object]] = {
    "float array": floats,
    "float32": lambda m: floats(m).astype(np.float32),
    "reversed": lambda m: np.flipud(np.flipud(floats(m)).copy()),
    "mirrored": lambda m: np.fliplr(np.fliplr(floats(m)).copy()),
    "big endian": lambda m: floats(m).astype(">f8"),
    "Fortran": lambda m: np.asfortranarray(floats(m)),
    "unmasked": lambda m: np.ma.array(floats(m)),
    "matrix": lambda m: np.asmatrix(floats(m)),
    "tensor": lambda m: torch.from_numpy(floats(m)),
    "tensor float32": lambda m: torch.from_numpy(floats(m)).float().requires_grad_(),
    "list of floats": lambda m: floats(m).tolist(),
    "pandas": frame,
    "pandas, other order": lambda m: frame(m)[["rating", "item", "user"]],
    "pandas, index and time": lambda m: frame(m).assign(timestamp=9).reset_index(names=""),
    "pandas nullable": lambda m: frame(m).convert_dtypes(),
    "pandas category": lambda m: frame(m).astype({"user": "category", "item": "category"}),
    "polars": lambda m: pl.DataFrame(dict(zip(("a", "b", "c"), columns(m), strict=True))),
    "polars lazy": lambda m: pl.LazyFrame(dict(zip(("a", "b", "c"), columns(m), strict=True))),
    "pyarrow": lambda m: pa.table(dict(zip(("a", "b", "c"), columns(m), strict=True))),
    "narwhals": lambda m: nw.from_native(frame(m)),
}
# Matrices with gaps: ids are positions.
MATRICES: dict[str, Callable[[np.ndarray], object]] = {
    "dense": lambda x: x,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "big endian": lambda x: x.astype(">f8"),
    "masked": lambda x: np.ma.masked_invalid(x),
    "masked zeros": lambda x: np.ma.array(np.nan_to_num(x), mask=np.isnan(x)),
    "tensor": torch.from_numpy,
    "scipy": lambda x: sp.coo_array(
        (x[~np.isnan(x)], np.nonzero(~np.isnan(x))), shape=x.shape
    ).tocsr(),
    "Observations": Observations.from_dense,
}


def as_dictionary(found: Triplets) -> list[tuple[object, object, float]]:
    assert found.values is not None
    ids = (list(x) if x.dtype.kind in "mM" else x.tolist() for x in (found.rows, found.cols))
    return list(zip(*ids, found.values.tolist(), strict=True))


def assert_model(model: Entries, found: Triplets) -> None:
    expected = [(i, j, v) for (i, j), v in model.items()]
    got = as_dictionary(found)
    assert expected == got
    assert [(type(i), type(j)) for i, j, _ in expected] == [(type(i), type(j)) for i, j, _ in got]


@pytest.mark.parametrize("container", ANY)
@settings(max_examples=25)
@given(model=st.one_of(entries(INTEGERS), entries(TEXTS), entries(MIXED), entries(DATES)))
@example({("7", "a"): 1.0, ("007", "a"): 2.0, (7, "a"): 3.0})
@example({(2**53, 0): 1.0, (2**53 + 1, 0): 2.0})
def test_ids_of_any_kind(container: str, model: Entries):
    assert_model(model, read_triplets(ANY[container](model)))


@pytest.mark.parametrize("container", NUMBERS)
@settings(max_examples=10)
@given(model=entries(SMALL))
def test_numbers_in_any_container(container: str, model: Entries):
    assert_model(model, read_triplets(NUMBERS[container](model)))


@pytest.mark.parametrize("container", ANY)
@settings(max_examples=25)
@given(model=st.one_of(entries(INTEGERS), entries(TEXTS)), weighted=st.booleans())
def test_pairs_with_values_beside_them(container: str, model: Entries, weighted: bool):
    data = ANY[container]({pair: 0.0 for pair in model})
    pairs = read_pairs(data)
    weights = np.arange(1.0, len(model) + 1) if weighted else None
    found = read_triplets((pairs.rows, pairs.cols), list(model.values()), weights)
    assert_model(model, found)
    assert weights is None or found.weights.tolist() == weights.tolist()


@pytest.mark.parametrize("container", MATRICES)
@settings(max_examples=10)
@given(
    gaps=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_matrices_with_gaps(container: str, gaps: list[list[bool]], seed: int):
    dense = np.random.default_rng(seed).normal(size=(len(gaps), 6))
    dense[np.array(gaps)] = np.nan
    assume(not np.isnan(dense).all())
    model = {(i, j): dense[i, j] for i, j in zip(*np.nonzero(~np.isnan(dense)), strict=True)}
    found = read_triplets(MATRICES[container](dense))
    assert {k: pytest.approx(v) for k, v in model.items()} == {
        (i, j): v for i, j, v in as_dictionary(found)
    }
    assert dense.shape == found.shape


@given(model=st.one_of(entries(SMALL), entries(st.sampled_from(["a", "7", "007"]))))
def test_pivots(model: Entries):
    found = read_triplets(frame(model).pivot(index="user", columns="item", values="rating"))
    assert sorted(as_dictionary(found)) == sorted((i, j, v) for (i, j), v in model.items())
    assert ("user", "item") == found.names


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters='",\r\n\0'), min_size=1)


@given(
    model=st.one_of(entries(FIELDS.filter(str.strip)), entries(SMALL.map(str))),
    heading=st.sampled_from(["", "user,item,rating", "movieId,rating,userId,timestamp", ",u,i,y"]),
)
def test_text_files(tmp_path_factory: pytest.TempPathFactory, model: Entries, heading: str):
    path = tmp_path_factory.mktemp("t") / "r.csv"
    shapes = {
        "": "{i},{j},{v}",
        "user,item,rating": "{i},{j},{v}",
        "movieId,rating,userId,timestamp": "{j},{v},{i},978300760",
        ",u,i,y": "{n},{i},{j},{v}",
    }
    lines = [
        shapes[heading].format(i=i, j=j, v=v, n=n) for n, ((i, j), v) in enumerate(model.items())
    ]
    path.write_text("\n".join([*([heading] if heading else []), *lines, ""]), encoding="utf-8")
    # A byte order mark at the very beginning is none of the id.
    assume(heading or not lines[0].startswith("\ufeff"))
    assert_model(model, read_triplets(path))


@given(model=st.one_of(entries(INTEGERS), entries(TEXTS)), arrow=st.booleans())
def test_files_of_columns(tmp_path_factory: pytest.TempPathFactory, model: Entries, arrow: bool):
    path = tmp_path_factory.mktemp("t") / ("r.arrow" if arrow else "r.parquet")
    table = pl.DataFrame(dict(zip(("user", "item", "rating"), columns(model), strict=True)))
    table.write_ipc(path) if arrow else table.write_parquet(path)
    assert_model(model, read_triplets(path))


QUICK = {"rank": 1, "penalty": 0.5, "bias_penalty": 1.0, "random_state": 0, "max_iterations": 3}


@settings(max_examples=15)
@given(model=st.one_of(entries(INTEGERS, 3), entries(TEXTS, 3), entries(MIXED, 3)), data=st.data())
def test_fitted_saved_updated(
    tmp_path_factory: pytest.TempPathFactory, model: Entries, data: st.DataObject
):
    """Labels, predictions, files, folding in and updates have the ids that went in."""
    first = data.draw(st.sampled_from(list(ANY)))
    fitted = MatrixCompletion(**QUICK).fit(ANY["list of triples"](model))
    other = MatrixCompletion(**QUICK).fit(ANY[first](model))
    pairs = list(model)
    assert {i for i, _ in pairs} == set(other.row_labels_.to_ids())
    np.testing.assert_array_equal(fitted.predict(pairs), other.predict(pairs))
    assert len(pairs) == len(other.predict(pairs, return_known=True)[1])

    folder = tmp_path_factory.mktemp("m")
    other.result_.save(folder)
    found = CompletionResult.load(folder)
    for labels, ids in ((other.row_labels_, found.row_ids), (other.col_labels_, found.col_ids)):
        assert labels.to_ids() == list(ids)
        assert [type(x) for x in labels.to_ids()] == [type(x) for x in ids]

    model_ = Recommender(MatrixCompletion(**QUICK)).fit(ANY[first](model))
    new = data.draw(st.sampled_from(["a new one", 12345, dt.datetime(2000, 1, 1)]))
    assume(new not in {i for i, _ in pairs})
    col = pairs[0][1]
    kinds = {type(i) for i, _ in pairs}
    if type(new) not in kinds:
        with pytest.raises(LowRankError, match="as they were fitted"):
            model_.fold_in_rows([(new, col, 1.0)])
        return
    model_.fold_in_rows([(new, col, 1.0)])
    assert [*fitted.row_labels_.to_ids(), new] == model_.row_labels_.to_ids()
    model_.partial_fit(([new], ["u1" if isinstance(col, str) else col], [3.0]))
    assert type(model_.row_labels_.to_ids()[-1]) is type(new)


@settings(max_examples=8)
@given(
    model=entries(TEXTS.filter(lambda x: x and "\0" not in x), 4),
    form=st.sampled_from(["csv", "tsv", "parquet"]),
    duplicates=st.sampled_from(["error", "mean", "last"]),
)
@example({(i, j): 1.0 for i in ("7", "007") for j in ("NA", " 7")}, "csv", "error")
def test_the_command_is_one_more_container(
    tmp_path_factory: pytest.TempPathFactory, model: Entries, form: str, duplicates: str
):
    folder = tmp_path_factory.mktemp("c")
    path, out, predictions = folder / f"r.{form}", folder / "m", folder / "p.csv"
    lines = [(i, j, v) for (i, j), v in model.items()]
    if duplicates != "error":
        lines.append((*lines[0][:2], lines[0][2] + 2.0))
    table = pl.DataFrame(lines, schema=["user", "item", "rating"], orient="row")
    if form == "parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, separator="," if form == "csv" else "\t")
    options = ["--quiet", "--out"]
    assert main(["complete", str(path), *options, str(out), "--duplicates", duplicates]) < 2
    found = CompletionResult.load(out)
    (rows, i), (cols, j) = Labels.of(table["user"]), Labels.of(table["item"])
    assert [rows.to_ids(), cols.to_ids()] == [list(found.row_ids), list(found.col_ids)]
    values = table["rating"].to_numpy().astype(np.float32)
    seen = Observations(i, j, values, found.shape, duplicates=duplicates)
    # What the command computes so few ratings with.
    with lo.kernels.use_backend("torch"):
        expected = lo.complete(
            seen,
            min(12, *found.shape),
            solver="variational",
            generator=torch.Generator().manual_seed(0),
        )
    np.testing.assert_array_equal(expected.to_dense(), found.to_dense())

    assert 0 == main(["predict", str(out), str(path), *options, str(predictions)])
    with predictions.open(encoding="utf-8", newline="") as file:
        _, *rest = csv.reader(file)
    assert [x[:2] for x in rest] == [[i, j] for i, j, _ in lines]
    truth = expected.predict(i, j).tolist()
    assert [float(x[2]) for x in rest] == pytest.approx(truth, rel=1e-4, abs=1e-5)


AMBIGUOUS = [
    np.array([[1.0, 2.0, 5.0], [3.0, np.nan, 4.0], [5.0, 6.0, 1.0]]),
    np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 4.0]]),
    np.array([[1.0, 2.0, 5.0, 9.0], [3.0, 4.0, 4.0, 9.0]]),
    pd.DataFrame({"a": [1], "b": [2], "c": [3], "d": [4]}),
    pd.DataFrame(np.full((3, 7), 2.0)),
    {"a": [1], "b": [2], "c": [3], "d": [4]},
    ["u5", "f2"],
    ("u5", "f2"),
]


@pytest.mark.parametrize("data", AMBIGUOUS, ids=range(len(AMBIGUOUS)))
def test_what_could_mean_two_things_is_refused(data: object):
    with pytest.raises(LowRankError, match=r"could|must be a sequence|got the text"):
        read_triplets(data)


UNREAL = [
    [1j, 2.0],
    np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]"),
    np.array([1, 2], dtype="m8[s]"),
    np.ma.array([1.0, 2.0], mask=[True, False]),
    [2**53 + 1, 1],
    np.array([2**63 - 1, 1]),
    ["1_0", "2"],
    [None, 1.0],
    [pd.NA, 1.0],
]


@pytest.mark.parametrize("values", UNREAL, ids=range(len(UNREAL)))
def test_values_that_are_no_numbers_are_refused(values: object):
    with pytest.raises(LowRankError, match=r"y must (be|not)"):
        read_triplets([(0, 0), (1, 1)], values)


LOST = [
    np.array([2.0**53 + 2, 1.0]),
    np.array([2.0**24 + 2, 1.0], dtype=np.float32),
    np.array(["NaT", "2020"], dtype="M8[D]"),
    np.array([1.0, np.nan]),
    np.ma.array([1, 2], mask=[0, 1]),
    np.array([1j, 2]),
    [1.5, 2],
    [pd.NA, "a"],
]


@pytest.mark.parametrize("ids", LOST, ids=range(len(LOST)))
def test_ids_that_are_lost_are_refused(ids: object):
    with pytest.raises(LowRankError, match=r"rows .*must"):
        read_pairs((ids, [0, 1]))


def test_dates_of_numpy_come_back(tmp_path: Path):
    days = np.array(["2020-01-01", "2021-01-01", "2020-01-01"], dtype="M8[ns]")
    model = MatrixCompletion(**QUICK).fit((days, [1, 2, 2]), [1.0, 2.0, 3.0])
    model.result_.save(tmp_path)
    found = CompletionResult.load(tmp_path).row_ids
    assert [np.datetime64("2020-01-01", "ns"), np.datetime64("2021-01-01", "ns")] == list(found)
    asked = [dt.date(2021, 1, 1), dt.datetime(2020, 1, 1), pd.Timestamp("2021")]
    assert [1, 0, 1] == model.row_labels_.positions(asked).tolist()


BROKEN: dict[str, Callable[[Triplets], Triplets]] = {
    "text and numbers become one kind": lambda x: Triplets(
        np.asarray(x.rows.tolist()).astype(str).astype(object), x.cols, x.values
    ),
    "ids pass through floats": lambda x: Triplets(
        x.rows.astype(float).astype(int), x.cols, x.values
    ),
    "a line is lost": lambda x: Triplets(x.rows[1:], x.cols[1:], x.values[1:]),
    "columns are swapped": lambda x: Triplets(x.cols, x.rows, x.values),
    "values are rounded": lambda x: Triplets(x.rows, x.cols, x.values.astype(np.float16)),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_the_model_catches_a_planted_defect(defect: str):
    model: Entries = {(2**53 + 1, 3): 0.1, (4, 5): 2.0}
    found = read_triplets(columns(model))
    assert_model(model, found)
    with pytest.raises(AssertionError):
        assert_model(model, BROKEN[defect](found))
