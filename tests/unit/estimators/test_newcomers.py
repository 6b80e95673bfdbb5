"""Users and items that come after the fit with features: the matrix the ratings came from knows.

The oracles are that matrix, and dense regressions with the factors of the fit as they are.
"""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.from_features import FeatureMap, lines_of
from lowrank_opt.errors import LowRankError, ObservationError, ShapeError
from lowrank_opt.estimators import MatrixCompletion, Recommender

M, N, NEW = 60, 40, 8
rng = np.random.default_rng(0)
KINDS = rng.integers(0, 3, M)
FEATURES = np.column_stack([rng.normal(size=M), np.eye(3)[KINDS]])
GENRES = rng.normal(size=(N, 2))
TRUTH = 3 + FEATURES @ rng.normal(size=(4, 2)) @ GENRES.T
USERS, ITEMS = [f"u{i}" for i in range(M)], [f"f{j}" for j in range(N)]
OPTIONS = {"rank": 4, "max_iterations": 20, "random_state": 0}
COLUMNS = {"age": FEATURES[:, 0], "kind": np.array(list("abc"))[KINDS]}
PEOPLE = pd.DataFrame(COLUMNS, index=USERS).astype({"kind": "category"})
FILMS = pd.DataFrame(GENRES, index=ITEMS, columns=["war", "love"])
PAIRS = [(i, j) for i in range(M) for j in range(N)]
SEEN = [(i, j) for i, j in PAIRS if min(i, j) >= NEW and rng.random() < 0.5]
VALUES = np.array([TRUTH[p] for p in SEEN]) + 0.1 * rng.normal(size=len(SEEN))
NAMED = [(USERS[i], ITEMS[j]) for i, j in SEEN]
SIDE = {"row_features": PEOPLE[NEW:], "col_features": FILMS[NEW:]}
ALL = {"row_features": PEOPLE, "col_features": FILMS}


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender(MatrixCompletion(**OPTIONS)).fit(NAMED, VALUES, **SIDE)


@pytest.fixture(scope="module")
def completion() -> MatrixCompletion:
    return MatrixCompletion(**OPTIONS).fit(NAMED, VALUES, **SIDE)


def error(model: object, rows: range, cols: range, **features: object) -> float:
    """Return the error in standard deviations of what is asked for."""
    pairs = [(i, j) for i in rows for j in cols]
    truth = np.array([TRUTH[p] for p in pairs])
    found = model.predict([(USERS[i], ITEMS[j]) for i, j in pairs], **features)
    return float(np.sqrt(np.mean((found - truth) ** 2)) / truth.std())


@pytest.mark.parametrize("kind", ["recommender", "completion"])
def test_features_alone_predict_newcomers(kind: str, request: pytest.FixtureRequest):
    model = request.getfixturevalue(kind)
    new, old = range(NEW), range(NEW, N)
    assert error(model, new, old, row_features=PEOPLE) < 0.25
    assert error(model, old, new, col_features=FILMS) < 0.25
    assert error(model, new, new, **ALL) < 0.25
    assert error(model, new, old) > 0.5
    asked = [(USERS[0], ITEMS[0]), (USERS[0], ITEMS[9]), (USERS[9], ITEMS[0]), ("who", ITEMS[9])]
    known = model.predict(asked, return_known=True, **ALL)[1]
    assert ["pair", "pair", "pair", "column"] == known.tolist()


@pytest.mark.parametrize("kind", ["recommender", "completion"])
def test_features_of_newcomers_change_nothing_else(kind: str, request: pytest.FixtureRequest):
    model = request.getfixturevalue(kind)
    asked = [*NAMED[:50], ("who", ITEMS[9]), (USERS[9], "what"), (USERS[0], ITEMS[9])]
    before = model.predict(asked)
    found = model.predict(asked, **ALL)
    np.testing.assert_array_equal(before[:-1], found[:-1])
    assert before[-1] != found[-1]
    np.testing.assert_array_equal(before, model.predict(asked))


def test_the_map_is_a_ridge_regression():
    X, x = FEATURES, torch.from_numpy(rng.normal(size=(M, 5)) + FEATURES @ np.ones((4, 5)))
    found = FeatureMap.of(x, X)
    scaled = X * np.sqrt(M / np.square(X).sum())
    # Minimises |x - 1 mean - X C|^2 + strength |C|^2 over both.
    wide = np.column_stack([scaled, np.ones(M)])
    penalty = np.diag([found.strength] * 4 + [0.0])
    expected = np.linalg.solve(wide.T @ wide + penalty, wide.T @ x.numpy())
    new = rng.normal(size=(3, 4))
    there = new * np.sqrt(M / np.square(X).sum()) @ expected[:4] + expected[4]
    np.testing.assert_allclose(there, found.at(new), rtol=1e-6)
    sparse = FeatureMap.of(x, sp.csr_array(X))
    np.testing.assert_allclose(there, sparse.at(sp.csr_array(new)), rtol=1e-6)


def test_the_strength_is_at_its_fixed_point():
    X, x = FEATURES, rng.normal(size=(M, 5)) + FEATURES @ np.ones((4, 5))
    found = FeatureMap.of(torch.from_numpy(x), X)
    scale = np.sqrt(M / np.square(X).sum())
    C = found.coefficients.numpy() / scale
    rest = x - found.mean.numpy() - X @ found.coefficients.numpy()
    U, spread, _ = np.linalg.svd(X * scale, full_matrices=False)
    U = (U * spread)[:, spread > 1e-8]
    normal = (U - U.mean(0)).T @ (U - U.mean(0)) + found.strength * np.eye(U.shape[1])
    energy = (C**2 / np.mean(rest**2, axis=0)).sum() + 5 * np.trace(np.linalg.inv(normal))
    expected = (1 + 5 * U.shape[1] / 2) / (1 + energy / 2)
    assert found.strength == pytest.approx(expected, rel=1e-3)


def test_draws_are_mapped_one_by_one(completion: MatrixCompletion):
    """The prediction is the mean over draws, each with a row that its own factors give."""
    draws, found = completion.result_, completion.side_maps().maps[0]
    lines = found.at(FEATURES[:1][:, [0, *(1 + "abc".index(x) for x in kinds(completion))]])
    per_draw = lines.reshape(len(draws), -1)
    j = completion.col_labels_.positions([ITEMS[20]])[0]
    V, c = draws.col_factors[:, j].double(), draws.col_bias[:, j].double()
    expected = ((per_draw[:, :-1] * V).sum(1) + per_draw[:, -1] + c).mean() + draws.mean
    low, high = completion.clip_ or (-np.inf, np.inf)
    got = completion.predict([(USERS[0], ITEMS[20])], row_features=PEOPLE)[0]
    assert got == pytest.approx(np.clip(float(expected), low, high), rel=1e-5)
    assert lines_of(draws).shape[1] == lines.shape[1]


def kinds(model: MatrixCompletion) -> str:
    return "".join(model.side_maps().encodings[0].columns[1][1])


def test_ratings_of_newcomers_are_judged_against_their_features(recommender: Recommender):
    """The row is that of dense normal equations, with the features' line as the prior's mean."""
    model = deepcopy(recommender)
    rated = [(USERS[0], ITEMS[k], TRUTH[0, k] + 1.0) for k in (10, 20, 30)]
    anchor = model.model_.side_maps().arrivals(0, PEOPLE[:1], model.row_labels_)[1][0].numpy()
    prior = model._updater.row_prior.precision.numpy()
    right, bias = lines_of(model.result_, 1).numpy(), model.result_.bias
    model.fold_in_rows(rated, row_features=PEOPLE)
    j = model.col_labels_.positions([f for _, f, _ in rated])
    V = np.column_stack([right[j, :-1], np.ones(len(j))])
    y = np.array([v for *_, v in rated]) - bias.mean - bias.cols.double().numpy()[j]
    expected = np.linalg.solve(V.T @ V + prior, V.T @ y + prior @ anchor)
    i = model.row_labels_.positions([USERS[0]])[0]
    np.testing.assert_allclose(expected, lines_of(model.result_)[i].numpy(), rtol=1e-3, atol=1e-4)
    assert error(model, range(1), range(NEW, N)) < 0.5
    # The others came with features and without ratings.
    np.testing.assert_allclose(
        recommender.predict([(USERS[1], ITEMS[9])], row_features=PEOPLE),
        model.predict([(USERS[1], ITEMS[9])]),
        rtol=1e-5,
    )
    assert model.row_labels_.to_ids()[M - NEW :] == USERS[:NEW]


def test_lists_of_and_with_newcomers(recommender: Recommender):
    model, best = recommender, TRUTH[0].argsort()[::-1]
    alone = model.recommend([USERS[0]], 5, row_features=PEOPLE)
    assert {ITEMS.index(x) for x in alone.ids[0]} <= set(best[best >= NEW][:8])
    both = model.recommend(USERS[0], N, **ALL)
    assert set(ITEMS) == set(both.ids[0])
    among = model.recommend(USERS[20], 3, items=ITEMS[:3], col_features=FILMS)
    assert set(ITEMS[:3]) == set(among.ids[0])
    assert M - NEW == len(model.row_labels_) == len(model.recommend(k=1).ids)
    assert M == len(model.recommend(k=1, row_features=PEOPLE).ids)


def test_partial_fit_keeps_newcomers(recommender: Recommender, tmp_path: Path):
    models = [deepcopy(recommender)]
    recommender.save(tmp_path)
    models.append(Recommender.load(tmp_path))
    new = [(USERS[0], ITEMS[0], TRUTH[0, 0]), ("stranger", ITEMS[9], 3.0)]
    for model in models:
        model.partial_fit(new, **ALL).partial_fit([(USERS[1], ITEMS[1], TRUTH[1, 1])])
        assert error(model, range(NEW), range(N)) < 0.3
        assert set(ITEMS) == set(model.recommend("stranger", N, exclude_seen=False).ids[0])
    asked = [(USERS[i], ITEMS[j]) for i, j in PAIRS]
    np.testing.assert_allclose(*(x.predict(asked) for x in models), rtol=1e-5)
    models[0].save(tmp_path)
    again = Recommender.load(tmp_path)
    np.testing.assert_allclose(models[0].predict(asked), again.predict(asked), rtol=1e-6)
    assert set(ITEMS) == set(again.recommend(USERS[0], N, exclude_seen=False).ids[0])
    # Features of one who came without any.
    who = PEOPLE[:1].set_axis(["stranger"])
    lines = [x.fold_in_rows(row_features=who).predict([("stranger", ITEMS[9])]) for x in models]
    np.testing.assert_allclose(*lines, rtol=1e-5)


def test_a_loaded_completion_takes_newcomers(completion: MatrixCompletion, tmp_path: Path):
    completion.save(tmp_path)
    again = MatrixCompletion.load(tmp_path)
    asked = [(USERS[i], ITEMS[j]) for i, j in PAIRS[:200]]
    for x in (lambda m: m.predict(asked, **ALL), lambda m: m.predict_interval(asked, **ALL)[1]):
        np.testing.assert_allclose(x(completion), x(again), rtol=1e-5)


def test_intervals_of_newcomers_are_as_wide_as_without_features(completion: MatrixCompletion):
    asked = [(USERS[0], ITEMS[9]), (USERS[9], ITEMS[0])]
    widths, deviations = list[object](), list[object]()
    for given in (ALL, {}):
        low, high = completion.predict_interval(asked, coverage=0.5, **given)
        mean, std = completion.predict(asked, return_std=True, **given)
        np.testing.assert_allclose((low + high) / 2, mean, rtol=1e-5)
        widths.append(high - low)
        deviations.append(std)
    np.testing.assert_allclose(*widths, rtol=1e-5)
    np.testing.assert_array_equal(*deviations)


def test_frames_of_other_makes_and_orders_are_the_same(recommender: Recommender):
    asked = [(USERS[0], ITEMS[k]) for k in range(NEW, N)]
    other = pl.DataFrame({"id": USERS, "kind": COLUMNS["kind"], "age": COLUMNS["age"]}).lazy()
    mixed = PEOPLE[["kind", "age"]].sample(frac=1, random_state=1)
    found = [recommender.predict(asked, row_features=x) for x in (PEOPLE[:1], mixed, other)]
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2])


def test_arrays_have_a_line_for_each_position():
    i, j = np.array(SEEN).T
    model = Recommender(MatrixCompletion(**OPTIONS))
    model.fit((i - NEW, j), VALUES, row_features=sp.csr_array(FEATURES[NEW:]))
    # Positions from M - NEW on are new.
    more = np.concatenate([FEATURES[NEW:], FEATURES[:NEW]])
    asked = [(M - NEW + k, col) for k in range(NEW) for col in range(NEW, N)]
    truth = TRUTH[:NEW, NEW:].reshape(-1)
    found = [model.predict(asked, row_features=x) for x in (more, sp.csr_array(more))]
    assert np.std(found[0] - truth) < 0.25 * truth.std()
    np.testing.assert_allclose(*found)
    named = pd.DataFrame(FEATURES[:NEW], index=range(M - NEW, M))
    np.testing.assert_allclose(found[0], model.fold_in_rows(row_features=named).predict(asked))
    with pytest.raises(ShapeError, match=r"a line for each position 0\.\.59; got 8 lines"):
        model.predict(asked, row_features=FEATURES[:NEW])
    with pytest.raises(
        ShapeError, match="row_features must have 4 columns, as those fitted; got 3"
    ):
        model.predict(asked, row_features=more[:, :3])


FEW = PEOPLE[:2]
WRONG = {
    "a column lacks": (FEW[["age"]], r"columns fitted, \['age', 'kind'\], in any .*no 'kind'"),
    "a column besides": (FEW.assign(x=1), "got 'x' besides"),
    "missing": (FEW.assign(age=[1.0, np.nan]), "row_features .*column 'age' has 1 missing"),
    "a new category": (FEW.assign(kind="d"), "column 'kind' has 'd', which is none of"),
    "text for numbers": (
        FEW.assign(age=["1", "2"]),
        "column 'age' has .* where there were numbers",
    ),
    "infinite": (FEW.assign(age=[1.0, np.inf]), "column 'age' has 1 missing or infinite"),
    "a name twice": (FEW[["age", "kind", "age"]], "row_features must have columns of distinct nam"),
    "twice": (PEOPLE.iloc[[0, 0]], "row_features must have each id once; got 1 again"),
    "another kind of ids": (FEW.set_axis([1, 2]), "row_features must be text, as they were fitted"),
    "an array": (FEATURES[:2], r"a frame with the columns fitted, \['age', 'kind'\]; got ndarray"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_features_that_do_not_fit_are_refused_by_name(recommender: Recommender, fault: str):
    features, message = WRONG[fault]
    model = deepcopy(recommender)
    for use in (
        lambda: model.predict([(USERS[0], ITEMS[9])], row_features=features),
        lambda: model.recommend([USERS[0]], row_features=features),
        lambda: model.partial_fit([(USERS[0], ITEMS[9], 3.0)], row_features=features),
        lambda: model.fold_in_rows(row_features=features),
    ):
        with pytest.raises(LowRankError, match=message):
            use()
    assert M - NEW == len(model.row_labels_) == model.result_.shape[0]


def test_features_of_nobody_new_change_nothing(completion, recommender: Recommender):
    asked, known = NAMED[:5], {"row_features": PEOPLE[NEW:], "col_features": FILMS[:0]}
    for model in (completion, recommender):
        np.testing.assert_array_equal(model.predict(asked), model.predict(asked, **known))
    model = deepcopy(recommender).partial_fit(**known).fold_in_rows(row_features=PEOPLE[NEW:])
    np.testing.assert_array_equal(recommender.predict(asked), model.predict(asked))
    with pytest.raises(ObservationError, match="ratings, or features; got neither"):
        model.fold_in_cols()


def test_features_need_a_fit_with_some():
    model = Recommender(MatrixCompletion(rank=1, penalty=1.0, validation=None))
    model.fit(NAMED, VALUES)
    for use in (model.predict, model.partial_fit, model.fold_in_cols):
        given = {"X": [(USERS[9], ITEMS[0])], "col_features": FILMS}
        given |= {} if use == model.predict else {"y": [1.0]}
        with pytest.raises(ObservationError, match="col_features are used by a model that was fit"):
            use(**given)
    assert isinstance(model.result_, CompletionResult)
