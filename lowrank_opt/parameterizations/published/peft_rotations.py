"""Rotations as PEFT keeps them: OFT, BOFT, HRA and PSOFT, read and written.

PEFT's Cayley maps take the skew matrix with the other sign, kept as its entries above the diagonal:
the same numbers in another order. What it computes exactly is copied, bit by bit, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank_opt.checks import check_choice
from lowrank_opt.errors import TargetError
from lowrank_opt.linalg import skew_entries
from lowrank_opt.parameterizations.published.peft_maps import (
    computed,
    free,
    square,
    turned,
    upper_entries,
)
from lowrank_opt.parameterizations.published.peft_psoft import psoft_from_peft, psoft_tensors
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal
from lowrank_opt.parameterizations.turned.scaled_rotation import ScaledRotation

PeftKind = Literal["OFT", "BOFT", "HRA", "PSOFT"]


def from_peft_rotation(
    weight: Tensor,
    kind: PeftKind,
    tensors: Mapping[str, Tensor],
    *,
    series_terms: int | None = None,
    gram_schmidt: bool = False,
    constraint: float | None = None,
    frames: tuple[Tensor, Tensor] | None = None,
) -> tuple[Orthogonal | ScaledRotation, float]:
    r"""Return the `Orthogonal` nearest to a rotation that PEFT trained, and how far it is from it.

    PEFT's exact maps are taken over number by number. Its default OFT is a truncated series and not
    orthogonal: the nearest rotation is taken, block by block, and the distance says what is lost.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        The base weight.
    kind : {"OFT", "BOFT", "HRA", "PSOFT"}
        PEFT's ``peft_type``.
    tensors : mapping of str to Tensor
        ``oft_R.weight`` of shape (blocks or 1, b (b - 1) / 2); ``boft_R`` of shape
        (factors, blocks, b, b), and ``boft_s``; ``hra_u`` of shape (n, r), r even; or
        ``psoft_R.weight`` of shape (r (r - 1) / 2,), and perhaps ``psoft_R.vector_a`` and
        ``psoft_R.vector_b``, which make a `ScaledRotation`.
    series_terms : int, optional
        ``num_cayley_neumann_terms`` where ``use_cayley_neumann`` is set, as it is by default.
    gram_schmidt : bool
        HRA's ``apply_GS``.
    constraint : float, optional
        ``eps`` where ``coft`` is set; of PSOFT, ``cayley_neumann_eps``.
    frames : (Tensor, Tensor), optional
        B of shape (m, r) and A^T of shape (n, r) of PSOFT: see `psoft_frames`, the default.

    Returns
    -------
    module : Orthogonal, or ScaledRotation
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
    if kind == "PSOFT":
        return psoft_from_peft(weight, tensors, series_terms, constraint, frames)
    Q = _skew(kind, tensors, weight.shape[1], constraint)
    stages, blocks = Q.shape[:2]
    module = Orthogonal(weight, blocks=blocks, stages=stages, butterfly="halves")
    skew, distance = turned(_summed(Q, series_terms), series_terms)
    with torch.no_grad():
        module.skew.copy_(skew_entries(skew))
    return module, distance


def to_peft_rotation(module: Orthogonal | ScaledRotation, kind: PeftKind) -> dict[str, Tensor]:
    r"""Return the tensors with which PEFT computes the same rotation.

    Parameters
    ----------
    module : Orthogonal, or ScaledRotation for PSOFT
        Without a radius and by the Cayley map the numbers are its own; otherwise of the same
        rotation by the unbounded Cayley map, rounded once.
    kind : {"OFT", "BOFT", "HRA", "PSOFT"}

    Returns
    -------
    dict of str to Tensor
        In the dtype of the parameters; of PSOFT in the frames that `psoft_frames` finds.

    Raises
    ------
    TargetError
        If it is a rotation of another kind.

    Examples
    --------
    >>> tensors = {"oft_R.weight": torch.tensor([[0.5, 0.0, 0.25]])}
    >>> module, _ = from_peft_rotation(torch.randn(5, 3), "OFT", tensors)
    >>> to_peft_rotation(module, "OFT")
    {'oft_R.weight': tensor([[0.5000, 0.0000, 0.2500]])}
    """
    check_choice(kind, get_args(PeftKind), "kind")
    _check_kind(module, kind)
    if isinstance(module, Orthogonal) and kind == "HRA":
        return {"hra_u": _in_pairs(module.vectors.detach())}
    if kind == "PSOFT":
        return psoft_tensors(module)
    assert isinstance(module, Orthogonal), "checked above"
    Q = -free(module).to(module.skew.dtype)
    if kind == "BOFT":
        return {"boft_R": Q, "boft_s": Q.new_ones(module.shape[0], 1)}
    return {"oft_R.weight": upper_entries(Q[0])}


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
        assert isinstance(module, Orthogonal), "of reflections"
        return module.rotation_dense().detach() - torch.eye(n, dtype=torch.float64)
    Q = _skew(kind, tensors, n, constraint)
    R = computed(_summed(Q, series_terms), series_terms)
    module = Orthogonal(weight, blocks=R.shape[1], stages=len(R), butterfly="halves")
    return module.dense_of(R - torch.eye(R.shape[-1], dtype=R.dtype))


def peft_distance(
    kind: PeftKind,
    tensors: Mapping[str, Tensor],
    *,
    series_terms: int | None = None,
    gram_schmidt: bool = False,
    constraint: float | None = None,
) -> float:
    """Return ``|R - I|`` of what PEFT computes, orthogonal or not; of factors, the sum."""
    if kind == "HRA":
        u = tensors["hra_u"].detach().double()
        R = torch.eye(len(u), dtype=u.dtype)
        for x in (_orthogonalized(u) if gram_schmidt else u).unbind(1):
            R = R - 2 * torch.outer(R @ x, x) / x.square().sum()
        return float(torch.linalg.matrix_norm(R - torch.eye(len(u), dtype=u.dtype), 2))
    n = tensors["oft_R.weight"].shape[0] if kind == "OFT" else 1
    b = _oft_size(tensors) if kind == "OFT" else 1
    R = computed(_summed(_skew(kind, tensors, n * b, constraint), series_terms), series_terms)
    D = R - torch.eye(R.shape[-1], dtype=R.dtype)
    return float(torch.linalg.matrix_norm(D, 2).amax(1).sum())


def _oft_size(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of blocks of OFT, from the number of entries above their diagonals."""
    return int((1 + (1 + 8 * tensors["oft_R.weight"].shape[-1]) ** 0.5) / 2)


def _skew(
    kind: PeftKind, tensors: Mapping[str, Tensor], n: int, constraint: float | None
) -> Tensor:
    """Return PEFT's Q, shape (factors, blocks, b, b), in float64."""
    if kind == "BOFT":
        given = tensors["boft_R"].detach().double()
        return (given - given.mT) / 2
    entries = tensors["oft_R.weight"].detach()
    b = _oft_size(tensors)
    Q = square(entries, b)
    if constraint is not None:
        largest = constraint / len(Q) ** 0.5
        norms = torch.linalg.matrix_norm(Q, keepdim=True)
        Q = torch.where(norms > largest, Q * (largest / norms.clamp_min(largest)), Q)
    return Q.expand(n // b, -1, -1).unsqueeze(0)


def _summed(Q: Tensor, series_terms: int | None) -> Tensor:
    """Return what OFT's series is one of: PEFT sums that of the inverse of its exact map."""
    return Q if series_terms is None else -Q


def _directions(u: Tensor, weight: Tensor, *, gram_schmidt: bool) -> Tensor:
    vectors, most = u.detach().double(), min(weight.shape)
    if u.shape[1] % 2 or u.shape[1] > most or not bool(vectors.any(0).all()):
        raise TargetError(
            f"reflections are imported in pairs, none of them zero, {most} at most for this weight;"
            f" got {u.shape[1]}{'' if bool(vectors.any(0).all()) else ', zero ones among them'}: "
            "merge the adapter with PEFT"
        )
    return _orthogonalized(vectors) if gram_schmidt else vectors


def _orthogonalized(vectors: Tensor) -> Tensor:
    """Return what Gram and Schmidt make of columns."""
    Q, T = torch.linalg.qr(vectors)
    return Q * torch.where(T.diagonal() < 0, -1.0, 1.0)


def _in_pairs(vectors: Tensor) -> Tensor:
    """Return reflections without zero ones, which we leave out and PEFT divides by."""
    still = ~vectors.any(0).view(-1, 2).all(1).repeat_interleave(2)
    return torch.where(still, torch.ones_like(vectors), vectors)


def _check_kind(module: Orthogonal | ScaledRotation, kind: PeftKind) -> None:
    held = {"PSOFT"} if isinstance(module, ScaledRotation) else _kinds(module)
    if kind not in held:
        raise TargetError(
            f"PEFT's {kind} has rotations of its own form; got a {type(module).__name__}, that of "
            f"{' or '.join(sorted(held)) or 'no method of PEFT'}: export it as that, or as LoRA"
        )


def _kinds(module: Orthogonal) -> set[PeftKind]:
    if module.map == "householder":
        return {"HRA"}
    if module.frame is not None:
        return {"PSOFT"}
    # Strides of pairs are halves of them.
    if module.stages > 1:
        return {"BOFT"} if module.butterfly == "halves" or module.block_size == 2 else set()
    return {"OFT", "BOFT"}
