"""Features in `Recommender`: users and items without a rating are answered by what is known.

The oracle is the matrix that the ratings were made from.
"""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp

from lowrank_opt.errors import ObservationError
from lowrank_opt.estimators import MatrixCompletion, Recommender

M, N, COLD = 60, 40, 8
rng = np.random.default_rng(0)
KINDS = rng.integers(0, 3, M)
FEATURES = np.column_stack([rng.normal(size=M), np.eye(3)[KINDS]])
GENRES = rng.normal(size=(N, 2))
TRUTH = 3 + FEATURES @ rng.normal(size=(4, 2)) @ GENRES.T
USERS, ITEMS = [f"u{i}" for i in range(M)], [f"f{j}" for j in range(N)]
OPTIONS = {"rank": 4, "max_iterations": 20, "random_state": 0}


def ratings() -> pd.DataFrame:
    """Return ratings of the users and items behind the first few, which have none."""
    i, j = np.nonzero(rng.random((M, N)) < 0.5)
    warm = (i >= COLD) & (j >= COLD)
    i, j = i[warm], j[warm]
    values = TRUTH[i, j] + 0.1 * np.random.default_rng(1).normal(size=len(i))
    return pd.DataFrame({"user": np.array(USERS)[i], "item": np.array(ITEMS)[j], "y": values})


FRAME = ratings()
COLUMNS = {"age": FEATURES[:, 0], "kind": np.array(list("abc"))[KINDS]}
PEOPLE = pd.DataFrame(COLUMNS, index=USERS).astype({"kind": "category"})
FILMS = pd.DataFrame(GENRES, index=ITEMS)


@pytest.fixture(scope="module")
def model() -> Recommender:
    inner = MatrixCompletion(**OPTIONS)
    return Recommender(inner).fit(FRAME, row_features=PEOPLE, col_features=FILMS)


def error(model: Recommender, users: list[str], items: list[str]) -> float:
    pairs = [(u, f) for u in users for f in items]
    truth = np.array([TRUTH[USERS.index(u), ITEMS.index(f)] for u, f in pairs])
    return float(np.sqrt(np.mean((model.predict(pairs) - truth) ** 2)) / truth.std())


def test_strangers_are_predicted_and_listed(model: Recommender):
    assert error(model, USERS[:COLD], ITEMS[COLD:]) < 0.25
    assert error(model, USERS[COLD:], ITEMS[:COLD]) < 0.25
    assert error(model, USERS[:COLD], ITEMS[:COLD]) < 0.25
    found = model.recommend(USERS[:COLD], k=N)
    assert set(ITEMS) == set(found.ids[0].tolist())
    ranks = [TRUTH[k, [ITEMS.index(x) for x in line]] for k, line in enumerate(found.ids)]
    expected = -np.sort(-TRUTH[:COLD], axis=1)
    assert np.mean([r[:5].mean() for r in ranks]) > 0.95 * expected[:, :5].mean()


def test_strangers_are_compared(model: Recommender):
    found = model.similar_items(ITEMS[0], k=3)
    rows = TRUTH - 3
    cosine = rows.T @ rows[:, 0] / np.linalg.norm(rows, axis=0)
    assert set(cosine.argsort()[::-1][1:8]) >= {ITEMS.index(x) for x in found.ids[0]}
    assert len(set(model.similar_users(USERS[0], k=M - 1).ids[0])) == M - 1


def test_frames_of_other_makes_give_the_same(model: Recommender):
    inner, lazy = MatrixCompletion(**OPTIONS), pl.DataFrame({"id": USERS, **COLUMNS}).lazy()
    again = Recommender(inner).fit(FRAME, row_features=lazy, col_features=FILMS)
    pairs = list(zip(USERS, ITEMS * 2, strict=False))
    np.testing.assert_array_equal(model.predict(pairs), again.predict(pairs))


def test_sparse_features_are_by_position():
    i, j = (np.array([int(x[1:]) for x in FRAME[name]]) for name in ("user", "item"))
    options = {"row_features": sp.csr_array(FEATURES), "col_features": GENRES}
    inner = MatrixCompletion((M, N), **OPTIONS)
    model = Recommender(inner).fit((i, j), FRAME["y"], **options)
    pairs = [(u, f) for u in range(COLD) for f in range(N)]
    truth = TRUTH[:COLD].reshape(-1)
    assert np.std(model.predict(pairs) - truth) < 0.25 * truth.std()
    assert N == (model.recommend([0], k=N).positions >= 0).sum()


def test_a_strangers_first_rating_moves_it_from_where_its_features_put_it(model: Recommender):
    new = [(USERS[k], ITEMS[COLD], TRUTH[k, COLD]) for k in range(COLD)]
    inner = MatrixCompletion(solver="bayesian", **OPTIONS)
    blind = Recommender(inner).fit(FRAME).fold_in_rows(new)
    other = Recommender(MatrixCompletion(**OPTIONS))
    other.fit(FRAME, row_features=PEOPLE, col_features=FILMS).fold_in_rows(new)
    known = ITEMS[COLD + 1 :]
    assert error(other, USERS[:COLD], known) < 0.5 * error(blind, USERS[:COLD], known)
    assert error(other, USERS[:COLD], known) < 1.2 * error(model, USERS[:COLD], known)


def test_strangers_come_back_from_a_folder(model: Recommender, tmp_path: Path):
    model.save(tmp_path)
    again = Recommender.load(tmp_path)
    new = [(USERS[0], ITEMS[1], 2.0), ("nobody", ITEMS[20], 3.0)]
    both = [model, again]
    lists = [x.recommend([USERS[0], USERS[20]], k=N) for x in both]
    assert lists[0].ids.tolist() == lists[1].ids.tolist()
    pairs = [(USERS[0], ITEMS[0]), (USERS[1], ITEMS[30]), ("no one", ITEMS[0])]
    known = [x.predict(pairs, return_known=True) for x in both]
    assert ["pair", "pair", "column"] == known[0][1].tolist() == known[1][1].tolist()
    after = [x.partial_fit(new) for x in (deepcopy(model), again)]
    np.testing.assert_allclose(*(x.predict(pairs) for x in after), rtol=1e-6)
    assert ["pair"] == again.predict([("nobody", ITEMS[0])], return_known=True)[1].tolist()


def test_missing_features_are_refused_by_name():
    films = FILMS.set_axis(["war", "love"], axis=1)
    films.loc[ITEMS[3], "love"] = np.nan
    with pytest.raises(ObservationError, match=r"col_features .* column 'love' has 1 missing"):
        Recommender().fit(FRAME, col_features=films)
    with pytest.raises(ObservationError, match="row_features must have a line for each id"):
        Recommender().fit(FRAME, row_features=PEOPLE[20:])
