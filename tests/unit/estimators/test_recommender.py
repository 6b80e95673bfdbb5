"""Recommender: a dense sort, a refit and dictionaries are the oracles."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.estimators import MatrixCompletion, Recommender, ranking
from tests.completion_cases import LargestAllocation, normal, observe

USERS, ITEMS = 70, 40


def truth() -> torch.Tensor:
    return normal(USERS, 3) @ normal(3, ITEMS, seed=1) + normal(USERS, 1, seed=2) + 3


def table(share: float = 0.5) -> pd.DataFrame:
    noisy = observe(truth() + 0.1 * normal(USERS, ITEMS, seed=3), share)
    users = [f"u{i}" for i in noisy.rows.tolist()]
    items = [f"film {j}" for j in noisy.cols.tolist()]
    return pd.DataFrame({"user": users, "item": items, "rating": noisy.values.numpy()})


def recommender() -> Recommender:
    return Recommender(
        MatrixCompletion(solver="als", rank=3, penalty=0.3, bias_penalty=1.0, random_state=0)
    )


def dense(model: Recommender) -> np.ndarray:
    return model.result_.to_dense().numpy()


def number(ids: object) -> np.ndarray:
    return np.array([int(str(x).strip("u film")) for x in ids])


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_lists_are_those_of_a_dense_sort(
    monkeypatch: pytest.MonkeyPatch, exclude_seen: bool, block: int
):
    monkeypatch.setattr(ranking, "_BLOCK", block)
    ratings = table()
    model = recommender().fit(ratings)
    found = model.recommend(k=5, exclude_seen=exclude_seen)
    scores = dense(model)
    if exclude_seen:
        i = model.row_labels_.positions(ratings["user"])
        scores[i, model.col_labels_.positions(ratings["item"])] = -np.inf
    order = np.argsort(-scores, axis=1)[:, :5]
    assert model.col_labels_[order].tolist() == found.ids.tolist()
    np.testing.assert_allclose(np.take_along_axis(scores, order, 1), found.scores, rtol=1e-9)
    np.testing.assert_array_equal(order, found.positions)


def test_scores_are_predictions():
    model = recommender().fit(table())
    found = model.recommend(["u3", "u5"], k=4)
    pairs = [(user, item) for user, ids in zip(found.asked, found.ids, strict=True) for item in ids]
    np.testing.assert_allclose(model.predict(pairs), found.scores.reshape(-1), rtol=1e-9)


def test_no_array_of_users_times_items(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "_BLOCK", 10 * ITEMS)
    model = recommender().fit(table(0.1))
    with LargestAllocation() as largest:
        model.recommend(k=3)
    assert largest.numel < USERS * ITEMS / 2


def test_unknown_user_gets_what_is_rated_best():
    model = recommender().fit(table())
    found = model.recommend(["nobody"], k=ITEMS)
    order = torch.argsort(model.result_.bias.cols, descending=True)
    assert model.col_labels_[order.numpy()].tolist() == found.ids[0].tolist()


def test_fewer_candidates_than_asked_for():
    model = recommender().fit(table())
    seen = table()["user"].value_counts()["u3"]
    found = model.recommend(["u3"], k=ITEMS + 5)
    assert ITEMS - seen == sum(x is not None for x in found.ids[0])
    assert [None] * (5 + seen) == found.ids[0, ITEMS - seen :].tolist()
    assert np.isnan(found.scores[0, ITEMS - seen :]).all()
    assert ITEMS - seen == len(found.to_pandas())


def test_columns_without_entries_are_no_candidates():
    frame = table()
    pairs = np.stack((number(frame["user"]), number(frame["item"])), axis=1)
    model = Recommender(MatrixCompletion((USERS, ITEMS + 3), solver="als", rank=2, random_state=0))
    found = model.fit(pairs, frame["rating"]).recommend(k=ITEMS + 3, exclude_seen=False)
    assert set(range(ITEMS)) == set(found.positions[0].tolist()) - {-1}


def test_frame_of_recommendations():
    frame = recommender().fit(table()).recommend(["u3", "u5"], k=2).to_pandas()
    assert ["asked", "id", "score", "rank"] == frame.columns.tolist()
    assert (["u3", "u3", "u5", "u5"], [1, 2, 1, 2]) == (
        frame["asked"].tolist(),
        frame["rank"].tolist(),
    )


def test_similar_items_are_those_of_the_dense_cosines():
    model = recommender().fit(table())
    found = model.similar_items(["film 4", "film 0"], k=3)
    W = model.result_.operator.to_dense()
    units = W / W.norm(dim=0)
    cosines = (units.T @ units).fill_diagonal_(-2.0)
    for line, item in enumerate(["film 4", "film 0"]):
        expected = cosines[model.col_labels_.positions([item])[0]].topk(3)
        assert model.col_labels_[expected.indices.numpy()].tolist() == found.ids[line].tolist()
        np.testing.assert_allclose(expected.values, found.scores[line], rtol=1e-9)


def test_unknown_item_is_similar_to_nothing():
    with pytest.raises(ObservationError, match="got 1 of 2 unknown, the first 'film 99'"):
        recommender().fit(table()).similar_items(["film 1", "film 99"])


def error_on(model: Recommender, users: range, items: range) -> float:
    asked = [(f"u{i}", f"film {j}") for i in users for j in items]
    W = truth()[users.start : users.stop, items.start : items.stop].numpy()
    return float(np.linalg.norm(model.predict(asked) - W.reshape(-1)) / np.linalg.norm(W))


def test_folded_in_users_are_nearly_refitted():
    frame = table()
    new = number(frame["user"]) >= 50
    model = recommender().fit(frame[~new]).fold_in_rows(frame[new])
    refit = recommender().fit(frame)
    users = range(50, USERS)
    assert error_on(model, users, range(ITEMS)) < 1.15 * error_on(refit, users, range(ITEMS)) < 0.2


def test_folded_in_items_are_nearly_refitted():
    frame = table()
    new = number(frame["item"]) >= 30
    model = recommender().fit(frame[~new]).fold_in_cols(frame[new])
    refit = recommender().fit(frame)
    items = range(30, ITEMS)
    # The users' factors rest on 30 items instead of 40.
    assert error_on(model, range(USERS), items) < 1.3 * error_on(refit, range(USERS), items) < 0.2


def test_partial_fit_of_old_and_new_ids_is_nearly_a_refit():
    frame = table()
    new = (number(frame["user"]) >= 60) | (number(frame["item"]) >= 35)
    new |= np.arange(len(frame)) % 50 == 0
    model = recommender().partial_fit(frame[~new]).partial_fit(frame[new])
    refit = recommender().fit(frame)
    everything = (range(USERS), range(ITEMS))
    corner = (range(60, USERS), range(35, ITEMS))
    for part in (everything, corner):
        assert error_on(model, *part) < 1.25 * error_on(refit, *part) < 0.3


def test_folding_in_leaves_other_rows_alone():
    model = recommender().fit(table())
    before, labels = dense(model), model.row_labels_
    model.fold_in_rows([("u3", "film 1", 5.0), ("eve", "film 1", 1.0), ("eve", "film 2", 4.0)])
    after = dense(model)
    changed = labels.positions(["u3"])[0]
    others = np.arange(len(labels)) != changed
    np.testing.assert_allclose(after[: len(labels)][others], before[others], rtol=1e-9, atol=1e-12)
    assert not np.allclose(after[changed], before[changed])
    assert (len(labels) + 1, "eve") == (len(after), model.result_.row_ids[-1])


def test_what_was_folded_in_is_seen():
    model = recommender().fit(table())
    best = model.recommend(["nobody"], k=1).ids[0, 0]
    model.fold_in_rows([("eve", best, 5.0)])
    assert best not in model.recommend(["eve"], k=ITEMS).ids[0].tolist()
    assert best in model.recommend(["eve"], k=ITEMS, exclude_seen=False).ids[0].tolist()


def test_newer_rating_replaces_the_older_one():
    model = recommender().fit(table())
    for value in (-20.0, 20.0):
        model.fold_in_rows([("eve", f"film {j}", value) for j in range(10)])
    assert model.predict([("eve", "film 0")])[0] > 10


def test_new_items_need_another_method():
    with pytest.raises(ObservationError, match="columns must be among the 40 known ones"):
        recommender().fit(table()).fold_in_rows([("eve", "a new film", 5.0)])
    with pytest.raises(ObservationError, match="use fold_in_rows first, or partial_fit"):
        recommender().fit(table()).fold_in_cols([("eve", "film 1", 5.0)])


def test_fold_in_of_a_failed_call_changes_nothing():
    model = recommender().fit(table())
    before = dense(model)
    with pytest.raises(ObservationError, match="must be finite"):
        model.partial_fit([("eve", "film 1", float("nan"))])
    np.testing.assert_array_equal(before, dense(model))


@pytest.mark.parametrize("solver", ["variational", "bayesian", "gradient"])
def test_other_solvers(solver: str):
    frame = table()
    new = number(frame["user"]) >= 60
    options = {"radius": 100.0, "max_iterations": 50} if solver == "gradient" else {}
    inner = MatrixCompletion(solver=solver, rank=4, random_state=0, **options)
    model = Recommender(inner).fit(frame[~new]).fold_in_rows(frame[new])
    assert error_on(model, range(60, USERS), range(ITEMS)) < 0.25
    assert (1, 3) == model.recommend(["u61"], k=3).ids.shape


def test_integer_ids_and_sparse_matrices():
    noisy = observe(truth(), 0.4)
    import scipy.sparse as sp

    pairs = (noisy.rows.numpy(), noisy.cols.numpy())
    matrix = sp.csr_array((noisy.values.numpy(), pairs), shape=(USERS, ITEMS))
    found = recommender().fit(matrix).recommend([3, 5], k=2)
    assert (np.int64, (2, 2)) == (found.ids.dtype, found.ids.shape)


def test_clone_and_pickle():
    model = recommender().fit(table())
    again = pickle.loads(pickle.dumps(model))
    assert model.recommend(["u3"]).ids.tolist() == again.recommend(["u3"]).ids.tolist()
    again.fold_in_rows([("eve", "film 1", 2.0)])
    assert not hasattr(clone(model), "model_")


def test_parameters_of_the_inner_estimator_are_reached():
    assert 3 == recommender().get_params()["estimator__rank"]


def test_broken_calls_are_refused():
    model = recommender().fit(table())
    with pytest.raises(OptionError, match="k must be a positive integer"):
        model.recommend(k=0)
    for ask in (model.recommend, model.similar_users, model.similar_items):
        with pytest.raises(OptionError, match="k must be at most"):
            ask(["film 1" if ask == model.similar_items else "u3"], k=10**9)
    with pytest.raises(ObservationError, match="values are needed"):
        recommender().fit([("a", "b")])
    with pytest.raises(ShapeError, match="got a list of 4"):
        model.partial_fit([("a", "b", 1.0, 2.0)])


def test_one_id_is_one_list():
    model = recommender().fit(table())
    one, many = model.recommend("u3", k=4), model.recommend(["u3"], k=4)
    assert (many.asked.tolist(), many.ids.tolist()) == (one.asked.tolist(), one.ids.tolist())
    assert (
        model.similar_items("film 1").ids.tolist() == model.similar_items(["film 1"]).ids.tolist()
    )


def test_ids_are_asked_for_in_every_container():
    model = recommender().fit(table())
    users, items = ["u3", "u5"], ["film 1", "film 7"]
    expected = model.recommend(users, k=2, items=items).ids.tolist()
    for make in (iter, tuple, np.array, pd.Index, pd.Series, lambda x: dict.fromkeys(x).keys()):
        assert expected == model.recommend(make(users), k=2, items=make(items)).ids.tolist()
    one = model.recommend("u3", k=2, items="film 1", exclude_seen=False)
    assert [["film 1", None]] == one.ids.tolist()


def test_items_can_be_chosen():
    model = recommender().fit(table())
    among = ["film 1", "film 7", "film 9"]
    found = model.recommend(["u1", "nobody"], k=5, items=among, exclude_seen=False)
    scores = model.predict([("u1", x) for x in among])
    assert [x for _, x in sorted(zip(-scores, among, strict=True))] == found.ids[0, :3].tolist()
    assert [None, None] == found.ids[1, 3:].tolist()
    with pytest.raises(ObservationError, match="items must be among the 40 known ones"):
        model.recommend(["u1"], items=["no film"])


def test_similar_users_have_similar_rows():
    model = recommender().fit(table())
    result, ids = model.result_, model.row_labels_.ids.tolist()
    rows = result.operator.to_dense().double()
    k = ids.index("u5")
    cosines = torch.nn.functional.cosine_similarity(rows[k], rows, dim=1)
    cosines[k] = -2
    found = model.similar_users(["u5"], k=3)
    assert [ids[x] for x in cosines.topk(3).indices] == found.ids[0].tolist()
    assert cosines.topk(3).values.tolist() == pytest.approx(found.scores[0].tolist(), abs=1e-5)
    with pytest.raises(ObservationError, match="users must be among"):
        model.similar_users("nobody")


def test_ids_of_another_kind_are_no_strangers():
    model = recommender().fit(table())
    for call in (model.recommend, model.similar_items):
        with pytest.raises(
            ObservationError, match="must be text, as they were fitted; got integers"
        ):
            call([5])
    with pytest.raises(ObservationError, match="got integers, such as 5"):
        model.partial_fit([(5, 6, 1.0)])
    with pytest.raises(ShapeError, match="got the text 'u5'"):
        model.partial_fit(["u5", "f2"], [3.0, 4.0])


def test_updates_go_by_the_names_that_were_fitted():
    frame = table().rename(columns={"user": "who", "item": "what"})
    model = recommender().fit(frame)
    with pytest.raises(OptionError, match="feature names should match"):
        model.partial_fit(frame[["what", "who", *frame.columns[2:]]][:2])


def test_the_range_follows_new_ratings():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, (20, 10), (300, 2)), axis=0)
    model = recommender().fit(pairs, rng.integers(1, 6, len(pairs)))
    assert (1.0, 5.0) == model.model_.clip_
    model.partial_fit(np.array([[3, 4], [3, 5]]), [10, 10])
    assert (1.0, 10.0) == model.model_.clip_
