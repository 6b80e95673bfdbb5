"""Ids and positions: a dictionary is the oracle."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.ids import Labels

integers = st.integers(-(2**63), 2**63 - 1)
kinds = st.one_of(
    st.lists(integers, min_size=1),
    st.lists(st.integers(0, 9), min_size=3),
    st.lists(st.text(), min_size=1),
    st.lists(st.one_of(st.integers(), st.text(), st.tuples(st.integers())), min_size=1),
)


@given(kinds, kinds)
def test_labels_are_a_dictionary(ids: list[object], asked: list[object]):
    labels, positions = Labels.of(ids)
    table = {x: k for k, x in enumerate(labels.ids.tolist())}
    assert set(ids) == set(table)
    assert ids == labels[positions].tolist()
    assert [table.get(x, -1) for x in asked] == labels.positions(asked).tolist()


@given(kinds, kinds)
def test_extended_labels_keep_old_positions(ids: list[object], new: list[object]):
    labels, positions = Labels.of(ids)
    extended = labels.extended(new)
    assert positions.tolist() == extended.positions(ids).tolist()
    assert len(set(ids) | set(new)) == len(extended)
    assert (extended.positions(new) >= 0).all()


@pytest.mark.parametrize("ids", [[3, 1, 2**60], ["b", "a", "ä"]])
def test_labels_survive_json_and_pickle(ids: list[int] | list[str]):
    labels = Labels.of(ids)[0]
    copies = [
        Labels.from_list(json.loads(json.dumps(labels.to_list()))),
        pickle.loads(pickle.dumps(labels)),
    ]
    for copy in copies:
        assert labels.ids.tolist() == copy.ids.tolist()
        assert labels.positions(ids).tolist() == copy.positions(ids).tolist()


def test_whole_floats_are_integers():
    labels, _ = Labels.of(np.array([5.0, 7.0], dtype=np.float32))
    assert [0, 1, -1] == labels.positions([5, 7, 9]).tolist()


@pytest.mark.parametrize("ids", [torch.tensor([4, 2]), np.array([4, 2], dtype=np.uint8), (4, 2)])
def test_integers_of_any_kind_are_the_same_ids(ids: object):
    assert [1, 0] == Labels.of([2, 4])[0].positions(ids).tolist()


def test_integers_beyond_64_bits_are_ids():
    ids = [2**63, -1, 2**64]
    labels, positions = Labels.of(ids)
    assert ids == labels[positions].tolist()


def test_number_and_text_are_two_ids():
    assert 2 == len(Labels.of([5, "5"])[0])
    assert [-1] == Labels.of(["5"])[0].positions([5]).tolist()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5, 2.0], "missing or not whole, the first 1.5 at position 0"),
        (np.array([1.0, np.nan]), "the first nan at position 1"),
        (["a", None], "must not be missing; got 1 of 2 missing, the first at position 1"),
        (np.array(["a", float("nan")], dtype=object), "must not be missing"),
        ([["a"], "b"], "hashable"),
    ],
)
def test_missing_and_broken_ids_are_refused(ids: object, message: str):
    with pytest.raises(ObservationError, match=message):
        Labels.of(ids)


def test_ids_are_a_vector():
    with pytest.raises(ShapeError, match=r"ids must be a vector; got shape \(2, 2\)"):
        Labels.of(np.zeros((2, 2), dtype=int))


def test_repeated_ids_are_no_labels():
    with pytest.raises(ObservationError, match="each id must come once; got 1 again"):
        Labels(np.array([1, 1]))


def test_tuples_do_not_go_into_a_file():
    with pytest.raises(ObservationError, match="all integers or all strings"):
        Labels.of([(1, 2), (3, 4)])[0].to_list()
