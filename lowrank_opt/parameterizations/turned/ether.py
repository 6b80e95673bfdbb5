r"""ETHER and ETHER+: reflections of a given weight, written as what they add to it.

On the output side, `H W` with :math:`H = I - 2 u u^T` adds :math:`-2 u (W^T u)^T`, a factor triple
of rank one; on the input side, as published, `W H` adds :math:`-2 (W u) u^T`. The base weight is
read, never changed. In blocks, H is block diagonal with a unit vector a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_base_weight, check_choice, check_rank
from lowrank_opt.errors import NotInSetError, RankError, TargetError
from lowrank_opt.linalg import (
    frozen_product,
    negligible,
    normalize_columns,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.example import Example, example_tensor
from lowrank_opt.parameterizations.turned.leading import LeadingValues
from lowrank_opt.sets import SchattenBall, SingularValueBox, relative_tolerance

Shape = tuple[int, int]
ReflectedSide = Literal["input", "output"]


class ETHER(Parameterization):
    r""":math:`W = W_0 H - W_0 = -2 W_0 U U^T`, H a block-diagonal Householder reflection.

    That is the input side, as published; ``side="output"`` is :math:`H W_0 - W_0`.

    Set: :math:`\sigma_i(W) \le 2 \sigma_i(W_0)`, rank at most the number of blocks (one block:
    rank one, and :math:`\|W\|_F \le 2 \|W_0\|_2`). These bounds are attained. Not complete: the
    image has as many dimensions as coordinates less one a block. There is no zero start: a vector
    of zeros counts as no reflection, so W = 0, but passes no gradient. `lowrank_opt.nn.adapt` lets
    it start at a reflection, as published: wrapped in `Offset`, which starts at zero, it would be
    none.

    The product of H and W_0 is never formed: O(m n) for one step, like the layer itself. Computed
    in float64 and rounded once to the parameters' dtype.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight; shared, not copied.
    blocks : int
        In 1..min(m, n); coordinates are divided as evenly as possible.
    side : {"input", "output"}
    generator : torch.Generator, optional
        Of the random start.

    Raises
    ------
    RankError
        If `blocks` does not fit.
    TargetError
        If the weight is zero or not finite.

    References
    ----------
    Bini et al., ETHER (ICML 2024, arXiv 2405.20271), equation 1.

    Examples
    --------
    >>> layer = ETHER(torch.eye(3))
    >>> H = torch.eye(3) + layer().to_dense()
    >>> torch.allclose(H @ H.mT, torch.eye(3), atol=1e-6)
    True
    """

    keeps_its_start: ClassVar[bool] = True

    def __init__(
        self,
        weight: Tensor,
        *,
        blocks: int = 1,
        side: ReflectedSide = "input",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((weight.shape[0], weight.shape[1]), _check_blocks(blocks, weight))
        self.blocks = blocks
        self.side: ReflectedSide = check_choice(side, get_args(ReflectedSide), "side")
        self._leading = LeadingValues()
        self.register_buffer("weight", weight.detach())
        self.weight: Tensor
        self.vector: nn.Parameter = nn.Parameter(_normal(len(self._turned), weight, generator))

    @property
    def _turned(self) -> Tensor:
        """The weight, or its transpose: what is reflected from the left."""
        return self.weight if self.side == "output" else self.weight.mT

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def make(shape: Shape, rank: int, dtype: torch.dtype = torch.float64) -> ETHER:
            return cls(example_tensor(*shape, dtype=dtype), blocks=rank)

        cost, image = "r products with the weight", "reflections: m - r dimensions"
        yield Example("ETHER(weight, blocks=r)", make, cost, "arXiv 2405.20271", image)

    @property
    def feasible_set(self) -> SingularValueBox:
        return SingularValueBox(2 * self._leading.of(self.weight, self.rank))

    def factors(self) -> LowRankOperator:
        U = _in_blocks(self.vector, self.rank)
        right = frozen_product(self._turned.mT, U)
        op = LowRankOperator(U, U.new_full((self.rank,), -2.0), right)
        return _on(self.side, op).to(dtype=self.vector.dtype)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the vector of the reflection that gives `target`, if there is one.

        In every block the singular vector of the target's coordinates; zero where they are.

        Raises
        ------
        NotInSetError
            If the target is outside the declared set.
        TargetError
            If no reflection gives it, to the rounding of its dtype; says the residual.
        """
        op = self.operator_of(target)
        if not self.feasible_set.contains(op):
            excess = self.feasible_set.excess(op)
            raise NotInSetError(
                f"the target must be in {self.feasible_set}; it exceeds it by {excess:.2e}: there "
                "is no projection onto the reflections, pass a target made by one",
                excess=excess,
            )
        noise = relative_tolerance(op.dtype, 1) * self.feasible_set.unit(op)
        op = _on(self.side, op)
        blocks = _block_rows(len(self._turned), self.rank)
        vector = torch.cat([_reflected(op, rows, noise) for rows in blocks])
        self._check_reached(op, vector)
        return {"vector": vector}

    def _check_reached(self, op: LowRankOperator, vector: Tensor) -> None:
        U = _in_blocks(vector, self.rank)
        made = LowRankOperator(U, U.new_full((self.rank,), -2.0), self._turned.double().mT @ U)
        residual = float((made - op.to(dtype=torch.float64)).schatten_norm(2))
        unit = self.feasible_set.unit(op)
        if residual > 16 * relative_tolerance(op.dtype, sum(self.shape)) * unit:
            raise TargetError(
                "the target must be W0 H - W0, block by block; the best fit found misses it "
                f"by {residual:.2e}: ETHER reaches few matrices, optimise the vector instead"
            )


class ETHERPlus(Parameterization):
    r""":math:`W = H W_0 \tilde H - W_0` with :math:`H = I - u u^T + v v^T`, block by block.

    With E = H - I: :math:`W = E W_0 + (H W_0) \tilde E`. Since
    :math:`\|E\|_2 = \sqrt{1 - (u \cdot v)^2} \le 1` (and :math:`\|E\|_F \le \sqrt 2`, not 2),

    * on one side, set :math:`\sigma_i(W) \le \sigma_i(W_0)` of rank at most 2 a block;
    * on two sides, set :math:`\|W\|_2 \le 3 \|W_0\|_2` of rank at most 4 a block; also
      :math:`\|W\|_F \le 3 \|W_0\|_F`.

    Both are attained. Not complete, and no right inverse: the image is a manifold of m + n
    parameters tied to W_0. The start is u = v, the identity: W = 0 exactly, because the difference
    of projections is written as :math:`(v - u)(v + u)^T / 2 + (v + u)(v - u)^T / 2`.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight; shared, not copied.
    blocks : int
        Of each side; at least 1, at most min(m, n), and fewer than the rows or, on two sides, the
        columns: unit vectors of one entry cannot move.
    two_sided : bool
    side : {"input", "output"}
        Of a single one: the input side as published, :math:`W = W_0 H - W_0`.
    generator : torch.Generator, optional
        Of the random start.

    Raises
    ------
    RankError
        If `blocks` does not fit.
    TargetError
        If the weight is zero or not finite.

    References
    ----------
    Bini et al., ETHER (ICML 2024, arXiv 2405.20271), equation 3.

    Examples
    --------
    >>> ETHERPlus(torch.eye(3))().to_dense().abs().max().item()
    0.0
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        blocks: int = 1,
        two_sided: bool = True,
        side: ReflectedSide = "input",
        generator: torch.Generator | None = None,
    ) -> None:
        m, n = weight.shape
        rank = (4 if two_sided else 2) * _check_blocks(blocks, weight)
        self_side: ReflectedSide = check_choice(side, get_args(ReflectedSide), "side")
        rows = m if two_sided or side == "output" else n
        if blocks >= (max(m, n) if two_sided else rows):
            raise RankError(
                f"some block must have two entries; got {blocks} blocks for a {m} x {n} weight: "
                "use fewer blocks"
            )
        super().__init__((m, n), min(rank, m, n))
        self.blocks: int
        self.two_sided: bool
        self.blocks, self.two_sided = blocks, two_sided
        self.side: ReflectedSide = self_side
        self._leading = LeadingValues()
        self.register_buffer("weight", weight.detach())
        self.weight: Tensor
        self.left_vectors: nn.Parameter = nn.Parameter(weight.new_empty(rows, 2))
        self.right_vectors: nn.Parameter | None = (
            nn.Parameter(weight.new_empty(n, 2)) if two_sided else None
        )
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def make(
            shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64
        ) -> ETHERPlus:
            return cls(example_tensor(*shape, dtype=dtype), blocks=rank)

        def left(shape: Shape, rank: int, dtype: torch.dtype = torch.float64) -> ETHERPlus:
            return cls(example_tensor(*shape, dtype=dtype), blocks=rank, two_sided=False)

        cost = "4 r products with the weight"
        image = "products of reflections: at most 2 (m + n - 2 r) dimensions"
        yield Example("ETHERPlus(weight, blocks=r)", make, cost, "arXiv 2405.20271", image)
        yield Example("ETHERPlus(weight, one side)", left, listed=False)

    @property
    def feasible_set(self) -> SingularValueBox | SchattenBall:
        bounds = self._leading.of(self.weight, self.rank)
        if self.two_sided:
            return SchattenBall(float("inf"), 3 * float(bounds[0]), self.rank)
        return SingularValueBox(bounds)

    def factors(self) -> LowRankOperator:
        plus, minus = self._sum_and_difference(self.left_vectors)
        # E = (minus plus^T + plus minus^T) / 2
        a, b = torch.cat((minus, plus), dim=1), torch.cat((plus, minus), dim=1)
        one_input = not self.two_sided and self.side == "input"
        left, right = a, frozen_product(self.weight if one_input else self.weight.mT, b)
        if self.right_vectors is not None:
            plus, minus = self._sum_and_difference(self.right_vectors)
            c, d = torch.cat((minus, plus), dim=1), torch.cat((plus, minus), dim=1)
            W0c = frozen_product(self.weight, c)
            left = torch.cat((left, W0c + a @ (b.mT @ W0c) / 2), dim=1)
            right = torch.cat((right, d), dim=1)
        op = LowRankOperator(left, left.new_full((left.shape[1],), 0.5), right)
        return (op.mT if one_input else op).to(dtype=self.left_vectors.dtype)

    def _sum_and_difference(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        u, v = (_in_blocks(vectors[:, i], self.blocks) for i in (0, 1))
        return v + u, v - u

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set u = v to random vectors, on each side: both get a gradient, opposite in sign."""
        for p in (self.left_vectors, self.right_vectors):
            if p is not None:
                p.copy_(_normal(p.shape[0], p, generator).unsqueeze(1).expand_as(p))
        return self


def _on(side: ReflectedSide, op: LowRankOperator) -> LowRankOperator:
    """Return an operator of the reflected rows as one of the weight, and back."""
    return op if side == "output" else op.mT


def _check_blocks(blocks: int, weight: Tensor) -> int:
    m, n = weight.shape
    check_rank(blocks, (m, n), "blocks", what="weight")
    check_base_weight(weight)
    return blocks


def _normal(size: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(size, dtype=torch.float64, device=device, generator=generator).to(
        like.detach()
    )


def _block_rows(size: int, blocks: int) -> list[range]:
    edges = [size * k // blocks for k in range(blocks + 1)]
    return [range(edges[k], edges[k + 1]) for k in range(blocks)]


def _in_blocks(vector: Tensor, blocks: int) -> Tensor:
    """Return the unit vector of every block as a column, zero outside of its block."""
    index = torch.empty(len(vector), dtype=torch.int64, device=vector.device)
    for k, rows in enumerate(_block_rows(len(vector), blocks)):
        index[rows.start : rows.stop] = k
    x = vector.unsqueeze(1) * torch.nn.functional.one_hot(index, blocks).to(vector.dtype)
    # What is negligible in the vector's own dtype: its gradient must fit there.
    keep = x.detach().abs().amax(dim=0) >= negligible(x.dtype)
    return normalize_columns(torch.where(keep, x, 0.0).to(working_dtype(x)))


def _reflected(op: LowRankOperator, rows: range, noise: float) -> Tensor:
    """Return the unit vector of one block of the reflection that makes `op`, or zeros."""
    left, scale, right = op.to(dtype=torch.float64)
    part = LowRankOperator(left[rows.start : rows.stop], scale, right)
    U, sigma, _ = part.thin_svd()
    return U[:, 0] if float(sigma[0]) > noise else torch.zeros_like(U[:, 0])
