"""Rotations that PEFT trained, as `Orthogonal`: OFT, BOFT and HRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank_opt.checks import check_choice
from lowrank_opt.errors import TargetError
from lowrank_opt.linalg import skew_entries, skew_of
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal

PeftKind = Literal["OFT", "BOFT", "HRA"]


def from_peft_rotation(
    weight: Tensor,
    kind: PeftKind,
    tensors: Mapping[str, Tensor],
    *,
    series_terms: int | None = None,
    gram_schmidt: bool = False,
    constraint: float | None = None,
) -> tuple[Orthogonal, float]:
    r"""Return the `Orthogonal` nearest to a rotation that PEFT trained, and how far it is from it.

    PEFT's exact maps are met to rounding. Its default OFT is a truncated series and not orthogonal:
    the nearest rotation is taken, block by block, and the distance says what is lost.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight.
    kind : {"OFT", "BOFT", "HRA"}
        PEFT's ``peft_type``.
    tensors : mapping of str to Tensor
        ``oft_R.weight`` of shape (blocks or 1, b (b - 1) / 2); ``boft_R`` of shape
        (factors, blocks, b, b), and ``boft_s``; or ``hra_u`` of shape (n, r), r even.
    series_terms : int, optional
        ``num_cayley_neumann_terms`` where ``use_cayley_neumann`` is set, as it is by default.
    gram_schmidt : bool
        HRA's ``apply_GS``.
    constraint : float, optional
        ``eps`` where ``coft`` is set.

    Returns
    -------
    module : Orthogonal
    distance : float
        Of the matrices R, in the spectral norm; of several factors, the sum.

    Raises
    ------
    TargetError
        If BOFT has scales, which `import_peft` takes; if HRA has an odd number of reflections, more
        of them than the weight has rows or columns, or a zero one.

    Examples
    --------
    >>> weight, entries = torch.randn(5, 8), torch.zeros(2, 6)
    >>> from_peft_rotation(weight, "OFT", {"oft_R.weight": entries})[1]
    0.0
    """
    check_choice(kind, get_args(PeftKind), "kind")
    if kind == "HRA":
        vectors = _directions(tensors["hra_u"], weight, gram_schmidt=gram_schmidt)
        module = Orthogonal(weight, map="householder", rank=vectors.shape[1])
        with torch.no_grad():
            module.vectors.copy_(vectors)
        return module, 0.0
    scale = tensors.get("boft_s")
    if scale is not None and not bool((scale == 1).all()):
        raise TargetError(
            "rows that are scaled are no rotation; got a boft_s that is not one: import the folder "
            "with lowrank_opt.nn.import_peft"
        )
    R = peft_blocks(kind, tensors, weight.shape[1], series_terms, constraint)
    U, _, Vh = torch.linalg.svd(R)
    turned = U @ Vh
    stages, blocks = R.shape[:2]
    module = Orthogonal(weight, blocks=blocks, stages=stages, butterfly="halves")
    with torch.no_grad():
        module.skew.copy_(skew_entries(skew_of(turned, "cayley")))
    return module, float(torch.linalg.matrix_norm(turned - R, 2).amax(1).sum())


def peft_blocks(
    kind: PeftKind,
    tensors: Mapping[str, Tensor],
    n: int,
    series_terms: int | None = None,
    constraint: float | None = None,
) -> Tensor:
    """Return the blocks of R as PEFT computes them, shape (factors, blocks, b, b), in float64.

    On the butterflies that `Orthogonal` calls halves. PEFT turns activations by R^T.
    """
    if kind == "OFT":
        R = _oft(tensors["oft_R.weight"], series_terms, constraint)
        return R.expand(n // R.shape[-1], -1, -1).unsqueeze(0)
    given = tensors["boft_R"].detach().double()
    return _cayley((given - given.mT) / 2)


def peft_rotation_dense(
    kind: PeftKind,
    tensors: Mapping[str, Tensor],
    weight: Tensor,
    *,
    series_terms: int | None = None,
    gram_schmidt: bool = False,
    constraint: float | None = None,
) -> Tensor:
    """Return R - I as PEFT computes it, n x n in float64, orthogonal or not; without scales."""
    n = weight.shape[1]
    if kind == "HRA":
        tensors = {"hra_u": tensors["hra_u"]}
        module, _ = from_peft_rotation(weight, kind, tensors, gram_schmidt=gram_schmidt)
    else:
        R = peft_blocks(kind, tensors, n, series_terms, constraint)
        module = Orthogonal(weight, blocks=R.shape[1], stages=len(R), butterfly="halves")
        eye = torch.eye(R.shape[-1], dtype=R.dtype)
        return module.dense_of(R - eye)
    return module.rotation_dense().detach() - torch.eye(n, dtype=torch.float64)


def _oft(entries: Tensor, series_terms: int | None, constraint: float | None) -> Tensor:
    """Return the blocks of R, from entries above the diagonal."""
    b = int((1 + (1 + 8 * entries.shape[-1]) ** 0.5) / 2)
    rows, cols = torch.triu_indices(b, b, 1)
    Q = entries.new_zeros(len(entries), b, b, dtype=torch.float64)
    Q[:, rows, cols] = entries.detach().double()
    Q = Q - Q.mT
    if constraint is not None:
        largest = constraint / len(Q) ** 0.5
        norms = torch.linalg.matrix_norm(Q, keepdim=True)
        Q = torch.where(norms > largest, Q * (largest / norms.clamp_min(largest)), Q)
    return _cayley(Q) if series_terms is None else _series(Q, series_terms).mT


def _cayley(Q: Tensor) -> Tensor:
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    return torch.linalg.solve(eye + Q, eye - Q, left=False).mT


def _series(Q: Tensor, terms: int) -> Tensor:
    """Return ``I + 2 Q + ... + 2 Q^(d-1) + Q^d`` as PEFT sums it; of three terms, d = 3."""
    degree = terms - 1 if terms < 3 else max(terms - 1, 3)
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q)
    total, power = eye.clone(), eye
    for k in range(1, degree + 1):
        power = power @ Q
        total = total + (1.0 if k == degree and degree > 1 else 2.0) * power
    return total


def _directions(u: Tensor, weight: Tensor, *, gram_schmidt: bool) -> Tensor:
    vectors, most = u.detach().double(), min(weight.shape)
    if u.shape[1] % 2 or u.shape[1] > most or not bool(vectors.any(0).all()):
        raise TargetError(
            f"reflections are imported in pairs, none of them zero, {most} at most for this weight;"
            f" got {u.shape[1]}{'' if bool(vectors.any(0).all()) else ', zero ones among them'}: "
            "merge the adapter with PEFT"
        )
    if not gram_schmidt:
        return vectors
    Q, T = torch.linalg.qr(vectors)
    return Q * torch.where(T.diagonal() < 0, -1.0, 1.0)
