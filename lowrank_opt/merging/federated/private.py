"""The mean of norm-bounded updates under differential privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

import torch

from lowrank_opt.checks import check_radius, check_rank
from lowrank_opt.combination import stacked
from lowrank_opt.errors import NotInSetError, OptionError, RadiusError, RankError
from lowrank_opt.merging.clients.clients import (
    Client,
    ModelClient,
    each_matrix,
    of_matrix,
    read_updates,
    working,
)
from lowrank_opt.merging.clients.factors import ClientFactors
from lowrank_opt.merging.federated.noise import (
    best_of_rank_dense,
    near_best_of_rank,
    with_noise_in_columns,
)
from lowrank_opt.merging.federated.privacy import PrivacyBudget
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.sets import FeasibleSet, SchattenBall, relative_tolerance

Adjacency: TypeAlias = Literal["replace-one", "add-remove"]
Mechanism: TypeAlias = Literal["implicit", "dense", "ffa"]

# The sensitivity is raised by this much, which covers the rounding of norms and sums.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class PrivateMerge:
    r"""A private mean of one matrix and what it cost.

    Everything here may be published: none of it tells more about a client than `mu` allows.

    Attributes
    ----------
    operator : LowRankOperator
        The noisy mean after truncation and projection.
    sigma : float
        Standard deviation of the noise on each number that was released.
    sensitivity : float
        Largest Frobenius distance of the means of neighbouring sets of clients.
    mu : float
        This release of this matrix is mu-GDP, ``mu = sensitivity / sigma``.
    epsilon, delta : float
        What all releases that were planned for, every round and matrix, satisfy together.
    adjacency : {"replace-one", "add-remove"}
    mechanism : {"implicit", "dense", "ffa"}
    feasible_set : FeasibleSet
        Contains the operator.
    noise_norm : float
        Bound on the expected spectral norm of the noise before truncation. A mean whose singular
        values are below it is not to be seen in the result.
    """

    operator: LowRankOperator
    sigma: float
    sensitivity: float
    mu: float
    epsilon: float
    delta: float
    adjacency: Adjacency
    mechanism: Mechanism
    feasible_set: FeasibleSet
    noise_norm: float


@dataclass(frozen=True)
class _Settings:
    mu: float
    budget: PrivacyBudget
    adjacency: Adjacency
    mechanism: Mechanism
    rank: int | None
    denominator: int
    clip: bool
    project: bool


@overload
def private_merge(
    clients: Sequence[Client],
    *,
    epsilon: float,
    delta: float,
    radius: float | None = ...,
    adjacency: Adjacency = ...,
    mechanism: Mechanism = ...,
    rank: int | None = ...,
    rounds: int = ...,
    denominator: int | None = ...,
    clip: bool = ...,
    project: bool = ...,
    generator: torch.Generator | None = ...,
) -> PrivateMerge: ...


@overload
def private_merge(
    clients: Sequence[ModelClient],
    *,
    epsilon: float,
    delta: float,
    radius: float | Mapping[str, float] | None = ...,
    adjacency: Adjacency = ...,
    mechanism: Mechanism = ...,
    rank: int | None = ...,
    rounds: int = ...,
    denominator: int | None = ...,
    clip: bool = ...,
    project: bool = ...,
    generator: torch.Generator | None = ...,
) -> dict[str, PrivateMerge]: ...


def private_merge(
    clients: Sequence[Client | ModelClient],
    *,
    epsilon: float,
    delta: float,
    radius: float | Mapping[str, float] | None = None,
    adjacency: Adjacency = "replace-one",
    mechanism: Mechanism = "implicit",
    rank: int | None = None,
    rounds: int = 1,
    denominator: int | None = None,
    clip: bool = False,
    project: bool = True,
    generator: torch.Generator | None = None,
) -> PrivateMerge | dict[str, PrivateMerge]:
    r"""Return the mean of updates with :math:`\|W_k\|_F \le R`, made private by Gaussian noise.

    The guarantee is (epsilon, delta)-differential privacy for a whole client, towards everyone who
    sees the results of all `rounds`; the server that calls this is trusted. The noise follows from
    the declared radius R, never from the updates: R bounds how far one client moves the mean.

    What is released is the mean plus iid noise; the rest is post-processing, which costs nothing:
    truncation to `rank` and projection onto the ball of R, in which the mean is.

    Parameters
    ----------
    clients : sequence
        As for `aggregate`. All count the same: weights by the amount of data would be private
        numbers themselves.
    epsilon, delta : float
        Of all rounds, and all matrices of a model, together. Each gets the same share of mu.
    radius : float or mapping of names to float, optional
        R, in the Frobenius norm, fixed without looking at the updates. By default what
        parameterizations declare, which has to be the same for all clients.
    adjacency : {"replace-one", "add-remove"}
        Neighbouring sets of clients differ in what one client sends (their number is public;
        sensitivity 2 R / K), or in whether one takes part (sensitivity R / denominator).
    mechanism : {"implicit", "dense", "ffa"}
        ``implicit``: noise on all m x n entries, drawn again in blocks at every pass of a subspace
        iteration; the matrix is not formed. ``dense``: the same noise, formed, with the exact
        truncated SVD. ``ffa``: clients share a frozen right factor that no private data went into;
        noise on the m x r coordinates in its row space only.
    rank : int, optional
        Of the result; by default that of the clients, which then has to be the same. Not for
        ``ffa``.
    rounds : int
        How many such releases, this one included, the budget is for.
    denominator : int, optional
        What the sum is divided by. For ``add-remove`` it must be given, a public number such as
        the expected number of clients: the actual one is private then. For ``replace-one`` it is
        the number of clients.
    clip : bool
        Shrink updates that exceed R instead of refusing them.
    project : bool
        Without it, the result may leave the ball of R.
    generator : torch.Generator, optional
        By default a new one, seeded by the operating system. With a known seed there is no
        privacy.

    Returns
    -------
    PrivateMerge, or dict of names to PrivateMerge for whole models

    Raises
    ------
    RadiusError
        If no finite radius is declared, or not one for all.
    NotInSetError
        If an update exceeds the radius by more than rounding of its dtype and `clip` is false.
        What exceeds it by rounding is always shrunk.
    OptionError, RankError, ShapeError, TargetError
        If an option is outside its domain or a client cannot be read. ``ffa`` also needs right
        factors that are equal bit for bit.

    Notes
    -----
    Not a hardened implementation. Floating-point noise has gaps and its low bits can tell about
    what it was added to (Mironov, 2012); the generators of torch are not cryptographic and take
    seeds of 32 bits; time and errors are not hidden (a refused client shows). The guarantee
    is that of the mechanism in exact arithmetic, with ideal noise. Amplification by sampling
    clients is not counted.

    References
    ----------
    Balle and Wang (arXiv 1805.06530), algorithm 1; Dong, Roth and Su (arXiv 1905.02383); fixed
    denominators: McMahan et al. (arXiv 1710.06963), section 3; FFA-LoRA: Sun et al. (arXiv
    2403.12313); floating point: Mironov, On significance of the least significant bits for
    differential privacy (2012).

    Examples
    --------
    >>> client = LowRankOperator(torch.ones(6, 1), torch.tensor([0.1]), torch.ones(5, 1))
    >>> result = private_merge([client] * 100, epsilon=2.0, delta=1e-6, radius=1.0)
    >>> result.operator.rank, round(result.sensitivity, 6), round(result.sigma, 5)
    (1, 0.02, 0.04461)
    """
    everyone = list(clients)
    _check_options(len(everyone), adjacency, mechanism, rank, denominator)
    matrices = each_matrix(everyone, lambda _, sent: sent)
    releases = rounds * (len(matrices) if isinstance(matrices, dict) else 1)
    budget = PrivacyBudget(epsilon, delta)
    settings = _Settings(
        budget.mu_of_each(releases),
        budget,
        adjacency,
        mechanism,
        rank,
        len(everyone) if denominator is None else denominator,
        clip,
        project,
    )
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    source = generator
    return each_matrix(
        everyone,
        lambda name, sent: _merge_matrix(sent, of_matrix(radius, name), settings, source),
    )


def _merge_matrix(
    clients: Sequence[Client], radius: float | None, settings: _Settings, generator: torch.Generator
) -> PrivateMerge:
    R = _declared_radius(clients) if radius is None else check_radius(radius)
    ops = [update.op for update in read_updates(clients, None)]
    shape, dtype = ops[0].shape, ops[0].dtype
    rank = _checked_rank(settings.rank, ops)
    bounded = [_bounded(op, R, settings.clip, i) for i, op in enumerate(ops)]
    moved = 2 * R if settings.adjacency == "replace-one" else R
    sensitivity = moved / settings.denominator
    sigma = sensitivity * (1 + _SLACK) / settings.mu
    released = _released(bounded, sigma, rank, settings, generator)
    norm = float(released.schatten_norm(2))
    if settings.project and norm > R:
        released = released * (R / norm)
    width = ops[0].rank if settings.mechanism == "ffa" else shape[1]
    bound = max(R, norm) if not settings.project else R
    return PrivateMerge(
        operator=LowRankOperator(released.left.to(dtype), released.scale, released.right.to(dtype)),
        sigma=sigma,
        sensitivity=sensitivity,
        mu=settings.mu,
        epsilon=settings.budget.epsilon,
        delta=settings.budget.delta,
        adjacency=settings.adjacency,
        mechanism=settings.mechanism,
        feasible_set=SchattenBall(2, bound, min(released.rank, *shape)),
        noise_norm=sigma * (math.sqrt(shape[0]) + math.sqrt(width)),
    )


def _released(
    ops: Sequence[LowRankOperator],
    sigma: float,
    rank: int,
    settings: _Settings,
    generator: torch.Generator,
) -> LowRankOperator:
    """Return the noisy sum over the denominator, of low rank."""
    share = len(ops) / settings.denominator
    even = torch.full((len(ops),), 1 / len(ops), dtype=torch.float64)
    if settings.mechanism == "ffa":
        clients = ClientFactors.of(ops, even)
        if not (clients.common_right and all(torch.equal(op.scale, ops[0].scale) for op in ops)):
            raise OptionError(
                "'ffa' needs clients that share a frozen right factor and a scale, bit for bit; "
                "got different ones: freeze it during training, or use another mechanism"
            )
        left = clients.mean_left() * share
        return with_noise_in_columns(left, clients.scale, clients.right[0], sigma, generator)
    mean = stacked(ops, even, working(ops[0]).dtype) * share
    if settings.mechanism == "dense":
        return best_of_rank_dense(mean, sigma, rank, generator)
    return near_best_of_rank(mean, sigma, rank, generator)


def _bounded(op: LowRankOperator, radius: float, clip: bool, index: int) -> LowRankOperator:
    """Return the update, shrunk to a norm of at most `radius` in float64."""
    wide = working(op)
    norm = float(wide.schatten_norm(2))
    excess = norm - radius
    if not clip and not excess <= relative_tolerance(op.dtype, op.rank) * radius:
        raise NotInSetError(
            f"updates must have a Frobenius norm of at most radius={radius!r}; client {index} "
            f"exceeds it by {excess:.2e}: leave it out, or pass clip=True",
            excess=excess,
        )
    if norm <= radius:
        return wide
    # In the left factor: "ffa" needs right factors and scales that stay equal.
    return LowRankOperator(wide.left * (radius / norm), wide.scale, wide.right)


def _declared_radius(clients: Sequence[Client]) -> float:
    declared = {
        client.feasible_set.frobenius_bound if isinstance(client, Parameterization) else math.inf
        for client in clients
    }
    if len(declared) != 1 or not math.isfinite(max(declared)):
        raise RadiusError(
            f"private_merge needs one Frobenius norm bound that all clients declare; got "
            f"{sorted(declared)}: pass radius=, and clip=True if clients do not keep to it"
        )
    return declared.pop()


def _checked_rank(rank: int | None, ops: Sequence[LowRankOperator]) -> int:
    m, n = ops[0].shape
    if rank is None:
        ranks = sorted({op.rank for op in ops})
        if len(ranks) > 1:
            raise RankError(
                f"a rank that follows from the clients' would tell about them; they have {ranks}: "
                "pass rank="
            )
        return min(m, n, ranks[0])
    return check_rank(rank, (m, n))


def _check_options(
    count: int, adjacency: str, mechanism: str, rank: int | None, denominator: int | None
) -> None:
    if count == 0:
        raise OptionError("private_merge needs at least one client; got none")
    if adjacency not in get_args(Adjacency):
        raise OptionError(f"adjacency must be one of {get_args(Adjacency)}; got {adjacency!r}")
    if mechanism not in get_args(Mechanism):
        raise OptionError(f"mechanism must be one of {get_args(Mechanism)}; got {mechanism!r}")
    if mechanism == "ffa" and rank is not None:
        raise OptionError(f"'ffa' keeps the rank of its clients; got rank={rank}: leave it out")
    if adjacency == "add-remove" and (denominator is None or denominator < 1):
        raise OptionError(
            f"'add-remove' hides how many clients there are: denominator must be a public number, "
            f"at least 1; got {denominator!r}"
        )
    if adjacency == "replace-one" and denominator not in (None, count):
        raise OptionError(
            f"'replace-one' divides by the number of clients, {count}; got "
            f"denominator={denominator!r}: leave it out"
        )
