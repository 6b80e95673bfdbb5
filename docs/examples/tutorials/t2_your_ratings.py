"""
Your own ratings: from a file to a served model
===============================================

.. index:: ! rating, ! ratings, ! serve

A file of ratings goes in; out comes a small web service that recommends. On the way: ids that are text, a choice of
nothing, intervals, new users without a refit.
"""

# %%
# A file
# ------
# Yours has other names. Ids are what they are in the file: ``007`` and ``7`` are two users.

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
tastes, kinds = rng.normal(size=(150, 2)), rng.normal(size=(60, 2))
cells = rng.permutation(150 * 60)[:3500]
users, films = cells // 60, cells % 60
stars = np.clip(
    np.round(3.4 + (tastes[users] * kinds[films]).sum(1) + 0.4 * rng.normal(size=3500)), 1, 5
)
frame = pd.DataFrame(
    {
        "user": [f"{u:03d}" for u in users],
        "film": [f"film {f}" for f in films],
        "stars": stars.astype(int),
    }
)
folder = Path(tempfile.mkdtemp())
frame.to_csv(folder / "ratings.csv", index=False)
print((folder / "ratings.csv").read_text(encoding="utf-8")[:60])

# %%
# Fit
# ---
# ``MatrixCompletion`` reads the file, chooses rank and strength of regularisation by itself, and predicts any pair. A part
# of the ratings is kept back here to see how good that is.

from lowrank_opt.estimators import MatrixCompletion, Recommender

test = rng.random(len(frame)) < 0.1
frame[~test].to_csv(folder / "train.csv", index=False)
model = MatrixCompletion(random_state=0).fit(folder / "train.csv")

predicted = model.predict(frame[test][["user", "film"]])
wanted = frame[test]["stars"].to_numpy()
print("RMSE", float(np.sqrt(np.mean((predicted - wanted) ** 2))))
print("always the mean:", float(np.std(wanted)))

# %%
# Say how sure
# ------------

lower, upper = model.predict_interval(frame[test][["user", "film"]], coverage=0.9)
print("covered", float(np.mean((lower <= wanted) & (wanted <= upper))), "asked 0.9")

# %%
# Recommend
# ---------
# What a user has rated is left out.

recommender = Recommender(MatrixCompletion(random_state=0)).fit(folder / "ratings.csv")
print(recommender.recommend(["007", "010"], k=3).to_pandas())

# %%
# Somebody new comes in with three ratings; nothing is fitted again.

recommender.fold_in_rows(
    [("new user", "film 3", 5.0), ("new user", "film 8", 1.0), ("new user", "film 9", 5.0)]
)
print(recommender.recommend("new user", k=3).ids)

# %%
# Save, load, serve
# -----------------
# A model is a folder. The service below loads it once and answers; any web framework will do the same.

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

recommender.save(folder / "model")
served = Recommender.load(folder / "model")


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        best = served.recommend(self.path.removeprefix("/").replace("%20", " "), k=3)
        body = json.dumps([str(item) for item in np.ravel(best.ids)]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


with HTTPServer(("127.0.0.1", 0), Service) as server:
    threading.Thread(target=server.handle_request).start()
    print(urlopen(f"http://127.0.0.1:{server.server_port}/007").read().decode())

# %%
# The same without Python::
#
#     lowrank-opt complete ratings.csv --out model/
#     lowrank-opt recommend model/ --user 007 -k 3 --exclude-seen ratings.csv
