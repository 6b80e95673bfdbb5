"""Observations: what is kept, what is refused, and the compressed views."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.sparsity import sort_pairs

ROWS, COLS, VALUES, SHAPE = [2, 0, 2, 1], [1, 3, 0, 1], [1.0, 2.0, 3.0, 4.0], (4, 5)


def make(**changes: object) -> Observations:
    return Observations(
        **({"rows": ROWS, "cols": COLS, "values": VALUES, "shape": SHAPE} | changes)
    )


def random_observations(m: int, n: int, nnz: int) -> Observations:
    g = torch.Generator().manual_seed(0)
    cells = torch.randperm(m * n, generator=g)[:nnz]
    values = torch.randn(nnz, generator=g, dtype=torch.float64)
    return Observations(cells // n, cells % n, values, (m, n))


def test_exported_observations():
    assert lo.Observations is Observations


def test_order_of_entries_is_kept():
    observations = make()
    assert (ROWS, COLS, VALUES) == (
        observations.rows.tolist(),
        observations.cols.tolist(),
        observations.values.tolist(),
    )


def test_views_agree_with_scipy():
    observations = random_observations(40, 30, 500)
    values = observations.values.numpy()
    coo = coo_array(
        (values, (observations.rows.numpy(), observations.cols.numpy())), shape=(40, 30)
    )
    csr, csc = coo.tocsr().sorted_indices(), coo.tocsc().sorted_indices()
    for axis, expected in ((observations.csr, csr), (observations.csc, csc)):
        np.testing.assert_array_equal(axis.pointers.numpy(), expected.indptr)
        np.testing.assert_array_equal(axis.indices.numpy(), expected.indices)
        np.testing.assert_array_equal(observations.values[axis.order].numpy(), expected.data)


def test_columns_know_their_place_in_the_rows():
    observations = random_observations(40, 30, 500)
    by_rows = observations.csr_values
    expected = observations.values[observations.csc.order]
    assert torch.equal(expected, by_rows[observations.pattern.csr_of_csc])


def test_dtypes_of_views():
    csr = make().csr
    assert (torch.int64, torch.int32, torch.int64) == (
        csr.pointers.dtype,
        csr.indices.dtype,
        csr.order.dtype,
    )


def test_long_indices_where_int32_does_not_fit():
    observations = Observations([1, 0], [2**40, 5], [1.0, 2.0], (2, 2**41))
    assert torch.int64 == observations.csr.indices.dtype
    assert [5, 2**40] == observations.csr.indices.tolist()


def test_sort_of_a_shape_beyond_int64():
    rows, cols = torch.tensor([2**40, 0, 2**40]), torch.tensor([3, 2**39, 1])
    assert [1, 2, 0] == sort_pairs(rows, cols, (2**41, 2**41)).order.tolist()


def test_counts_of_rows_and_columns_without_entries():
    observations = make()
    assert [1, 1, 2, 0] == observations.row_counts.tolist()
    assert [1, 2, 0, 1, 0] == observations.col_counts.tolist()


def test_inputs_are_copied():
    values = torch.tensor(VALUES)
    observations = make(values=values)
    values[0] = float("nan")
    assert 1.0 == observations.values[0]


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        make().values = torch.zeros(4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate: Callable[[Observations], Observations]):
    other = duplicate(make())
    assert VALUES == other.values.tolist()
    assert [0, 1, 2, 4, 4] == other.csr.pointers.tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.ones(4, dtype=torch.float16), torch.float32),
        (torch.ones(4, dtype=torch.bfloat16), torch.float32),
        (torch.ones(4, dtype=torch.float64), torch.float64),
        (np.ones(4), torch.float64),
        (np.ones(4, dtype=">f4"), torch.float32),
        (np.ones(4, dtype=np.int8), torch.float32),
        ([1, 2, 3, 4], torch.float32),
    ],
)
def test_dtype_of_values(values: Tensor, expected: torch.dtype):
    assert expected == make(values=values).dtype


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, ">i4"])
def test_integer_indices_of_any_width(dtype: str):
    assert ROWS == make(rows=np.array(ROWS, dtype=dtype)).rows.tolist()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": [0, 1, 4, 1]}, ObservationError, r"0\.\.3 .* 1 of 4 .* position 2 \(row 4, col"),
        ({"cols": [-1, 3, -2, 1]}, ObservationError, r"2 of 4 .* position 0 \(row 2, column -1\)"),
        ({"rows": [0.0, 1.0, 2.0, 3.0]}, ObservationError, "rows must be integers; got dtype"),
        ({"cols": [True, False, True, False]}, ObservationError, "cols must be integers"),
        ({"rows": list("abcd")}, ObservationError, "rows must be numbers; .* pandas.factorize"),
        ({"values": [1.0, float("nan"), 1.0, float("inf")]}, ObservationError,
         r"finite in torch.float32; got 2 of 4 entries, .* position 1 \(row 0, column 3\)"),
        ({"values": [1j, 0, 0, 0]}, ObservationError, "values must be numbers"),
        ({"values": torch.ones(4, dtype=torch.complex64)}, ObservationError, "must be real"),
        ({"values": [1.0, 2.0]}, ShapeError, "one length; got rows 4, cols 4, values 2"),
        ({"values": torch.ones(4, 1)}, ShapeError, r"must be a vector; got shape \(4, 1\)"),
        ({"rows": [], "cols": [], "values": []}, ObservationError, "one entry .* got none"),
        ({"weights": [1.0, 1.0, -1.0, 1.0]}, ObservationError,
         r"nonnegative; got 1 of 4 that are not, the first -1.0 at position 2"),
        ({"weights": [float("nan")] * 4}, ObservationError, "got 4 of 4"),
        ({"weights": [0.0] * 4}, ObservationError, "must be positive; got 4 zeros"),
        ({"weights": [1.0]}, ShapeError, "one length; .* weights 1"),
        ({"shape": (4, 0)}, ShapeError, r"two positive integers .* got \(4, 0\)"),
        ({"shape": (4,)}, ShapeError, "two positive integers"),
        ({"duplicates": "first"}, ObservationError, "'error', 'mean', 'sum' or 'last'; got"),
        ({"rows": torch.tensor(ROWS, device="meta"), "values": torch.tensor(VALUES)}, ShapeError,
         "on one device; got rows on meta, values on cpu"),
    ],
)  # fmt: skip
def test_refused(changes: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make(**changes)


DOUBLE = {"rows": [1, 0, 1, 1], "cols": [2, 0, 2, 2], "values": [1.0, 5.0, 3.0, 8.0]}


def test_duplicates_are_refused():
    message = (
        r"once; got 2 of 4 entries, the first at position 2 \(row 1, column 2\) again: "
        "pass duplicates='mean', 'sum' or 'last'"
    )
    with pytest.raises(ObservationError, match=message):
        make(**DOUBLE)


@pytest.mark.parametrize(("rule", "expected"), [("mean", 4.0), ("sum", 12.0), ("last", 8.0)])
def test_duplicates_are_merged_in_place(rule: str, expected: float):
    merged = make(**DOUBLE, duplicates=rule)
    assert [0, 1] == merged.rows.tolist()
    assert [0, 2] == merged.cols.tolist()
    assert [5.0, expected] == merged.values.tolist()
    assert [0, 1, 2, 2, 2] == merged.csr.pointers.tolist()


def test_weighted_mean_of_duplicates():
    merged = make(**DOUBLE, weights=[1.0, 0.0, 1.0, 2.0], duplicates="mean")
    assert [5.0, 5.0] == merged.values.tolist()
    assert [0.0, 4.0] == merged.weights.tolist()


def test_plain_mean_of_duplicates_without_weight():
    merged = make(**DOUBLE, weights=[0.0, 1.0, 0.0, 0.0], duplicates="mean")
    assert [5.0, 4.0] == merged.values.tolist()
    assert [1.0, 0.0] == merged.weights.tolist()


def test_last_of_duplicates_keeps_its_weight():
    merged = make(**DOUBLE, weights=[1.0, 2.0, 3.0, 4.0], duplicates="last")
    assert [2.0, 4.0] == merged.weights.tolist()


def test_sum_of_duplicates_takes_no_weights():
    with pytest.raises(ObservationError, match="'sum' takes no weights"):
        make(**DOUBLE, weights=[1.0] * 4, duplicates="sum")


def test_no_duplicates_leave_the_order():
    assert ROWS == make(duplicates="mean").rows.tolist()


def test_nothing_of_size_m_by_n():
    observations = Observations([0, 10**6], [10**6, 3], [1.0, 2.0], (10**6 + 1, 10**6 + 1))
    assert 2 == int(observations.csc.pointers[-1])


@pytest.mark.parametrize("matrix", [coo_array, csr_array])
def test_from_scipy_keeps_stored_zeros(matrix: type):
    stored = matrix(coo_array(([1.0, 0.0], ([0, 2], [1, 0])), shape=(3, 2)))
    observations = Observations.from_scipy(stored)
    assert {(0, 1, 1.0), (2, 0, 0.0)} == set(
        zip(
            observations.rows.tolist(),
            observations.cols.tolist(),
            observations.values.tolist(),
            strict=True,
        )
    )


def test_from_pandas():
    frame = pd.DataFrame({"user": [0, 3], "item": [1, 0], "rating": [4, 5], "trust": [0.5, 1.0]})
    names = {"row": "user", "col": "item", "value": "rating", "weight": "trust"}
    observations = Observations.from_pandas(frame, **names)
    assert (4, 2) == observations.shape
    assert [0.5, 1.0] == observations.weights.tolist()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"user": [0], "item": [1]}, r"must name columns of the frame; got \['rating'\]"),
        ({"user": ["a"], "item": [1], "rating": [1.0]}, "rows must be numbers"),
        ({"user": [0.5], "item": [1], "rating": [1.0]}, "rows must be integers"),
        ({"user": [-1], "item": [1], "rating": [1.0]}, r"got 1 of 1 entries"),
        ({"user": [], "item": [], "rating": []}, "at least one entry"),
    ],
)
def test_from_pandas_refuses(frame: dict[str, list[object]], message: str):
    with pytest.raises((ObservationError, ShapeError), match=message):
        Observations.from_pandas(pd.DataFrame(frame), row="user", col="item", value="rating")


def test_from_dense_reads_nan_as_missing():
    nan = float("nan")
    observations = Observations.from_dense(np.array([[1.0, nan], [nan, nan], [0.0, 2.0]]))
    assert ([0, 2, 2], [0, 0, 1]) == (observations.rows.tolist(), observations.cols.tolist())


def test_from_dense_refuses_infinity():
    with pytest.raises(ObservationError, match="values must be finite"):
        Observations.from_dense(torch.tensor([[float("inf"), 1.0]]))


def test_from_dense_refuses_a_vector():
    with pytest.raises(ShapeError, match="two axes"):
        Observations.from_dense(torch.ones(3))


def test_to_shares_the_pattern():
    observations = make(weights=[1.0] * 4)
    other = observations.to(dtype=torch.float64)
    assert other.pattern is observations.pattern
    assert (torch.float64, torch.float64) == (other.dtype, other.weights.dtype)


def test_to_refuses_overflow():
    with pytest.raises(ObservationError, match=r"finite in torch.float32; got 1 of 4"):
        make(values=np.array([1e300, 0, 0, 0])).to(dtype=torch.float32)


def test_to_refuses_half_precision():
    with pytest.raises(ObservationError, match=r"float32 or float64; got dtype=torch.float16"):
        make().to(dtype=torch.float16)


def test_with_values_refuses_another_length():
    with pytest.raises(ShapeError, match="one length"):
        make().with_values(torch.ones(3))


@pytest.mark.parametrize("index", [[3, 1], torch.tensor([False, True, False, True])])
def test_take(index: list[int] | Tensor):
    assert {2.0, 4.0} == set(make().take(index).values.tolist())


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([], ObservationError, "at least one entry"),
        ([0, 4], ObservationError, r"positions must be in 0..3; got 1 of 2 outside, the first 4"),
        ([1, 1], ObservationError, "must come once"),
        (torch.tensor([True]), ShapeError, r"a mask must have shape \(4,\); got \(1,\)"),
    ],
)
def test_take_refuses(index: list[int] | Tensor, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make().take(index)


def test_split_is_a_seeded_partition():
    observations = random_observations(30, 20, 200)
    parts = [observations.split(0.25, generator=torch.Generator().manual_seed(7)) for _ in "ab"]
    kept, held = parts[0]
    cells = torch.cat([part.rows * 20 + part.cols for part in (kept, held)])
    assert (150, 50) == (len(kept), len(held))
    assert torch.equal(
        (observations.rows * 20 + observations.cols).sort().values, cells.sort().values
    )
    assert torch.equal(held.values, parts[1][1].values)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2, float("nan")])
def test_split_refuses(fraction: float):
    with pytest.raises(ObservationError, match=r"a fraction in \(0, 1\)"):
        make().split(fraction)


def test_split_keeps_one_entry_on_each_side():
    assert [3, 1] == [len(part) for part in make().split(1e-9)]


def test_representation_prints_no_values():
    text = repr(make(weights=[1.0] * 4))
    assert "Observations(4 entries of 4 x 5, weighted, torch.float32, cpu)" == text
