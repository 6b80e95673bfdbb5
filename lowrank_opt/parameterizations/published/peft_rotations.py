"""Rotations that PEFT trained, as `Orthogonal`: OFT, BOFT of one factor, and HRA."""

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
        ``oft_R.weight`` of shape (blocks, b (b - 1) / 2); ``boft_R`` of shape (1, blocks, b, b) and
        ``boft_s``; or ``hra_u`` of shape (n, r), r even.
    series_terms : int, optional
        ``num_cayley_neumann_terms`` where ``use_cayley_neumann`` is set, as it is by default.
    gram_schmidt : bool
        HRA's ``apply_GS``.

    Returns
    -------
    module : Orthogonal
    distance : float
        Of the matrices R, in the spectral norm.

    Raises
    ------
    TargetError
        If BOFT has several factors, which stand on other butterflies than here, or a scale.

    Examples
    --------
    >>> weight, entries = torch.randn(5, 8), torch.zeros(2, 6)
    >>> from_peft_rotation(weight, "OFT", {"oft_R.weight": entries})[1]
    0.0
    """
    check_choice(kind, get_args(PeftKind), "kind")
    if kind == "HRA":
        return _reflections(weight, tensors["hra_u"], gram_schmidt=gram_schmidt)
    R = _boft(tensors) if kind == "BOFT" else _oft(tensors["oft_R.weight"], series_terms)
    blocks = weight.shape[1] // R.shape[-1]
    R = R.expand(blocks, -1, -1)
    U, _, Vh = torch.linalg.svd(R)
    turned = U @ Vh
    module = Orthogonal(weight, blocks=blocks)
    with torch.no_grad():
        module.skew.copy_(skew_entries(skew_of(turned, "cayley")).unsqueeze(0))
    return module, float(torch.linalg.matrix_norm(turned - R, 2).amax())


def _oft(entries: Tensor, series_terms: int | None) -> Tensor:
    """Return the blocks of R: PEFT turns activations by R^T, from entries above the diagonal."""
    b = int((1 + (1 + 8 * entries.shape[-1]) ** 0.5) / 2)
    rows, cols = torch.triu_indices(b, b, 1)
    Q = entries.new_zeros(len(entries), b, b, dtype=torch.float64)
    Q[:, rows, cols] = entries.detach().double()
    Q = Q - Q.mT
    eye = torch.eye(b, dtype=Q.dtype)
    if series_terms is None:
        return torch.linalg.solve(eye + Q, eye - Q, left=False).mT
    # I + 2 Q + ... + 2 Q^(d-1) + Q^d as PEFT sums it, d = 3 at least once there are three terms.
    degree = series_terms - 1 if series_terms < 3 else max(series_terms - 1, 3)
    total, power = eye.expand_as(Q).clone(), eye.expand_as(Q)
    for k in range(1, degree + 1):
        power = power @ Q
        total = total + (1.0 if k == degree and degree > 1 else 2.0) * power
    return total.mT


def _boft(tensors: Mapping[str, Tensor]) -> Tensor:
    factors, scale = tensors["boft_R"].detach().double(), tensors.get("boft_s")
    if len(factors) > 1 or (scale is not None and not bool((scale == 1).all())):
        raise TargetError(
            "a BOFT adapter of one factor without scales is a block rotation; got "
            f"{len(factors)} factors{'' if scale is None else ' and scales'}: merge it with PEFT"
        )
    Q = (factors[0] - factors[0].mT) / 2
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    return torch.linalg.solve(eye + Q, eye - Q, left=False).mT


def _reflections(weight: Tensor, u: Tensor, *, gram_schmidt: bool) -> tuple[Orthogonal, float]:
    vectors = u.detach().double()
    if gram_schmidt:
        Q, T = torch.linalg.qr(vectors)
        vectors = Q * torch.where(T.diagonal() < 0, -1.0, 1.0)
    module = Orthogonal(weight, map="householder", rank=u.shape[1])
    with torch.no_grad():
        module.vectors.copy_(vectors)
    return module, 0.0
