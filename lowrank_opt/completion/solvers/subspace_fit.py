r"""Least squares over the members of a set whose rows and columns lie in given subspaces.

:math:`W = D_a U C V^T D_b` with orthonormal U and V and fixed positive weights a, b (ones, but
for weighted sets) is in the set if the small core C is: accelerated projected gradients on C and
on the biases, with a singular value decomposition of the core in each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import Backend, ModelParts, Needed
from lowrank_opt.linalg import product_svd
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import SpectralSet

# (W + a + b)^2 <= 1.5 W^2 + 6 a^2 + 6 b^2: steps for all blocks at once.
_SHARE_OF_W, _SHARE_OF_BIASES = 1.5, 6.0


@dataclass(frozen=True, eq=False)
class SubspacePoint:
    """``U core V^T`` and biases; float64.

    Parameters
    ----------
    U : Tensor, shape (m, k), orthonormal columns
    core : Tensor, shape (k, l)
    V : Tensor, shape (n, l), orthonormal columns
    rows : Tensor, shape (m,)
    cols : Tensor, shape (n,)
    """

    U: Tensor
    core: Tensor
    V: Tensor
    rows: Tensor
    cols: Tensor

    @property
    def variables(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `SubspaceFit.improve` changes."""
        return self.core, self.rows, self.cols

    def replace(self, core: Tensor, rows: Tensor, cols: Tensor) -> SubspacePoint:
        """Return other variables in the same subspaces."""
        return SubspacePoint(self.U, core, self.V, rows, cols)

    def compressed(self) -> SubspacePoint:
        """Return the same matrix in the smallest subspaces, with a diagonal core."""
        P, sigma, Qh = torch.linalg.svd(self.core, full_matrices=False)
        k = max(1, int((sigma > 1e-13 * sigma[:1]).sum()))
        core = torch.diag(sigma[:k])
        return SubspacePoint(self.U @ P[:, :k], core, self.V @ Qh[:k].mT, self.rows, self.cols)

    def reorthonormalized(self) -> SubspacePoint:
        """Return the same matrix with frames that are orthonormal to rounding."""
        (U, R), (V, S) = torch.linalg.qr(self.U), torch.linalg.qr(self.V)
        return SubspacePoint(U, R @ self.core @ S.mT, V, self.rows, self.cols)

    def widened(self, left: Tensor, right: Tensor) -> SubspacePoint:
        """Return the same matrix in subspaces that also contain these columns."""
        # Rounding of a few hundred widenings adds up, and would break the bound on the norm.
        here = self.reorthonormalized()
        U, V = _with_columns(here.U, left), _with_columns(here.V, right)
        k, ell = here.core.shape
        room = (0, V.shape[1] - ell, 0, U.shape[1] - k)
        core = torch.nn.functional.pad(here.core, room)
        return SubspacePoint(U, core, V, self.rows, self.cols)


class SubspaceFit:
    r"""Half the weighted sum of squared residuals, plus half the ridge penalty on biases.

    Parameters
    ----------
    observations : Observations, float64
    mean : float
        Subtracted from the values.
    feasible_set : SpectralSet
        Of the core.
    row_weights, col_weights : Tensor, shapes (m,) and (n,), or None
    bias_penalty : float or None
        None if there are no biases.
    """

    def __init__(
        self,
        observations: Observations,
        mean: float,
        feasible_set: SpectralSet,
        row_weights: Tensor | None = None,
        col_weights: Tensor | None = None,
        *,
        bias_penalty: float | None,
    ) -> None:
        m, n = observations.shape
        self.feasible_set: SpectralSet
        self.bias_penalty: float | None
        self.mean: float
        self.feasible_set, self.bias_penalty, self.mean = feasible_set, bias_penalty, mean
        self.centred: Observations = observations.with_values(observations.values - mean)
        self.a: Tensor
        self.b: Tensor
        self.a, self.b = (
            observations.values.new_ones(size) if w is None else w.detach().to(observations.values)
            for w, size in ((row_weights, m), (col_weights, n))
        )
        self.backend: Backend = backend_of(observations.device)
        w = observations.weights
        self.weights: Tensor = torch.ones_like(observations.values) if w is None else w
        self.step: float
        self.row_step: Tensor
        self.col_step: Tensor
        self.step, self.row_step, self.col_step = self._steps()

    def start(self) -> SubspacePoint:
        """Return the zero matrix with zero biases."""
        m, n = self.centred.shape
        U, V = (self.weights.new_zeros(size, 1) for size in (m, n))
        U[0], V[0] = 1.0, 1.0
        return SubspacePoint(U, U.new_zeros(1, 1), V, U.new_zeros(m), U.new_zeros(n))

    def point(self, W: LowRankOperator, bias: AdditiveBias) -> SubspacePoint:
        """Return a matrix and biases as a point."""
        left, right = W.left.double() / self.a.unsqueeze(1), W.right.double() / self.b.unsqueeze(1)
        U, sigma, V = product_svd(left, W.scale.double(), right)
        return SubspacePoint(U, torch.diag(sigma), V, bias.rows.double(), bias.cols.double())

    def objective(self, point: SubspacePoint) -> float:
        """Return the objective, without a gradient."""
        loss, _ = self.backend.squared_loss(self._model(point), self.centred, None, Needed())
        return 0.5 * float(loss) + self._ridge(point)

    def residual_gradient(self, point: SubspacePoint) -> Observations:
        """Return the gradient with respect to the observed entries of W."""
        entries = self.backend.entries(self._model(point), self.centred)
        return self.centred.with_values(self.weights * (entries - self.centred.values))

    def improve(self, point: SubspacePoint, steps: int) -> SubspacePoint:
        """Take accelerated projected gradient steps from a point, within its subspaces.

        References
        ----------
        Beck and Teboulle (2009), algorithm FISTA; restarts of O'Donoghue and Candes (2015),
        section 3.2.
        """
        x = y = point.variables
        scales = (self.step, self.row_step, self.col_step)
        t = 1.0
        for _ in range(steps):
            new = self._projected_step(point.replace(*y))
            turn = sum(
                float((((v - z) * (z - u)) / s).sum())
                for u, v, z, s in zip(x, y, new, scales, strict=True)
            )
            grown = 1.0 if turn > 0 else (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum = 0.0 if turn > 0 else (t - 1) / grown
            y = tuple(z + momentum * (z - u) for u, z in zip(x, new, strict=True))
            x, t = new, grown
        return point.replace(*x)

    def operator(self, point: SubspacePoint) -> LowRankOperator:
        """Return the matrix W."""
        P, sigma, Qh = torch.linalg.svd(point.core, full_matrices=False)
        left, right = point.U @ P, point.V @ Qh.mT
        return LowRankOperator(left * self.a.unsqueeze(1), sigma, right * self.b.unsqueeze(1))

    def bias(self, point: SubspacePoint) -> AdditiveBias:
        """Return the mean and the biases."""
        return AdditiveBias(self.mean, point.rows, point.cols)

    def _projected_step(self, point: SubspacePoint) -> tuple[Tensor, Tensor, Tensor]:
        biased = self.bias_penalty is not None
        needed = Needed(left=True, row_bias=biased, col_bias=biased)
        _, gradient = self.backend.squared_loss(self._model(point), self.centred, None, needed)
        assert gradient.left is not None, "asked for"
        slope = 0.5 * point.U.mT @ (gradient.left * self.a.unsqueeze(1))
        core = self._project(point.core - self.step * slope)
        if gradient.row_bias is None or gradient.col_bias is None:
            return core, point.rows, point.cols
        rate = self.bias_penalty or 0.0
        rows = point.rows - self.row_step * (0.5 * gradient.row_bias + rate * point.rows)
        cols = point.cols - self.col_step * (0.5 * gradient.col_bias + rate * point.cols)
        return core, rows, cols

    def _project(self, core: Tensor) -> Tensor:
        P, sigma, Qh = torch.linalg.svd(core, full_matrices=False)
        r = min(self.feasible_set.rank, len(sigma))
        values = self.feasible_set.project_singular_values(sigma[:r])
        return (P[:, :r] * values) @ Qh[:r]

    def _model(self, point: SubspacePoint) -> ModelParts:
        left = (point.U @ point.core) * self.a.unsqueeze(1)
        right = point.V * self.b.unsqueeze(1)
        return ModelParts(left, right, point.rows, point.cols)

    def _ridge(self, point: SubspacePoint) -> float:
        squares = point.rows.square().sum() + point.cols.square().sum()
        return 0.5 * (self.bias_penalty or 0.0) * float(squares)

    def _steps(self) -> tuple[float, Tensor, Tensor]:
        rows, cols = self.centred.rows, self.centred.cols
        m, n = self.centred.shape
        sizes = self.weights * self.a[rows].square() * self.b[cols].square()
        if self.bias_penalty is None:
            return 1 / float(sizes.max()), sizes.new_ones(m), sizes.new_ones(n)
        totals = (
            sizes.new_zeros(size).index_add_(0, index, self.weights)
            for index, size in ((rows, m), (cols, n))
        )
        steps = (1 / (_SHARE_OF_BIASES * x + self.bias_penalty).clamp_min(1e-300) for x in totals)
        row_step, col_step = (torch.where(s < 1e299, s, 1.0) for s in steps)
        return 1 / (_SHARE_OF_W * float(sizes.max())), row_step, col_step


def _with_columns(frame: Tensor, more: Tensor) -> Tensor:
    """Extend orthonormal columns by what of other columns is orthogonal to them."""
    for _ in range(2):
        more = more - frame @ (frame.mT @ more)
    sizes = torch.linalg.vector_norm(more, dim=0)
    more = more[:, sizes > 0] / sizes[sizes > 0]
    room = len(frame) - frame.shape[1]
    U, sigma, _ = torch.linalg.svd(more, full_matrices=False)
    fresh = U[:, : min(room, int((sigma > 1e-8).sum()))]
    # Once more: normalised small remainders may lean on the frame again.
    fresh = torch.linalg.qr(fresh - frame @ (frame.mT @ fresh)).Q
    return torch.cat((frame, fresh), dim=1)
