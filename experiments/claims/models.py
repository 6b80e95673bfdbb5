"""Claims on federated aggregation, on completion beside peers, and on what things cost."""

import statistics
from functools import partial

from experiments.claims.finding import (
    TELLING,
    Claim,
    Effect,
    Finding,
    Record,
    Rows,
    gain,
    over_seeds,
    paired,
    share_interval,
)
from experiments.peers.methods import METHODS

EXACT = 1e-5


def aggregation(record: Record, rule: str) -> Finding:
    """Return gains of test accuracy over FedIT, in points, for few and many local steps."""
    rows: Rows = record["final"]
    effects = [
        gain(
            f"{rule}, {steps} local steps",
            [
                100 * x
                for x in paired(
                    (r for r in rows if r["local_steps"] == steps), rule, "FedIT", "test", by="rule"
                )
            ],
            telling=TELLING,
        )
        for steps in sorted({r["local_steps"] for r in rows})
    ]
    seeds = len({r["seed"] for r in rows})
    return Finding(tuple(effects), "points of test accuracy over FedIT", over_seeds(seeds))


def no_bias(record: Record) -> Finding:
    """Return the largest bias of any round, of the rules that are exact."""
    rows: Rows = record["final"]

    def effect(rule: str) -> Effect:
        worst = max(max(r["biases"]) for r in rows if r["rule"] == rule)
        return Effect(rule, worst, holds=worst < EXACT, beside=rule == "FedIT")

    return Finding(
        tuple(effect(rule) for rule in ("FLoRA", "FedEx-LoRA", "FFA-LoRA", "FedIT")),
        "relative bias of the average, the worst round of all runs",
        f"the largest of {len({r['seed'] for r in rows})} seeds",
        EXACT,
        f"Asked: {EXACT:g} at most, which is rounding.",
        logarithmic=True,
    )


def recovered(record: Record) -> Finding:
    """Return the share of well-sampled matrices that are recovered, by condition number."""
    rows: Rows = record["trials"]
    limit = record["settings"]["recovered"]

    def effect(solver: str, condition: float, *, beside: bool = False) -> Effect:
        own = [
            r["error"] < limit
            for r in rows
            if (r["solver"], r["condition"]) == (solver, condition) and r["oversampling"] >= 2.5
        ]
        share = share_interval(sum(own), len(own))
        label = f"{solver}, condition number {condition:g}"
        return Effect(label, *share, holds=all(own), beside=beside)

    solvers = ("scaled_gd", "gauss_newton", "riemannian")
    effects = [effect(solver, 1e4) for solver in solvers]
    others = [effect("Factored, L-BFGS", c, beside=True) for c in (1.0, 1e4)]
    return Finding(
        (*effects, *others),
        "share recovered from 2.5 entries for each degree of freedom on",
        "95 % over 12 draws, Clopper and Pearson",
        remark="Asked: all of them, to a relative error of 1e-4.",
    )


def beside_peers(record: Record, ours: str, kind: str) -> Finding:
    """Return how much larger the error of the best peer of a kind is, in thousandths."""
    peers = {m.name for m in METHODS if m.kind == kind and not m.ours}
    errors = {(r["method"], r["set"]): float(r["rmse"]) for r in record["runs"] if "rmse" in r}

    def gains(sets: list[str]) -> list[float]:
        return [
            1000 * (min(e for (m, where), e in errors.items() if m in peers and where == s) - own)
            for s in sets
            if (own := errors.get((ours, s))) and any(m in peers and w == s for m, w in errors)
        ]

    folds = sorted({s for _, s in errors if s.startswith("u")})
    effects = [gain(f"MovieLens-100K, {len(folds)} folds", gains(folds))]
    large = gains(["ml-1m"])
    effects += [gain("MovieLens-1M, one split", large)] if large else []
    return Finding(
        tuple(effects),
        "thousandths of RMSE that the best peer has more",
        "95 % over folds, Student's t; folds share training entries, and a fit has one seed",
    )


def published_rating_error(record: Record) -> Finding:
    """Return errors of ordered levels on random tenths of MovieLens-1M."""
    found = [
        Effect(
            f"{r['method']}, split {r['seed']}",
            float(r["rmse"]),
            holds=float(r["rmse"]) <= 0.8140,
            beside="side" not in r["method"],
        )
        for r in record["runs"]
        if r["set"] == "ml-1m" and r["method"].startswith("ordered")
    ]
    return Finding(
        tuple(found),
        "RMSE on a random tenth of MovieLens-1M",
        "one chain on each of the splits, which are not those of the publication",
        0.8140,
        "By this library's sampler; tenths differ by some thousandths.",
    )


def photographs(record: Record) -> Finding:
    """Return what the best low-rank method is ahead of interpolation, for each mask."""
    rows: Rows = record["fits"]
    plain = ("channel means", "linear interpolation")

    def effect(mask: str) -> Effect:
        at = {r["method"]: float(r["psnr"]) for r in rows if r["mask"] == mask}
        best = max(value for name, value in at.items() if name not in plain)
        return gain(mask, [best - at["linear interpolation"]])

    return Finding(
        tuple(effect(mask) for mask in dict.fromkeys(r["mask"] for r in rows)),
        "dB of the best low-rank method over linear interpolation",
        "one photograph and one mask each: the record has no interval over seeds",
    )


def cost_of_a_bound(record: Record) -> Finding:
    """Return the time of a training step over plain LoRA's, at rank 8 and at rank 64."""
    rows: Rows = record["costs"]

    def effect(name: str, rank: int) -> Effect:
        row = next(
            r for r in rows if (r["name"], r["shape"], r["rank"]) == (name, [768, 768], rank)
        )
        low, middle, high = statistics.quantiles(row["against_lora"], n=4, method="inclusive")
        return Effect(f"{name}, rank {rank}", middle, low, high, middle <= 1.3)

    names = ("HomogeneousBall(radius)", "DeLoRA(radius)", "NBLoRA(radius)")
    return Finding(
        tuple(effect(name, rank) for rank in (8, 64) for name in names),
        "times the training step of plain LoRA, layer of 768 x 768",
        "quartiles over 7 turns, not over seeds",
        1.0,
        "Asked: 1.3 at most.",
    )


_FEDERATED = ("federated.json", "python -m experiments.federated_digits")
_PEERS = (
    "peers.json",
    "python -m experiments.peers --folds u1 u2 u3 u4 u5 ml-1m",
)

FEDERATED = (
    Claim(
        "exact-average",
        "FLoRA, FedEx-LoRA and FFA-LoRA aggregate without bias.",
        "2409.05976; 2410.09432; 2403.12313",
        *_FEDERATED,
        no_bias,
    ),
    *(
        Claim(
            f"federated-{rule.split(',')[0].lower()}",
            f"{what} ({rule.split(',')[0]}) are more accurate than averaged factors.",
            source,
            *_FEDERATED,
            partial(aggregation, rule=rule),
        )
        for rule, what, source in (
            ("FLoRA", "Stacked adapters", "Wang et al., 2409.05976"),
            ("FedEx-LoRA", "Exact averages", "Singhal et al., 2410.09432"),
            ("LoRA-FAIR, 0.01", "Refined left factors", "2411.14961"),
            ("FFA-LoRA", "Frozen right factors", "Sun et al., 2403.12313"),
        )
    ),
)

COMPLETION = (
    Claim(
        "ill-conditioned",
        "Preconditioned solvers recover ill-conditioned matrices as they do well-conditioned ones.",
        "Tong et al., 2005.08898",
        "phase-transition.json",
        "python -m experiments.phase_transition",
        recovered,
    ),
    Claim(
        "variational-peers",
        "`variational` has smaller errors than the point estimates of other packages.",
        "this library",
        *_PEERS,
        partial(beside_peers, ours="variational", kind="point estimate"),
    ),
    Claim(
        "bayesian-peers",
        "`bayesian` has smaller errors than the Gibbs samplers of other packages.",
        "this library",
        *_PEERS,
        partial(beside_peers, ours="bayesian", kind="Bayesian"),
    ),
    Claim(
        "features-peers",
        "`bayesian` with implicit feedback and features has smaller errors than others with them.",
        "this library",
        *_PEERS,
        partial(beside_peers, ours="bayesian, implicit + side", kind="with features"),
    ),
    Claim(
        "published-ml-1m",
        "An ordered probit with implicit and side features reaches .8140 on MovieLens-1M.",
        "documentation of myFM",
        "ratings-bayes.json",
        "python -m experiments.ratings_bayes --sets ml-1m --seeds 2 --peer-sweeps 12 "
        "--methods 'ordered, implicit + side' ordered",
        published_rating_error,
    ),
    Claim(
        "photographs",
        "Low-rank completion restores photographs better than interpolation.",
        "a common demonstration",
        "images.json",
        "python -m experiments.image_inpainting",
        photographs,
    ),
)

COST = (
    Claim(
        "cost-of-a-bound",
        "A norm bound costs little beside plain LoRA.",
        "2503.18225; this library",
        "adapter-cost.json",
        "python -m experiments.adapter_cost --turns 7",
        cost_of_a_bound,
    ),
)
