"""DeLoRA: an average of normalised rank-ones, which is exactly the nuclear-norm ball."""

from collections.abc import Iterator
from functools import partial
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_choice, check_radius
from lowrank_opt.errors import NoRightInverseError, OptionError, ShapeError
from lowrank_opt.linalg import lp_norm, normalize_columns, product_svd, working_dtype
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.balls.pairs import cancelling, paired, units_but_last
from lowrank_opt.parameterizations.base import Parameterization, random_frame
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import FeasibleSet, RankAtMost, SchattenBall, WeightedSet
from lowrank_opt.sets.sides import diagonal

Variant = Literal["paired", "paper", "author", "peft"]

# PEFT clamps the norms of the columns from below by this value.
_PEFT_CLAMP = 1e-4


class DeLoRA(Parameterization):
    r""":math:`W = \frac{\lambda}{r} \sum_i \hat b_i \hat a_i^T`, unit vectors from free ones.

    With a fixed radius :math:`\lambda` and r >= 2 terms this is the closed nuclear-norm ball of
    radius :math:`\lambda` among matrices of rank at most r, not only a part of the Frobenius ball:
    *into* by the triangle inequality; *onto* by Schur-Horn (equal rank-ones) and a two-term lemma.

    The default variant, ``"paired"``, differs from the paper's formula in two points that make it
    complete and give it an exact zero start for every rank:

    * terms are taken in pairs and written as
      :math:`\frac12 (u_1 + u_2)(v_1 + v_2)^T + \frac12 (u_1 - u_2)(v_1 - v_2)^T`, the same sum in
      factors that vanish *exactly* for a cancelling pair (``u_2 = -u_1``, ``v_2 = v_1``);
    * the last term of an odd rank has no partner; its left vector is capped at norm one instead
      of normalised, so that the term can vanish. Rank 1 is then the whole ball too; normalised, it
      would be the sphere.

    Other variants, for comparison, with the bounds that are true of them:

    ===========  ==================================================  ===========================
    variant      map                                                 set, for a fixed radius
    ===========  ==================================================  ===========================
    ``paper``    minus the frozen initial sum                        nuclear norm <= 2 radius,
                                                                     rank <= 2r; not complete
    ``author``   as ``paper``, the frozen sum follows the radius     the same
    ``peft``     norms clamped at 1e-4, starting from b = 0          nuclear ball, complete
    ===========  ==================================================  ===========================

    A learned radius (``learn_radius=True``, the habit of paper and PEFT) removes every norm bound:
    the set is then all matrices of that rank.

    Everything is computed in float64 and rounded once: for every finite parameter the nuclear norm
    exceeds the radius by a few units of rounding of the parameters' dtype at most. A column below
    1e-292 in float64 (1e-31 in float32) counts as zero, and its term as absent.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float
        The strength lambda, a bound on the nuclear norm. Positive.
    column_norms : Tensor, shape (n,), optional
        Multiply column j by ``column_norms[j]`` (the paper's code: norms of the columns of the
        base weight). The set is then the ball of a weighted nuclear norm; the Frobenius norm is at
        most ``radius * max(column_norms)``.
    variant : {"paired", "paper", "author", "peft"}
    learn_radius : bool
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If the radius is not positive and finite.
    OptionError
        If a column norm is not positive and finite, or the variant unknown.

    References
    ----------
    Bini, Girrbach and Akata, Decoupling Angles and Strength in Low-rank Adaptation (ICLR 2025,
    arXiv 2503.18225), equation 8.

    Examples
    --------
    >>> layer = DeLoRA((5, 4), rank=3, radius=2.0)
    >>> layer().schatten_norm(1).item()
    0.0
    >>> _ = torch.nn.init.normal_(layer.left)
    >>> layer().schatten_norm(1).item() <= 2.0 + 1e-6
    True
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        radius: float,
        column_norms: Tensor | None = None,
        variant: Variant = "paired",
        learn_radius: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.variant: Variant = check_choice(variant, get_args(Variant), "variant")
        self.radius: float = check_radius(radius)
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left: nn.Parameter = nn.Parameter(empty.new_empty(m, self.rank))
        self.right: nn.Parameter = nn.Parameter(empty.new_empty(n, self.rank))
        learned = nn.Parameter(empty.new_tensor(radius)) if learn_radius else None
        self.learned_radius = learned
        self.register_buffer("column_norms", _checked_norms(column_norms, n, empty))
        frozen = empty.new_zeros(m + n, self.rank) if self._subtracts else None
        self.register_buffer("frozen", frozen)
        self.complete: bool = not self._subtracts
        self.column_norms: Tensor | None
        self.frozen: Tensor | None
        self.check_held()
        self.zero_(generator=generator)

    @property
    def learn_radius(self) -> bool:
        """Whether the radius is a parameter, so that no norm is bounded."""
        return self.learned_radius is not None

    @classmethod
    def examples(cls) -> Iterator[Example]:
        make = partial(cls, radius=1.0)
        yield Example("DeLoRA(radius)", make, reference="arXiv 2503.18225")
        for variant in ("paper", "author", "peft"):
            learned = partial(make, variant=variant, learn_radius=variant == "author")
            yield Example(f"DeLoRA(radius, {variant!r})", learned, listed=False)

    @property
    def _subtracts(self) -> bool:
        return self.variant in ("paper", "author")

    @property
    def feasible_set(self) -> FeasibleSet:
        rank = min(2 * self.rank, *self.shape) if self._subtracts else self.rank
        if self.learned_radius is not None:
            return RankAtMost(rank)
        ball = SchattenBall(1.0, (1 + self._subtracts) * self.radius, rank)
        return ball if self.column_norms is None else WeightedSet(ball, None, self.column_norms)

    def factors(self) -> LowRankOperator:
        op = self._sum_of_terms(self.left, self.right, self._strength())
        if self.frozen is not None:
            m = self.shape[0]
            start = self.radius if self.variant == "paper" else self._strength()
            op = op - self._sum_of_terms(self.frozen[:m], self.frozen[m:], start)
        right = diagonal(self.column_norms).times(op.right)
        return LowRankOperator(op.left, op.scale, right).to(dtype=self.left.dtype)

    def _strength(self) -> float | Tensor:
        if self.learned_radius is None:
            return self.radius
        return self.learned_radius.to(working_dtype(self.left))

    def _sum_of_terms(self, b: Tensor, a: Tensor, strength: float | Tensor) -> LowRankOperator:
        """Return (strength / r) times the sum of the variant's rank-ones, in float64."""
        dtype = working_dtype(b)
        one = strength / self.rank * torch.ones(self.rank, dtype=dtype, device=b.device)
        if self.variant == "peft":
            return LowRankOperator(_clamped(b), one, _clamped(a))
        if self._subtracts:
            return LowRankOperator(_units(b), one, _units(a))
        return paired(units_but_last(b), _units(a), one)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return unit columns whose average is the target: Schur-Horn, then pairs.

        An orthogonal Q with constant diagonal of :math:`Q^T \Sigma Q` writes W as r rank-ones of
        equal norm at most :math:`\lambda / r`. A pair of them has singular values s1, s2 with
        s1 + s2 <= 2 (in units of that weight) and equals :math:`u_1 v_1^T + u_2 v_2^T` for the
        unit vectors with angles (x + y)/2 and (y - x)/2 from the singular vectors, where
        cos x = (s1 + s2)/2 and cos y = (s1 - s2)/2.

        Raises
        ------
        NoRightInverseError
            For the variants that subtract a frozen copy, and for a learned radius.
        """
        if self._subtracts or self.learned_radius is not None:
            raise NoRightInverseError(
                f"DeLoRA has a right inverse for a fixed radius and no frozen copy; got "
                f"variant={self.variant!r}: use the default variant"
            )
        left, scale, right = op = self.operator_of(target)
        right = diagonal(self.column_norms).pull(right.double()).to(op.dtype)
        ball = SchattenBall(1.0, self.radius, self.rank)
        U, sigma, V = self.svd_of(LowRankOperator(left, scale, right), within=ball)
        root = (sigma * (self.rank / self.radius)).sqrt()
        Q = equal_diagonal_rotation(root.square())
        left, right = _pairs_of_units((U * root) @ Q, (V * root) @ Q)
        if self.rank % 2 and self.variant == "peft":
            # Clamped norms: a factor below one is a norm below the clamp.
            left[:, -1] *= _PEFT_CLAMP
        return {"left": left, "right": right}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the terms to cancelling pairs, the unpaired last one to zero, the radius as given.

        Variants ``paper`` and ``author`` start from random terms and freeze a copy, so W = 0 to
        the rounding of a product; ``peft`` starts from b = 0, where its gradient is 1e4 times
        that of any later step.
        """
        (m, r), n = self.left.shape, self.shape[1]
        b = random_frame(m, r, like=self.left, generator=generator)
        a = random_frame(n, r, like=self.right, generator=generator)
        if self.variant == "paired":
            b, a = cancelling(b, a)
        if self.variant == "peft":
            b.zero_()
        self.left.copy_(b)
        self.right.copy_(a)
        if self.learned_radius is not None:
            self.learned_radius.fill_(self.radius)
        if self.frozen is not None:
            self.frozen.copy_(torch.cat((b, a)))
        return self


def _units(x: Tensor) -> Tensor:
    """Divide columns by their norms, in the working dtype."""
    return normalize_columns(x, dtype=working_dtype(x))


def _clamped(x: Tensor) -> Tensor:
    """Divide every column by max(1e-4, norm), as PEFT does."""
    x = x.to(working_dtype(x))
    long = lp_norm(x.detach().mT, 2) > _PEFT_CLAMP
    return torch.where(long, normalize_columns(x), torch.where(long, 0.0, x) / _PEFT_CLAMP)


def _checked_norms(norms: Tensor | None, n: int, like: Tensor) -> Tensor | None:
    if norms is None:
        return None
    if tuple(norms.shape) != (n,):
        raise ShapeError(f"column_norms must have shape ({n},); got {tuple(norms.shape)}")
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise OptionError(
            f"column_norms must be positive and finite; got values from {float(norms.min())!r} "
            f"to {float(norms.max())!r}: give dead columns a small positive norm"
        )
    return norms.detach().clone().to(like)


def equal_diagonal_rotation(sigma: Tensor) -> Tensor:
    r"""Return an orthogonal Q with all diagonal entries of :math:`Q^T \Sigma Q` equal.

    Schur-Horn by r - 1 plane rotations: the smallest remaining diagonal entry is turned against
    the largest until it equals the mean, then left alone.

    Examples
    --------
    >>> Q = equal_diagonal_rotation(torch.tensor([3.0, 0.0, 0.0]))
    >>> (Q.mT @ torch.diag(torch.tensor([3.0, 0.0, 0.0])) @ Q).diagonal()
    tensor([1.0000, 1.0000, 1.0000])
    """
    peak = sigma.amax()
    # Squares of 1e-200 underflow, and the angles depend on ratios only.
    sigma = sigma / torch.where(peak > 0, peak, 1.0)
    A, Q = torch.diag(sigma), torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    mean, free = sigma.mean(), list(range(len(sigma)))
    while len(free) > 1:
        d = A.diagonal()[free]
        i, j = free[int(d.argmin())], free[int(d.argmax())]
        if A[i, i] >= mean or A[j, j] <= mean:
            break
        # (d_j - mean) t^2 - 2 a t - (mean - d_i) = 0 for t = tan(angle), the smaller root
        a, up, down = A[i, j], A[j, j] - mean, mean - A[i, i]
        root = (a * a + up * down).sqrt()
        t = -down / (a + root) if a > 0 else -down / (a - root)
        c = 1 / (1 + t * t).sqrt()
        plane = torch.stack((torch.stack((c, t * c)), torch.stack((-t * c, c))))
        A[[i, j]] = plane.mT @ A[[i, j]]
        A[:, [i, j]] = A[:, [i, j]] @ plane
        Q[:, [i, j]] = Q[:, [i, j]] @ plane
        free.remove(i)
    return Q


def _pairs_of_units(P: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit columns b, a with b a^T = P R^T (the last b of an odd rank is shorter)."""
    h = P.shape[1] // 2
    b, a = torch.empty_like(P), torch.empty_like(R)
    if h:
        pair_left = torch.stack((P[:, 0 : 2 * h : 2], P[:, 1 : 2 * h : 2]), dim=-1).transpose(0, 1)
        pair_right = torch.stack((R[:, 0 : 2 * h : 2], R[:, 1 : 2 * h : 2]), dim=-1).transpose(0, 1)
        e, s, f = product_svd(pair_left, P.new_ones(h, 2), pair_right)
        x = torch.acos(((s[:, 0] + s[:, 1]) / 2).clamp(-1, 1))
        y = torch.acos(((s[:, 0] - s[:, 1]) / 2).clamp(-1, 1))
        b[:, 0 : 2 * h : 2], b[:, 1 : 2 * h : 2] = _two_directions(e, (x + y) / 2)
        a[:, 0 : 2 * h : 2], a[:, 1 : 2 * h : 2] = _two_directions(f, (y - x) / 2)
    if P.shape[1] % 2:
        p, q = P[:, -1], R[:, -1]
        unit = normalize_columns(q.unsqueeze(1)).squeeze(1)
        first = torch.eye(len(q), 1, dtype=q.dtype, device=q.device).squeeze(1)
        a[:, -1] = unit if bool(unit.any()) else first
        b[:, -1] = p * lp_norm(q, 2)
    return b, a


def _two_directions(frames: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos(angle) e_1 +- sin(angle) e_2 for every frame, as columns."""
    along, across = frames[:, :, 0].mT * angle.cos(), frames[:, :, 1].mT * angle.sin()
    return along + across, along - across
