"""VeRA: two trained vectors around frozen random projections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.example import Example

# Sweeps of the start and of the fit, and units of rounding that count as reaching a target.
_CHEAP_SWEEPS = 200
_SWEEPS = 20
_ROUNDINGS = 256


class VeRA(Parameterization):
    r""":math:`W = \mathrm{diag}(b)\, B\, \mathrm{diag}(d)\, A`, B and A frozen and random.

    Set: rank at most r. Not complete: the image has m + r - 1 dimensions of the r (m + n - r) of
    the set, and is the set of all ``B A`` with rows multiplied by b and inner components by d.
    There is no hard norm bound, but always :math:`\|W\|_2 \le` `spectral_bound`
    :math:`= \max|b|\, \max|d|\, \|B\|_2\, \|A\|_2`: clip b and d to enforce one.

    No work beyond the products. The projections are buffers and travel with the state: a seed
    does not give equal numbers on other devices and versions.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
        In 1..min(m, n); above it, the rank bound would say nothing.
    projections : pair of Tensors, optional
        B of at least (m, r) and A of at least (r, n), shared by layers: cut to size, not copied.
        By default random, uniform as a layer's initial weights (Kaiming).
    dtype, device, generator
        Of the parameters, and of random projections.

    Raises
    ------
    ShapeError
        If the projections are too small.

    References
    ----------
    Kopiczko, Blankevoort and Asano, VeRA (ICLR 2024, arXiv 2310.11454), equation 2.

    Examples
    --------
    >>> layer = VeRA((6, 4), rank=3)
    >>> layer().schatten_norm(2).item(), sum(p.numel() for p in layer.parameters())
    (0.0, 9)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        projections: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        empty = torch.empty(0, dtype=dtype, device=device)
        B, A = _projections(projections, m, n, self.rank, empty, generator)
        self.register_buffer("frozen_left", B)
        self.register_buffer("frozen_right", A)
        self.frozen_left: Tensor
        self.frozen_right: Tensor
        self.rows: nn.Parameter = nn.Parameter(empty.new_empty(m))
        self.inner: nn.Parameter = nn.Parameter(empty.new_empty(self.rank))
        self.zero_()

    @classmethod
    def examples(cls) -> Iterator[Example]:
        image = "diag(b) B diag(d) A: m + r - 1 dimensions"
        yield Example("VeRA", cls, reference="arXiv 2310.11454", image=image)

    @property
    def projections(self) -> tuple[Tensor, Tensor]:
        """B and A, frozen."""
        return self.frozen_left, self.frozen_right

    def factors(self) -> LowRankOperator:
        return LowRankOperator(
            self.rows.unsqueeze(1) * self.frozen_left, self.inner, self.frozen_right.mT
        )

    def spectral_bound(self) -> Tensor:
        """Return ``max|b| max|d| |B|_2 |A|_2``, a float64 scalar that bounds the spectral norm."""
        norms = [
            torch.linalg.matrix_norm(x.double(), 2) for x in (self.frozen_left, self.frozen_right)
        ]
        return self.rows.abs().amax().double() * self.inner.abs().amax() * norms[0] * norms[1]

    def fit(self, target: LowRankOperator | Tensor) -> tuple[dict[str, Tensor], float]:
        r"""Return the best b and d found, and the relative residual of what they give.

        For rows in the span of A the problem is to fit ``b d^T`` to the quotient of
        :math:`T A^+` by B, entry by entry; its leading singular triple starts alternating least
        squares, each half of which is exact. The residual never grows; the optimum is local.

        Parameters
        ----------
        target : LowRankOperator or Tensor, shape (m, n)

        Returns
        -------
        values : dict of Tensor
            ``rows`` and ``inner``, in float64.
        residual : float
            :math:`\|W - T\|_F / \|T\|_F`, 0 for T = 0.
        """
        op = self.operator_of(target).to(dtype=torch.float64)
        size = float(op.schatten_norm(2))
        if size == 0:
            return {"rows": self.rows.new_zeros(self.shape[0]), "inner": _start(self.inner)}, 0.0
        left, scale, right = op
        B, A = self.frozen_left.double(), self.frozen_right.double()
        # Only T's coordinates in the rows of A matter: A = R Q^T, and T Q is m x r.
        Q, R = torch.linalg.qr(A.mT)
        within = (left * (scale / size)) @ (right.mT @ Q)
        b, d = _alternate(B, R.mT, within)
        outside = 1 - float(within.square().sum())
        inside = float((b.unsqueeze(1) * B * d @ R.mT - within).square().sum())
        residual = math.sqrt(max(0.0, outside if outside > 1e-12 else 0.0) + inside)
        return {"rows": b * size, "inner": d}, residual

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the fit of `target`, if it reaches it.

        Raises
        ------
        TargetError
            If the target is not in the image, to the rounding of its dtype; says the residual.
        """
        op = self.operator_of(target)
        values, residual = self.fit(op)
        allowed = _ROUNDINGS * torch.finfo(op.dtype).eps
        if residual > allowed:
            raise TargetError(
                "the target must be diag(b) B diag(d) A for the frozen B and A; the best fit found "
                f"leaves {residual:.2e} of it: use fit(target) to take it all the same"
            )
        return values

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set b = 0 and d = 0.1, the paper's start; the projections stay."""
        self.rows.zero_()
        self.inner.copy_(_start(self.inner))
        return self


def _start(inner: Tensor) -> Tensor:
    return torch.full_like(inner.detach(), 0.1)


def _projections(
    given: tuple[Tensor, Tensor] | None,
    m: int,
    n: int,
    rank: int,
    like: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    if given is None:
        return _uniform(m, rank, like, generator), _uniform(rank, n, like, generator)
    B, A = given
    if B.ndim != 2 or A.ndim != 2 or B.shape < (m, rank) or A.shape[0] < rank or A.shape[1] < n:
        raise ShapeError(
            f"projections must be at least {(m, rank)} and {(rank, n)}; got {tuple(B.shape)} and "
            f"{tuple(A.shape)}"
        )
    return B.detach()[:m, :rank].to(like), A.detach()[:rank, :n].to(like)


def _uniform(rows: int, cols: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    x = torch.rand(rows, cols, dtype=torch.float64, device=device, generator=generator)
    # Variance 2 / fan-in, as Kaiming's initialisation.
    return ((2 * x - 1) * math.sqrt(6 / cols)).to(like)


def _alternate(B: Tensor, S: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Return b and d that locally minimise ``|diag(b) B diag(d) S - T|``, S square."""
    d = _rank_one_start(B, torch.linalg.lstsq(S.mT, T.mT).solution.mT)
    b = _best_rows(B, S, T, d)
    for _ in range(_SWEEPS):
        # Column k of the problem in d is the flattened rank-one (b B_k) S_k^T.
        C = b.unsqueeze(1) * B
        # The gradient at the residual itself: repeated, it refines what the Gram matrix loses.
        side = (C.mT @ (T - C * d @ S) * S).sum(1)
        gram = (C.mT @ C) * (S @ S.mT)
        trial = d + torch.linalg.lstsq(gram, side.unsqueeze(1)).solution.squeeze(1)
        rows = _best_rows(B, S, T, trial)
        if not _residual(B, S, T, rows, trial) < _residual(B, S, T, b, d):
            break
        b, d = rows, trial
    # |d| is about one; the size of W is that of b.
    peak = d.abs().amax().clamp_min(torch.finfo(d.dtype).tiny)
    return b * peak, d / peak


def _rank_one_start(B: Tensor, E: Tensor) -> Tensor:
    """Return d of the rank-one b d^T for which ``B * (b d^T)`` is nearest to E, approximately.

    The leading singular triple of E / B, where B is not small, then alternating least squares.
    """
    safe = torch.where(B.abs() > 1e-3 * B.abs().amax(), B, torch.inf)
    _, sigma, V = leading_svd(E / safe, 1)
    d = V[:, 0] if float(sigma[0]) > 0 else torch.ones_like(E[0])
    for _ in range(_CHEAP_SWEEPS):
        b = _quotient((E * B * d).sum(1), (B * d).square().sum(1))
        d = _quotient((E.mT * B.mT * b).sum(1), (B.mT * b).square().sum(1))
    return d


def _best_rows(B: Tensor, S: Tensor, T: Tensor, d: Tensor) -> Tensor:
    C = B * d @ S
    energy = C.square().sum(1)
    return _quotient((T * C).sum(1), energy)


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def _residual(B: Tensor, S: Tensor, T: Tensor, b: Tensor, d: Tensor) -> float:
    return float((b.unsqueeze(1) * B * d @ S - T).square().sum())
