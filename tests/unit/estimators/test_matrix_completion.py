"""MatrixCompletion as a demanding user would use it."""

import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.estimators import Labels, MatrixCompletion
from tests.unit.estimators.cases import SHAPE, quick, ratings

SOLVERS = ("als", "gradient", "variational", "bayesian")


@pytest.mark.parametrize("solver", ["auto", "als", "bayesian"])
def test_defaults_predict_held_out_entries(solver: str):
    pairs, y = ratings()
    model = MatrixCompletion(solver=solver, random_state=0).fit(pairs[:600], y[:600])
    assert model.score(pairs[600:], y[600:]) > 0.95


def test_grid_search_of_the_architecture_page():
    pairs, y = ratings()
    obs = lo.Observations(*pairs.T, y, SHAPE)
    grid = {"rank": [1, 2], "radius": [1.0, 60.0]}
    estimator = MatrixCompletion(shape=obs.shape, max_iterations=40, random_state=0)
    search = GridSearchCV(estimator, grid, cv=3).fit(pairs, y)
    assert {"rank": 2, "radius": 60.0} == search.best_params_
    assert (y.dtype, (700,)) == (search.predict(pairs).dtype, search.predict(pairs).shape)


def test_radius_bounds_the_nuclear_norm():
    model = MatrixCompletion(radius=20.0, rank=5, weighted=False, random_state=0).fit(*ratings())
    assert float(model.result_.operator.schatten_norm(1)) <= 20.0 * (1 + 1e-9)
    assert model.result_.certificate().gap >= 0


@pytest.mark.parametrize("solver", ["als", "variational"])
def test_choosing_costs_at_most_four_fits(solver: str):
    # A sweep, or an evaluation, costs about entries x rank^2; seconds would be noise.
    pairs, y = ratings(count=1000)
    model = MatrixCompletion(solver=solver, random_state=0).fit(pairs, y)
    given = {name: int(v) if name == "rank" else v for name, v in model.setting_.items()}
    single = MatrixCompletion(solver=solver, random_state=0, **given).fit(pairs, y)
    path = sum(p.iterations * p.setting["rank"] ** 2 for p in model.path_.points)
    total = path + len(model.result_.history) * model.rank_**2
    assert 0 == len(single.path_)
    assert total <= 5 * len(single.result_.history) * single.rank_**2


def test_path_holds_what_was_tried():
    model = MatrixCompletion(solver="als", random_state=0).fit(*ratings())
    columns = model.path_.columns()
    assert {"penalty", "bias_penalty", "rank", "validation_rmse", "iterations", "seconds"} == set(
        columns
    )
    k = int(np.argmin(columns["validation_rmse"]))
    assert model.setting_ == {x: columns[x][k] for x in ("penalty", "bias_penalty", "rank")}
    assert (model.penalty_, model.rank_) == (columns["penalty"][k], int(columns["rank"][k]))


def test_given_settings_are_not_chosen():
    model = quick(bias_penalty=None, solver="als").fit(*ratings())
    assert {2.0, 0.0} == set(model.path_.columns()["rank"])
    assert {0.5} == set(model.path_.columns()["penalty"])


def test_cross_val_score_is_that_of_the_estimator():
    pairs, y = ratings()
    scores = cross_val_score(quick(), pairs, y, cv=3)
    assert scores.min() > 0.8


def test_clone_and_pickle_predict_the_same():
    pairs, y = ratings()
    model = quick().fit(pairs, y)
    again = clone(model).fit(pairs, y)
    np.testing.assert_array_equal(model.predict(pairs), again.predict(pairs))
    np.testing.assert_array_equal(
        model.predict(pairs), pickle.loads(pickle.dumps(model)).predict(pairs)
    )


def test_pipeline_with_a_column_selector():
    pairs, y = ratings()
    frame = pd.DataFrame({"day": 1, "item": pairs[:, 1], "user": pairs[:, 0], "text": "x"})
    select = make_column_transformer(("passthrough", ["user", "item"]))
    pipeline = make_pipeline(select, quick()).fit(frame, y)
    np.testing.assert_array_equal(quick().fit(pairs, y).predict(pairs), pipeline.predict(frame))


def test_pipeline_keeps_strings_in_frames():
    pairs, y = ratings()
    frame = pd.DataFrame({"text": "x", "user": pairs[:, 0], "item": pairs[:, 1]}).astype(str)
    select = FunctionTransformer(lambda table: table[["user", "item"]])
    model = make_pipeline(select, quick()).fit(frame, y)
    assert model.score(frame, y) > 0.9
    assert ["user", "item"] == model[-1].feature_names_in_.tolist()


def test_weights_are_repetitions():
    pairs, y = ratings(count=300)
    weights = np.random.default_rng(1).integers(0, 4, len(y))
    repeated = quick(tolerance=1e-9).fit(np.repeat(pairs, weights, axis=0), np.repeat(y, weights))
    weighted = quick(tolerance=1e-9).fit(pairs, y, sample_weight=weights)
    np.testing.assert_allclose(weighted.predict(pairs), repeated.predict(pairs), atol=1e-5)


def test_weights_are_routed():
    import sklearn

    pairs, y = ratings(count=300)
    weights = np.where(np.arange(300) % 2, 1.0, 0.0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = quick().set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        search = GridSearchCV(model, {"rank": [2]}, cv=2)
        search.fit(pairs, y, sample_weight=weights)
    fitted = quick().fit(pairs, y, sample_weight=weights)
    np.testing.assert_array_equal(fitted.predict(pairs), search.predict(pairs))


def names(pairs: np.ndarray) -> list[tuple[str, str]]:
    return [(f"user {i * 7 % 41}", f"item {j}") for i, j in pairs.tolist()]


def test_string_ids_are_kept_and_change_nothing():
    pairs, y = ratings()
    model = quick(solver="als").fit(names(pairs), y)
    labels = model.row_labels_.ids.tolist()
    assert {f"user {k}" for k in range(41)} >= set(labels)
    assert labels == list(model.result_.row_ids)
    assert model.score(names(pairs), y) == pytest.approx(
        quick(solver="als").fit(pairs, y).score(pairs, y), abs=1e-3
    )


def test_ids_survive_save_and_load(tmp_path):
    pairs, y = ratings()
    for asked in (names(pairs), pairs):
        model = quick().fit(asked, y)
        model.result_.save(tmp_path / "model")
        loaded = lo.CompletionResult.load(tmp_path / "model")
        assert model.row_labels_.to_list() == list(loaded.row_ids)
        users, items = (Labels.from_list(list(x)) for x in (loaded.row_ids, loaded.col_ids))
        rows = users.positions([pair[0] for pair in asked])
        cols = items.positions([pair[1] for pair in asked])
        np.testing.assert_allclose(loaded.predict(rows, cols), model.predict(asked))


def test_unsorted_integer_ids():
    pairs, y = ratings()
    far = np.stack((pairs[:, 0] * -1000003, pairs[:, 1] ** 3 + 5), axis=1)
    assert quick().fit(far, y).score(far, y) > 0.9


def test_unknown_ids_fall_back():
    pairs, y = ratings()
    model = quick(clip=None).fit(names(pairs), y)
    bias = model.result_.bias
    i, j = model.row_labels_.positions(["user 7"])[0], model.col_labels_.positions(["item 3"])[0]
    asked = [("user 7", "item 3"), ("user 7", "?"), ("?", "item 3"), ("?", 5)]
    predicted, known = model.predict(asked, return_known=True)
    assert ["pair", "row", "column", "mean"] == known.tolist()
    expected = [bias.mean + bias.rows[i], bias.mean + bias.cols[j], bias.mean]
    np.testing.assert_allclose(predicted[1:], [float(x) for x in expected])


def test_positions_without_entries_are_unknown():
    model = quick(shape=(50, 30)).fit(*ratings())
    _, known = model.predict([(45, 2), (3, 2), (99, 2), (-1, 99)], return_known=True)
    assert ["column", "pair", "column", "mean"] == known.tolist()


def test_without_bias_the_unknown_is_the_mean():
    pairs, y = ratings()
    model = quick(bias=None).fit(pairs, y)
    assert y.mean() == pytest.approx(model.predict([(99, 99)])[0])


def test_standard_deviations_of_the_bayesian_solver():
    pairs, y = ratings()
    model = MatrixCompletion(solver="bayesian", rank=2, random_state=0).fit(pairs[:600], y[:600])
    mean, std = model.predict(pairs[600:], return_std=True)
    z = (mean - y[600:]) / std
    assert 0.5 < z.std() < 1.5
    mean, std, known = model.predict([(0, 0), (99, 99)], return_std=True, return_known=True)
    assert (["pair", "mean"], True) == (known.tolist(), bool(std[1] > std[0]))


def test_point_estimates_have_no_standard_deviation():
    with pytest.raises(OptionError, match="use solver='bayesian'"):
        quick(validation=None).fit(*ratings()).predict([(0, 0)], return_std=True)


def test_intervals_cover():
    pairs, y = ratings(count=1100)
    model = MatrixCompletion(random_state=0).fit(pairs[:800], y[:800])
    lower, upper = model.predict_interval(pairs[800:], coverage=0.8)
    covered = np.mean((lower <= y[800:]) & (y[800:] <= upper))
    # 80 calibration and 300 test entries: the standard deviation of the share is 0.05.
    assert 0.65 < covered < 0.95
    wider = model.predict_interval(pairs[800:], coverage=0.95)
    assert (wider[0] < lower).all()
    assert np.isinf(model.predict_interval(pairs, coverage=0.999)[1]).all()


def test_intervals_need_held_out_errors():
    with pytest.raises(OptionError, match="with validation=None, or from a folder"):
        quick(validation=None).fit(*ratings()).predict_interval([(0, 0)])
    with pytest.raises(OptionError, match=r"coverage must be in \(0, 1\); got coverage=90"):
        MatrixCompletion().fit(*ratings()).predict_interval([(0, 0)], coverage=90)


def test_float32_stays_and_agrees():
    pairs, y = ratings()
    single = quick().fit(pairs, y.astype(np.float32)).predict(pairs)
    assert np.float32 == single.dtype
    np.testing.assert_allclose(single, quick().fit(pairs, y).predict(pairs), atol=1e-4)


@pytest.mark.parametrize("unit", [2.0**-400, 2.0**20, 2.0**400])
def test_unit_of_the_values_does_not_matter(unit: float):
    pairs, y = ratings()
    model, other = (MatrixCompletion(solver="als", random_state=0) for _ in range(2))
    expected = model.fit(pairs, y).predict(pairs)
    scaled = other.fit(pairs, unit * y).predict(pairs) / unit
    np.testing.assert_allclose(scaled, expected, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("pairs", "y"),
    [
        ([(0, 0)], [2.5]),
        ([(k % 5, k % 4) for k in range(20)], [3.0] * 20),
        ([(0, k) for k in range(12)], list(np.linspace(1.0, 4.0, 12))),
        ([(k, 0) for k in range(12)], list(np.linspace(1.0, 4.0, 12))),
        ([(0, 0)] * 15, list(np.linspace(1.0, 4.0, 15))),
    ],
    ids=["one entry", "all equal", "one row", "one column", "one pair"],
)
def test_degenerate_data_predict_within_their_range(solver: str, pairs: list, y: list[float]):
    predicted = MatrixCompletion(solver=solver, random_state=0).fit(pairs, y).predict(pairs)
    assert np.isfinite(predicted).all()
    assert min(y) - 0.2 <= predicted.min() <= predicted.max() <= max(y) + 0.2


def test_sparse_matrix_with_explicit_zeros():
    pairs, y = ratings()
    matrix = sp.csr_array((y, tuple(pairs.T)), shape=SHAPE)
    matrix.data[::10] = 0.0
    coo = matrix.tocoo()
    from_matrix = quick(shape=SHAPE).fit(matrix)
    from_pairs = quick(shape=SHAPE).fit(np.stack((coo.row, coo.col), 1), coo.data)
    predicted = from_matrix.predict(matrix)
    np.testing.assert_array_equal(from_pairs.predict(np.stack((coo.row, coo.col), 1)), predicted)


def test_ratings_are_clipped_to_their_scale():
    pairs, y = ratings()
    stars = np.clip(np.round(y), 1, 5)
    assert (1.0, 5.0) == quick().fit(pairs, stars).clip_
    assert quick().fit(pairs, y).clip_ is None
    assert quick(clip=(2, 3)).fit(pairs, stars).predict(pairs).max() <= 3.0


@dataclass(frozen=True)
class InABall:
    """A user's solver."""

    traits: ClassVar[lo.solvers.Traits] = lo.solvers.Traits(sets=("rank",))
    max_iterations: int = 12

    def solve(self, problem: lo.CompletionProblem, run: lo.solvers.Run) -> lo.CompletionResult:
        ball = lo.HomogeneousBall(
            problem.shape,
            problem.fixed_rank,
            radius=200.0,
            dtype=problem.observations.dtype,
            generator=run.generator,
        )
        return lo.complete(problem.observations, ball, max_iterations=self.max_iterations)


def test_a_solver_of_ones_own():
    pairs, y = ratings()
    model = MatrixCompletion(solver=InABall(), random_state=0).fit(pairs, y)
    assert model.score(pairs, y) > 0.9
    assert len(model.path_) > 1
    assert clone(model).solver == InABall()


def test_a_function_is_no_solver():
    pairs, y = ratings()
    with pytest.raises(OptionError, match=r"wrap a function .* in lowrank_opt\.solvers\.Custom"):
        MatrixCompletion(solver=len).fit(pairs, y)


@pytest.mark.parametrize(
    ("solver", "setting"),
    [
        (lo.solvers.FrankWolfe(gap=1e-1, max_iterations=4), "radius"),
        ("soft_impute", "penalty"),
        (lo.solvers.GaussNewton(max_iterations=5), "rank"),
    ],
)
def test_any_solver_is_searched_along_what_regularises_it(solver: object, setting: str):
    pairs, y = ratings()
    model = MatrixCompletion(solver=solver, random_state=0).fit(pairs, y)
    assert len({point.setting[setting] for point in model.path_.points}) > 1
    assert model.score(pairs, y) > 0.5


def test_solvers_of_the_library_follow_the_seed():
    pairs, y = ratings()
    models = [
        MatrixCompletion(solver="sgd", rank=5, max_iterations=50, random_state=k).fit(pairs, y)
        for k in (0, 0, 1)
    ]
    same, again, other = (model.predict(pairs) for model in models)
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    assert models[0].score(pairs, y) > 0.8


@pytest.mark.parametrize("scale", [1e160, 1e-300])
@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "als"}, {"radius": 100.0}, {"solver": "bayesian", "max_iterations": 5}],
    ids=str,
)
def test_values_of_any_size(scale: float, options: dict[str, object]):
    """A fit in another unit is the same fit."""
    pairs, y = ratings()
    # A power of two: the values are the same numbers in another unit.
    scale = 2.0 ** round(np.log2(scale))
    given = {k: x * scale if k == "radius" else x for k, x in options.items()}
    near = MatrixCompletion(random_state=0, clip=None, **options).fit(pairs, y)
    far = MatrixCompletion(random_state=0, clip=None, **given).fit(pairs, y * scale)
    assert near.rank_ == far.rank_
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(near.predict(pairs), far.predict(pairs) / scale, **close)
    # Variances of draws are squares, and infinite or zero in such units.
    if options.get("solver") != "bayesian":
        for a, b in zip(near.predict_interval(pairs), far.predict_interval(pairs), strict=True):
            np.testing.assert_allclose(a, b / scale, **close)
