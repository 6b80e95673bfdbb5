"""What is compared: packages, functions, and settings.

The peers' settings were tuned, before and apart from this experiment, on a validation part of the
training entries of each set. Those of this library are its defaults, but for the rank of Bayesian
fits on ML-1M, and for the rank and the radius of the ball, chosen in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.peers.fits import Settings

POINT, BAYES, FEATURES = "point estimate", "Bayesian", "with features"


@dataclass(frozen=True)
class PeerMethod:
    """One line of the table.

    Attributes
    ----------
    name : str
    kind : str
        Only methods of one kind are compared with each other.
    function : str
        In `fits`, or in `ours` for this library.
    module : str
        What has to be installed.
    small : dict or None
        Settings on ML-100K; None if not run there.
    large : dict or None
        Settings on ML-1M.
    """

    name: str
    kind: str
    function: str
    module: str
    small: Settings | None
    large: Settings | None

    @property
    def ours(self) -> bool:
        """Whether it is of this library."""
        return self.module == "lowrank_opt"

    def settings(self, dataset: str) -> Settings | None:
        """Return the settings on a data set."""
        return self.large if dataset == "ml-1m" else self.small


def _ours(
    name: str, kind: str, function: str, small: Settings | None, large: Settings | None
) -> PeerMethod:
    return PeerMethod(name, kind, function, "lowrank_opt", small, large)


_CORNAC = {"k": 100, "learning_rate": 0.01}
_CMFREC = {"scale_lam": True, "use_cg": True}
_LENSKIT = {"embedding_size": 50, "damping": 5.0}
_FLIPPED = {"implicit": True, "side": True, "epochs": 300}

METHODS = (
    PeerMethod(
        "cornac MF",
        POINT,
        "cornac_mf",
        "cornac",
        {**_CORNAC, "max_iter": 40, "lambda_reg": 0.065},
        {**_CORNAC, "max_iter": 30, "lambda_reg": 0.04},
    ),
    _ours("variational", POINT, "lowrank_variational", {}, {}),
    PeerMethod(
        "LIBMF",
        POINT,
        "libmf",
        "libmf",
        {"k": 80, "nr_iters": 30, "lambda_p2": 0.12, "lambda_q2": 0.12, "eta": 0.1},
        {"k": 80, "nr_iters": 40, "lambda_p2": 0.07, "lambda_q2": 0.07, "eta": 0.1},
    ),
    _ours(
        "variational, weighted nuclear-norm ball",
        POINT,
        "lowrank_variational",
        {"rank": 12, "radius": 750.0},
        {"rank": 24, "radius": 4800.0},
    ),
    _ours("variational, rank 16", POINT, "lowrank_variational", None, {"rank": 16}),
    PeerMethod(
        "cmfrec ALS, CG",
        POINT,
        "cmfrec",
        "cmfrec",
        {**_CMFREC, "k": 40, "lambda_": 0.12, "niter": 20},
        {**_CMFREC, "k": 50, "lambda_": 0.07, "niter": 15},
    ),
    _ours("SGD", POINT, "lowrank_sgd", {}, {}),
    PeerMethod(
        "Surprise SVD",
        POINT,
        "surprise_svd",
        "surprise",
        {"n_factors": 150, "n_epochs": 60, "lr_all": 0.005, "reg_all": 0.11},
        {"n_factors": 100, "n_epochs": 40, "lr_all": 0.005, "reg_all": 0.06},
    ),
    PeerMethod(
        "LensKit ALS",
        POINT,
        "lenskit_als",
        "lenskit",
        {**_LENSKIT, "epochs": 20, "regularization": 0.15},
        {**_LENSKIT, "epochs": 15, "regularization": 0.07},
    ),
    PeerMethod(
        "myFM", BAYES, "myfm", "myfm", {"rank": 6, "epochs": 300}, {"rank": 24, "epochs": 200}
    ),
    _ours("bayesian", BAYES, "lowrank_bayesian", {"rank": 16}, {"rank": 24}),
    PeerMethod(
        "SMURFF",
        BAYES,
        "smurff",
        "smurff",
        {"num_latent": 16, "burnin": 100, "nsamples": 300, "alpha": 1.5},
        {"num_latent": 24, "burnin": 60, "nsamples": 140, "alpha": 1.6},
    ),
    PeerMethod("myFM, implicit + side", FEATURES, "myfm", "myfm", {"rank": 10, **_FLIPPED}, None),
    _ours(
        "bayesian, implicit + side",
        FEATURES,
        "lowrank_bayesian",
        {"rank": 16, "implicit": True, "side": True},
        None,
    ),
    PeerMethod(
        "myFM, implicit",
        FEATURES,
        "myfm",
        "myfm",
        None,
        {"rank": 24, "epochs": 200, "implicit": True},
    ),
    _ours(
        "bayesian, implicit",
        FEATURES,
        "lowrank_bayesian",
        None,
        {"rank": 24, "implicit": True},
    ),
    PeerMethod(
        "SMURFF Macau, side",
        FEATURES,
        "smurff",
        "smurff",
        {"num_latent": 16, "burnin": 100, "nsamples": 300, "alpha": 1.5, "side": True},
        None,
    ),
    PeerMethod(
        "cmfrec ALS, implicit",
        FEATURES,
        "cmfrec",
        "cmfrec",
        {
            "scale_lam": True,
            "use_cg": False,
            "k": 40,
            "lambda_": 0.12,
            "niter": 20,
            "add_implicit_features": True,
            "w_implicit": 1.5,
        },
        None,
    ),
)
