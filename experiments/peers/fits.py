"""One function for each package: fit a split, predict its test entries.

Every function takes a split, settings, a seed and a stopwatch, which it enters for the fit alone:
imports, conversions and predictions are not timed. Packages are imported inside, so that a missing
one is found out here and not before.
"""

# Third-party packages without type information are the subject of this file.
# pyright: reportMissingImports=false, reportUnknownVariableType=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from experiments.peers.split import Indices, Reals, Split

Settings = dict[str, object]
Timer = AbstractContextManager[object]
Fit = Callable[[Split, Settings, int, Timer], Reals]


def biases(split: Split, damping: float = 5.0) -> Reals:
    """Return damped mean-and-bias predictions of the test entries, for ids a package omits."""
    mean = split.values.mean()
    row, col = np.zeros(split.shape[0]), np.zeros(split.shape[1])
    row_counts = np.bincount(split.rows, minlength=len(row)) + damping
    col_counts = np.bincount(split.cols, minlength=len(col)) + damping
    for _ in range(10):
        rest = split.values - mean - row[split.rows]
        col = np.bincount(split.cols, rest, minlength=len(col)) / col_counts
        rest = split.values - mean - col[split.cols]
        row = np.bincount(split.rows, rest, minlength=len(row)) / row_counts
    return mean + row[split.test_rows] + col[split.test_cols]


def cornac_mf(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Cornac's biased SGD."""
    import cornac

    triples = zip(split.rows.tolist(), split.cols.tolist(), split.values.tolist(), strict=True)
    data = cornac.data.Dataset.build(list(triples))
    model = cornac.models.MF(use_bias=True, seed=seed, verbose=False, num_threads=1, **settings)
    with timer:
        model.fit(data)
    out = biases(split)
    for k, (i, j) in enumerate(
        zip(split.test_rows.tolist(), split.test_cols.tolist(), strict=True)
    ):
        if i in data.uid_map and j in data.iid_map:
            out[k] = model.score(data.uid_map[i], data.iid_map[j])
    return out


def surprise_svd(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Surprise's biased SGD."""
    import pandas as pd
    import surprise

    frame = pd.DataFrame({"u": split.rows, "i": split.cols, "r": split.values})
    scale = (float(split.values.min()), float(split.values.max()))
    data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=scale))
    model = surprise.SVD(random_state=seed, **settings)
    train = data.build_full_trainset()
    with timer:
        model.fit(train)
    pairs = zip(split.test_rows.tolist(), split.test_cols.tolist(), strict=True)
    return np.array([model.predict(i, j).est for i, j in pairs])


def cmfrec(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run cmfrec's alternating least squares."""
    import scipy.sparse
    from cmfrec import CMF

    X = scipy.sparse.coo_matrix((split.values, (split.rows, split.cols)), shape=split.shape)
    model = CMF(method="als", nthreads=1, random_state=seed, verbose=False, **settings)
    with timer:
        model.fit(X)
    return model.predict(split.test_rows, split.test_cols)


def libmf(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run LIBMF's block-parallel SGD; predictions are made from its factors.

    The wrapper's own predict reads pairs in Fortran order without a check.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        from libmf import mf
    triples = np.stack([split.rows, split.cols, split.values], axis=1)
    triples = np.ascontiguousarray(triples, dtype=np.float32)
    model = mf.MF(nr_threads=1, nr_bins=20, lambda_p1=0.0, lambda_q1=0.0, quiet=True, **settings)
    with timer:
        model.fit(triples)
    P, Q = model.p_factors(), model.q_factors()
    out = biases(split)
    seen = np.isin(split.test_rows, split.rows) & np.isin(split.test_cols, split.cols)
    i, j = split.test_rows[seen], split.test_cols[seen]
    out[seen] = np.einsum("ka,ka->k", P[i], Q[j])
    return out


def lenskit_als(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """LensKit's alternating least squares on biased residuals."""
    import pandas as pd
    from lenskit.als import BiasedMFScorer
    from lenskit.data import ItemList, RecQuery, from_interactions_df
    from lenskit.training import TrainingOptions

    names = {"user_id": split.rows, "item_id": split.cols, "rating": split.values.astype(float)}
    data = from_interactions_df(pd.DataFrame(names))
    scorer = BiasedMFScorer(user_embeddings="prefer", **settings)
    with timer:
        scorer.train(data, TrainingOptions(rng=seed))
    out = biases(split)
    for user in np.unique(split.test_rows):
        where = np.flatnonzero(split.test_rows == user)
        query = RecQuery(user_id=int(user), user_items=data.user_row(int(user)))
        items = ItemList(item_ids=split.test_cols[where])
        scores = np.asarray(scorer(query, items).scores(), dtype=float)
        known = np.isfinite(scores)
        out[where[known]] = scores[known]
    return out


def myfm(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """Run myFM's Gibbs sampler, or its variational approximation, on blocks of indicators."""
    import myfm as package
    from myfm import RelationBlock

    chosen = dict(settings)
    features = (bool(chosen.pop("implicit", False)), bool(chosen.pop("side", False)))
    name = "VariationalFMRegressor" if chosen.pop("variational", False) else "MyFMRegressor"
    ordered = bool(chosen.pop("ordered", False))
    name = "MyFMOrderedProbit" if ordered else name
    epochs = int(str(chosen.pop("epochs")))
    left, left_groups = _myfm_block(split, *features, transposed=False)
    right, right_groups = _myfm_block(split, *features, transposed=True)
    model = getattr(package, name)(random_seed=seed, **chosen)
    kept = {} if name.startswith("V") else {"n_kept_samples": epochs - epochs // 5}

    def blocks(rows: Indices, cols: Indices) -> list[object]:
        pairs = ((rows, left), (cols, right))
        return [RelationBlock(index.astype(np.int64), block) for index, block in pairs]

    train, groups = blocks(split.rows, split.cols), left_groups + right_groups
    levels, places = np.unique(split.values.astype(np.float64), return_inverse=True)
    values = places if ordered else levels[places]
    with timer:
        model.fit(None, values, X_rel=train, n_iter=epochs, group_shapes=groups, **kept)
    asked = blocks(split.test_rows, split.test_cols)
    if ordered:
        return model.predict_proba(None, X_rel=asked) @ levels
    return model.predict(None, X_rel=asked)


def _myfm_block(
    split: Split, implicit: bool, side: bool, *, transposed: bool
) -> tuple[object, list[int]]:
    import scipy.sparse

    pattern = scipy.sparse.csr_matrix(
        (np.ones(len(split.rows)), (split.rows, split.cols)), shape=split.shape
    )
    pattern = pattern.T.tocsr() if transposed else pattern
    features = split.col_features if transposed else split.row_features
    parts = [scipy.sparse.identity(pattern.shape[0])]
    if implicit:
        counts = np.maximum(np.asarray(pattern.sum(1)).ravel(), 1)
        parts.append(scipy.sparse.diags(1 / np.sqrt(counts)) @ pattern)
    if side:
        parts.append(scipy.sparse.csr_matrix(features))
    return scipy.sparse.hstack(parts).tocsr(), [part.shape[1] for part in parts]


def smurff(split: Split, settings: Settings, seed: int, timer: Timer) -> Reals:
    """SMURFF's Gibbs sampler on centred values, with its priors for side information."""
    import scipy.sparse
    import smurff as package

    chosen = dict(settings)
    side, alpha = bool(chosen.pop("side", False)), float(str(chosen.pop("alpha")))
    mean = float(split.values.mean())
    centred = split.values.astype(np.float64) - mean
    X = scipy.sparse.coo_matrix((centred, (split.rows, split.cols)), shape=split.shape)
    ones = np.ones(len(split.test_rows))
    Y = scipy.sparse.coo_matrix((ones, (split.test_rows, split.test_cols)), shape=split.shape)
    priors = ["macau" if side else "normal"] * 2
    session = package.TrainSession(priors=priors, num_threads=1, seed=seed, verbose=0, **chosen)
    session.addTrainAndTest(X, Y, package.FixedNoise(alpha))
    if side:
        for axis, features in enumerate((split.row_features, split.col_features)):
            matrix = scipy.sparse.csr_matrix(features.astype(np.float64))
            session.addSideInfo(axis, matrix, direct=True)
    with timer:
        predictions = session.run()
    table = {(p.coords[0], p.coords[1]): p.pred_avg for p in predictions}
    pairs = zip(split.test_rows.tolist(), split.test_cols.tolist(), strict=True)
    return np.array([table[pair] for pair in pairs]) + mean
