"""Ranking metrics against their definitions, written out, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.metrics import map_at_k, ndcg_at_k, recall_at_k
from lowrank_opt.observations import Observations


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, Observations, int]:
    """Lists of random length with empty places, and held-out values."""
    m, n = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    length, k = draw(st.integers(1, n)), draw(st.integers(1, n + 2))
    lists = np.stack([rng.permutation(n)[:length] for _ in range(m)])
    lists[rng.random(lists.shape) < 0.2] = -1
    count = draw(st.integers(1, m * n))
    cells = rng.permutation(m * n)[:count]
    values = rng.integers(0, 4, count).astype(float)
    values[0] = 3.0
    return lists, Observations(cells // n, cells % n, values, (m, n)), k


def held_out_of(observations: Observations, row: int) -> dict[int, float]:
    here = observations.rows == row
    return dict(
        zip(observations.cols[here].tolist(), observations.values[here].tolist(), strict=True)
    )


def brute(lists: np.ndarray, observations: Observations, k: int, relevant: float) -> list[float]:
    """NDCG, recall and MAP by loops over users and places."""
    ndcg, recall, precision = [], [], []
    for row, ranked in enumerate(lists.tolist()):
        gains = held_out_of(observations, row)
        dcg = sum(gains.get(c, 0) / math.log2(t + 2) for t, c in enumerate(ranked[:k]))
        best = sorted(gains.values(), reverse=True)[:k]
        ideal = sum(g / math.log2(t + 2) for t, g in enumerate(best))
        ndcg += [dcg / ideal] if ideal > 0 else []
        wanted = {c for c, g in gains.items() if g >= relevant}
        hits = [t for t, c in enumerate(ranked[:k]) if c in wanted]
        recall += [len(hits) / len(wanted)] if wanted else []
        total = sum((place + 1) / (t + 1) for place, t in enumerate(hits))
        precision += [total / min(k, len(wanted))] if wanted else []
    return [sum(x) / len(x) for x in (ndcg, recall, precision)]


@given(rankings(), st.sampled_from([-math.inf, 1.0, 3.0]))
def test_metrics_equal_their_definitions(
    case: tuple[np.ndarray, Observations, int], relevant: float
):
    lists, held_out, k = case
    expected = brute(lists, held_out, k, relevant)
    found = [
        ndcg_at_k(lists, held_out, k),
        recall_at_k(lists, held_out, k, relevant=relevant),
        map_at_k(lists, held_out, k, relevant=relevant),
    ]
    assert expected == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_that_of_scikit_learn(k: int):
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 6, (20, 10)).astype(float), rng.normal(size=(20, 10))
    held_out = Observations.from_dense(torch.from_numpy(truth))
    ranked = np.argsort(-scores, axis=1)
    expected = ndcg_score(truth, scores, k=k)
    assert expected == pytest.approx(ndcg_at_k(torch.from_numpy(ranked), held_out, k), rel=1e-12)


def test_perfect_lists_have_the_largest_value():
    held_out = Observations([0, 0, 2], [1, 2, 0], [2.0, 5.0, 1.0], (3, 4))
    perfect = [[2, 1, 0], [0, 1, 2], [0, 3, 1]]
    metrics = (ndcg_at_k, recall_at_k, map_at_k)
    assert [1.0, 1.0, 1.0] == [metric(perfect, held_out, 2) for metric in metrics]


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k, map_at_k])
def test_broken_lists_are_refused(metric: type[ndcg_at_k]):
    held_out = Observations([0, 1], [0, 1], [1.0, 2.0], (2, 3))
    with pytest.raises(ShapeError, match=r"integers of shape \(2, K\), a list for each row"):
        metric([[0, 1]], held_out, 1)
    with pytest.raises(ShapeError, match="got float64"):
        metric([[0.0], [1.0]], held_out, 1)
    with pytest.raises(ObservationError, match="once in each list"):
        metric([[0, 1], [2, 2]], held_out, 2)
    with pytest.raises(OptionError, match="k must be a positive integer; got k=0"):
        metric([[0], [1]], held_out, 0)


def test_rows_without_relevant_entries_do_not_count():
    held_out = Observations([0, 1], [0, 1], [0.0, 2.0], (2, 3))
    assert (
        1.0
        == ndcg_at_k([[2], [1]], held_out, 1)
        == recall_at_k([[2], [1]], held_out, 1, relevant=1)
    )
    with pytest.raises(ObservationError, match="a row at least must have a relevant entry"):
        map_at_k([[2], [1]], held_out, 1, relevant=9.0)


def test_negative_gains_are_refused():
    held_out = Observations([0], [0], [-1.0], (1, 3))
    with pytest.raises(ObservationError, match="gains must be nonnegative"):
        ndcg_at_k([[0]], held_out, 1)
