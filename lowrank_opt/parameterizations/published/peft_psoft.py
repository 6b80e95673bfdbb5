"""PSOFT as PEFT keeps it: a rotation between frames that it takes from the weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowrank_opt.errors import TargetError
from lowrank_opt.linalg import nearest_frame, skew_entries
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.published.peft_maps import (
    computed,
    free,
    square,
    turned,
    upper_entries,
)
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal
from lowrank_opt.parameterizations.turned.scaled_rotation import RotatedFrame, ScaledRotation

# Singular vectors in single precision, as PEFT takes them, and ours.
_SAME_FRAME = 1e-3


def psoft_frames(
    weight: Tensor,
    rank: int,
    frame: RotatedFrame = "right",
    *,
    steps: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Return B and :math:`A^T` of PSOFT as PEFT computes them from the weight, in float32.

    A file does not hold them: singular values close to each other make them another machine's.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    rank : int
    frame : {"right", "balanced"}
        ``psoft_init`` or ``pissa_init``.
    steps : int, optional
        ``psoft_svd_lowrank_niter`` where ``psoft_svd`` is "lowrank".
    seed : int
        ``random_seed``, for the same; the global generator stays what it is.

    Returns
    -------
    Tensor, Tensor, shapes (m, rank), (n, rank)

    Examples
    --------
    >>> B, A = psoft_frames(torch.eye(3, 2), 1)
    >>> bool(torch.allclose((B @ A.mT).abs().sum(), torch.tensor(1.0)))
    True
    """
    W = weight.detach().float()
    if steps is None:
        U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
        V = Vh.mT
    else:
        with torch.random.fork_rng(devices=[W.device] if W.device.type == "cuda" else []):
            torch.manual_seed(seed)
            U, sigma, V = torch.svd_lowrank(W, q=rank, niter=steps)
    U, sigma, V = U[:, :rank], sigma[:rank], V[:, :rank]
    left, right = (sigma, 1.0) if frame == "right" else (sigma.sqrt(), sigma.sqrt())
    return U * left, V * right


def peft_psoft_update(
    tensors: Mapping[str, Tensor],
    frames: tuple[Tensor, Tensor],
    *,
    series_terms: int | None = None,
    constraint: float | None = None,
) -> LowRankOperator:
    """Return the update of PSOFT as PEFT computes it, orthogonal or not, with its vectors."""
    B, A = (x.double() for x in frames)
    Q = _psoft_skew(tensors, A.shape[1], constraint if series_terms is not None else None)
    R = computed(Q, series_terms)
    a, b = _vectors(tensors, A.shape[1])
    R = b.unsqueeze(1) * R * a
    return LowRankOperator(B @ (R - torch.eye(len(R), dtype=R.dtype)), R.new_ones(len(R)), A)


def psoft_from_peft(
    weight: Tensor,
    tensors: Mapping[str, Tensor],
    series_terms: int | None,
    constraint: float | None,
    frames: tuple[Tensor, Tensor] | None,
) -> tuple[Orthogonal | ScaledRotation, float]:
    """Return the rotation of PSOFT's tensors, and how far it is from what PEFT computes."""
    entries = tensors["psoft_R.weight"]
    rank = int((1 + (1 + 8 * entries.numel()) ** 0.5) / 2)
    frames = psoft_frames(weight, rank) if frames is None else frames
    Q = _psoft_skew(tensors, rank, constraint if series_terms is not None else None)
    skew, distance = turned(Q[None, None], series_terms)
    scaled = len(tensors) > 1 or not _orthonormal(frames[1])
    module = ScaledRotation(weight, rank) if scaled else Orthogonal(weight, rank=rank)
    with torch.no_grad():
        module.skew.copy_(skew_entries(skew).view_as(module.skew))
        if isinstance(module, Orthogonal):
            assert module.frame is not None, "of a rank"
            module.frame.copy_(frames[1])
            return module, distance
        module.frame = "right" if _orthonormal(frames[1]) else "balanced"
        for x, y in zip((module.outer, module.inner), frames, strict=True):
            x.copy_(y)
        for x, y in zip((module.before, module.after), _vectors(tensors, rank), strict=True):
            x.copy_(y)
    return module, distance


def _orthonormal(frame: Tensor) -> bool:
    gram = frame.double().mT @ frame.double()
    return bool((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max() < _SAME_FRAME)


def _psoft_skew(tensors: Mapping[str, Tensor], rank: int, constraint: float | None) -> Tensor:
    Q = square(tensors["psoft_R.weight"].flatten(), rank)
    norm = float(torch.linalg.matrix_norm(Q))
    return Q if constraint is None or norm <= constraint else Q * (constraint / (norm + 1e-12))


def _vectors(tensors: Mapping[str, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """Return what R is multiplied by from the right and from the left, in float64."""
    one = torch.ones(rank, dtype=torch.float64)
    a, b = (tensors.get(f"psoft_R.vector_{x}", one).detach().double() for x in "ab")
    return a, b


def psoft_tensors(module: Orthogonal | ScaledRotation) -> dict[str, Tensor]:
    """Return PSOFT's tensors of a rotation, in the frames that PEFT will take from the weight."""
    scaled = isinstance(module, ScaledRotation)
    own = module.inner.double() if scaled else _frame_of(module)
    theirs = psoft_frames(module.weight, module.rank, module.frame if scaled else "right")[1]
    sizes = torch.linalg.vector_norm(own, dim=0) * torch.linalg.vector_norm(theirs.double(), dim=0)
    agree = (own * theirs).sum(0) / sizes
    if bool((agree.abs() < 1 - _SAME_FRAME**2 / 2).any()):
        raise TargetError(
            "PEFT takes the frames of PSOFT from the weight, in single precision; got a rotation "
            "between others, or singular values too close to tell directions: export as LoRA"
        )
    sign = agree.sign()
    Q = -sign.unsqueeze(1) * free(module).view(module.rank, module.rank) * sign
    tensors = {"psoft_R.weight": upper_entries(Q).to(module.skew.dtype)}
    if isinstance(module, ScaledRotation):
        tensors |= {"psoft_R.vector_a": module.before.detach().clone()}
        tensors |= {"psoft_R.vector_b": module.after.detach().clone()}
    return tensors


def _frame_of(module: Orthogonal) -> Tensor:
    assert module.frame is not None, "of a rank"
    return nearest_frame(module.frame)
