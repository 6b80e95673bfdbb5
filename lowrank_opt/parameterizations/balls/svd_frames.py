"""The SVD form: two frames of orthonormal columns around free or bounded values."""

from collections.abc import Iterator
from functools import partial
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_choice, check_radius
from lowrank_opt.extras import extra
from lowrank_opt.linalg import (
    contraction,
    inverse_cayley,
    invert_contraction,
    polar_frame,
    qr_frame,
    tall_cayley,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, random_frame
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import RankAtMost, SchattenBall

FrameMap = Literal["cayley", "polar", "qr", "manifold"]
Core = Literal["diagonal", "full"]


class SVDFrames(Parameterization):
    r""":math:`W = U\, \mathrm{diag}(\sigma)\, V^T` with U, V on the Stiefel manifold.

    Sets, complete: all matrices of rank at most r with :math:`\sigma = z` free (of any sign), or
    with a `radius` the spectral ball, :math:`\sigma_i = \delta \sin z_i`.

    Frames: ``cayley``, ``polar`` and ``qr`` build U and V from free matrices of their shapes, so
    that any optimizer drives them; ``manifold`` makes them `geoopt.ManifoldParameter` of
    `geoopt.Stiefel`, for geoopt's `RiemannianAdam` and `RiemannianSGD`.

    Computed in float64 and rounded once to the parameters' dtype: with free frames the bound holds
    to a few units of rounding of that dtype for every finite parameter. With ``manifold`` it holds
    while the parameters are on the manifold, to the accuracy of geoopt's retraction.

    The zero start, z = 0, gives a gradient to the values only: frames move from the second step.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    frame : {"cayley", "polar", "qr", "manifold"}
    core : {"diagonal", "full"}
        A full r x r matrix S in place of the diagonal one, :math:`W = U S V^T`, with a radius
        :math:`S = 2 \delta Z (I + Z^T Z)^{-1}`: the same sets, and frames need not be singular
        vectors (`lowrank_opt.stella`, `lowrank_opt.polar`).
    radius : float, optional
        Bound on the spectral norm. Positive.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError, OptionError
        If the radius is not positive and finite, or `frame` is unknown.
    MissingExtraError
        If geoopt is not installed and ``frame="manifold"``.

    References
    ----------
    Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*, section 4.1.1, for
    the QR and polar maps; Kochurov, Karimov and Kozlukov, Geoopt (arXiv 2005.02819).

    Examples
    --------
    >>> layer = SVDFrames((5, 4), rank=2, frame="qr", radius=1.0)
    >>> layer.assign(3 * torch.eye(5, 4), project=True)().detach().singular_values()
    tensor([1., 1.])
    """

    complete: bool = True

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        frame: FrameMap = "polar",
        core: Core = "diagonal",
        radius: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.frame: FrameMap = check_choice(frame, get_args(FrameMap), "frame")
        self.radius: float | None = None if radius is None else check_radius(radius)
        empty = torch.empty(0, dtype=dtype, device=device)
        self.core: Core = check_choice(core, get_args(Core), "core")
        sizes = (self.rank,) if core == "diagonal" else (self.rank, self.rank)
        self.values: nn.Parameter = nn.Parameter(empty.new_zeros(sizes))
        self.left: nn.Parameter = _frame_parameter(frame, empty.new_empty(m, self.rank))
        self.right: nn.Parameter = _frame_parameter(frame, empty.new_empty(n, self.rank))
        self.check_held()
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        said = "two thin SVDs, QRs or Cayley maps", "arXiv 2005.02819"
        yield Example("SVDFrames", cls, *said)
        yield Example("SVDFrames(radius)", partial(cls, radius=1.0), *said)
        for frame in ("cayley", "qr"):
            make = partial(cls, radius=1.0, frame=frame)
            yield Example(f"SVDFrames(radius, {frame!r})", make, listed=False)

    @property
    def feasible_set(self) -> RankAtMost | SchattenBall:
        if self.radius is None:
            return RankAtMost(self.rank)
        return SchattenBall(float("inf"), self.radius, self.rank)

    def frames(self) -> tuple[Tensor, Tensor]:
        """Return U and V in the working dtype."""
        return _built(self.frame, self.left), _built(self.frame, self.right)

    def factors(self) -> LowRankOperator:
        (U, V), z = self.frames(), self.values.to(working_dtype(self.values))
        if self.core == "full":
            S = z if self.radius is None else self.radius * contraction(z)
            one = S.new_ones(self.rank)
            return LowRankOperator(U @ S, one, V).to(dtype=self.left.dtype)
        scale = z if self.radius is None else self.radius * torch.sin(z)
        return LowRankOperator(U, scale, V).to(dtype=self.left.dtype)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return parameters of the singular vectors, and :math:`z = \arcsin(\sigma / \delta)`.

        The Cayley transform reaches a frame up to signs of its columns, which go to the values.
        """
        U, sigma, V = self.svd_of(target)
        left, right = _inverted(self.frame, U), _inverted(self.frame, V)
        signs = (_built(self.frame, left) * U).sum(0) * (_built(self.frame, right) * V).sum(0)
        if self.core == "full":
            z = sigma if self.radius is None else invert_contraction(sigma / self.radius)
            return {"left": left, "right": right, "values": torch.diag(z * signs.sign())}
        z = sigma if self.radius is None else torch.asin((sigma / self.radius).clamp_max(1.0))
        return {"left": left, "right": right, "values": z * signs.sign()}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the values to 0 and the frames to random ones."""
        for p in (self.left, self.right):
            Q = random_frame(*p.shape, like=p, generator=generator)
            p.copy_(_inverted(self.frame, Q))
        self.values.zero_()
        return self


def _frame_parameter(frame: FrameMap, empty: Tensor) -> nn.Parameter:
    if frame != "manifold":
        return nn.Parameter(empty)
    with extra("geoopt"):
        import geoopt
    eye = torch.eye(*empty.shape, dtype=empty.dtype, device=empty.device)
    return geoopt.ManifoldParameter(eye, manifold=geoopt.Stiefel())


def _built(frame: FrameMap, free: Tensor) -> Tensor:
    """Return the frame of free parameters."""
    if frame == "polar":
        return polar_frame(free)
    if frame == "qr":
        return qr_frame(free)
    if frame == "cayley":
        r = free.shape[1]
        # Only the strictly lower part counts, so that a free diagonal cannot set the scale.
        return tall_cayley(free[:r].tril(-1), free[r:])
    return free.to(working_dtype(free))


def _inverted(frame: FrameMap, Q: Tensor) -> Tensor:
    """Return free parameters of a frame; Cayley reaches it up to signs of its columns."""
    if frame != "cayley":
        return Q
    skew, rows = inverse_cayley(Q.double())
    return torch.cat((2 * skew.tril(-1), rows))
