"""
Coming from Surprise, cmfrec or implicit
========================================

.. index:: ! surprise, ! cmfrec, ! implicit

The same steps, side by side. The lines of the other packages are shown, not run; those of this library run here.
"""

# %%
# Ratings in a frame
# ------------------

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from lowrank_opt.estimators import MatrixCompletion, Recommender

rng = np.random.default_rng(0)
tastes, kinds = rng.normal(size=(120, 2)), rng.normal(size=(50, 2))
cells = rng.permutation(120 * 50)[:2400]
stars = np.clip(np.round(3.5 + (tastes[cells // 50] * kinds[cells % 50]).sum(1)), 1, 5)
frame = pd.DataFrame({"user": cells // 50, "item": cells % 50, "rating": stars})
test = rng.random(len(frame)) < 0.2
train, held_out = frame[~test], frame[test]

# %%
# Surprise
# --------
# ::
#
#     data = Dataset.load_from_df(train, Reader(rating_scale=(1, 5)))
#     model = SVD(n_factors=50).fit(data.build_full_trainset())
#     model.predict("7", "3").est           # ids become text in files, numbers in frames
#
# Here nothing has to be chosen: rank and regularisation come from a part of the training ratings that is kept back, and the
# scale from the data. Ids keep their type.

model = MatrixCompletion(random_state=0).fit(train)
errors = model.predict(held_out[["user", "item"]]) - held_out["rating"].to_numpy()
print(
    "RMSE",
    float(np.sqrt(np.mean(errors**2))),
    "standard deviation",
    float(held_out["rating"].std()),
)

# %%
# Grid search is scikit-learn's; so are pipelines, cloning and cross-validation.

from sklearn.model_selection import cross_val_score

pairs, ratings = train[["user", "item"]].to_numpy(), train["rating"].to_numpy()
scores = cross_val_score(
    MatrixCompletion(random_state=0), pairs, ratings, cv=3, scoring="neg_root_mean_squared_error"
)
print("three folds", -scores)

# %%
# cmfrec
# ------
# ::
#
#     model = CMF(k=40, lambda_=10.0).fit(train.rename(columns=...), U=user_features)
#     model.predict(user=[1, 2], item=[3, 4])
#     model.factors_warm(X_col=items, X_val=ratings)
#
# New users come in without a refit; intervals say how sure a prediction is.

ranker = Recommender(MatrixCompletion(random_state=0)).fit(train)
ranker.fold_in_rows([(1000, 3, 5.0), (1000, 8, 1.0), (1000, 9, 4.0)])
print(ranker.recommend(1000, k=3).to_pandas())

lower, upper = model.predict_interval(held_out[["user", "item"]].head(3), coverage=0.9)
print(np.column_stack([lower, upper]))

# %%
# implicit
# --------
# ::
#
#     model = AlternatingLeastSquares(factors=64).fit(user_items)
#     ids, scores = model.recommend(userid, user_items[userid], N=10)
#     model.similar_items(itemid)
#
# Ids here are yours, not positions. Counts of clicks are another problem: this library is for ratings and measurements.

best = ranker.recommend(7, k=3)
print(best.ids, best.scores)
print(ranker.similar_items(4, k=3).ids)

# %%
# Save
# ----

folder = Path(tempfile.mkdtemp()) / "model"
ranker.save(folder)
again = Recommender.load(folder)
print(np.array_equal(again.recommend(7, k=3).ids, best.ids))
