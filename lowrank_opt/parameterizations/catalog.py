"""Every method of this package in one table, read off an instance of each.

What the columns say is asked of the code: the rank and the norm of the declared set, whether the
map is onto it, and W after the zero start. Only cost, image and reference are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lowrank_opt.linalg import orthonormal_columns
from lowrank_opt.parameterizations.adalora import AdaLoRA
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.compose import Offset, Weighted
from lowrank_opt.parameterizations.contractions import Contractions
from lowrank_opt.parameterizations.delora import DeLoRA
from lowrank_opt.parameterizations.dynamic_rank import DynamicRank
from lowrank_opt.parameterizations.ether import ETHER, ETHERPlus
from lowrank_opt.parameterizations.factored import Factored
from lowrank_opt.parameterizations.homogeneous import HomogeneousBall
from lowrank_opt.parameterizations.inductive import Inductive
from lowrank_opt.parameterizations.nb_lora import NBLoRA
from lowrank_opt.parameterizations.nested_svd import NestedSVD
from lowrank_opt.parameterizations.presets import lora_xs, nora
from lowrank_opt.parameterizations.radial import RadialBall
from lowrank_opt.parameterizations.simplex import SimplexRankOnes
from lowrank_opt.parameterizations.spectral_lora import SpectralLoRA
from lowrank_opt.parameterizations.starts import olora, pissa, rslora
from lowrank_opt.parameterizations.svd_frames import SVDFrames
from lowrank_opt.parameterizations.vera import VeRA
from lowrank_opt.parameterizations.weight_decomposed import WeightDecomposed
from lowrank_opt.sets import (
    FeasibleSet,
    ImageSet,
    KyFanBall,
    NestedSet,
    RankAtMost,
    SchattenBall,
    ShiftedSet,
    SingularValueBox,
    WeightedSet,
)

Shape = tuple[int, int]
# Large enough that 4 r is below min(m, n): ranks are told apart.
_SHAPE, _RANK = (14, 13), 3

_NORMS = {1.0: "nuclear", 2.0: "Frobenius", float("inf"): "spectral"}


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes
    ----------
    name : str
        How it is written in code.
    make : callable
        ``make(shape, rank)`` returns an example, float64.
    cost : str
        Work of one evaluation beyond the products that LoRA needs.
    reference : str
    image : str
        What is reached, for maps that do not fill their set.
    """

    name: str
    make: Callable[[Shape, int], Parameterization | WeightDecomposed]
    cost: str
    reference: str
    image: str = ""


@dataclass(frozen=True)
class Row:
    """What the table says of one method, each a short text.

    Attributes
    ----------
    method, rank, norm, onto, zero_start, cost, export_rank, reference : str
    """

    method: str
    rank: str
    norm: str
    onto: str
    zero_start: str
    cost: str
    export_rank: str
    reference: str


def _weight(shape: Shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _nested(shape: Shape, rank: int) -> NestedSVD:
    inner = NBLoRA((2 * rank, 2 * rank), rank, radius=1.0, dtype=torch.float64)
    weight = _weight(shape)
    frames = (
        orthonormal_columns(weight[:, : 2 * rank], 2 * rank),
        orthonormal_columns(weight.mT[:, : 2 * rank], 2 * rank),
    )
    return NestedSVD(frames, inner)


def _inductive(shape: Shape, rank: int, *, orthonormal: bool = False) -> Inductive:
    (m, n), k = shape, 2 * rank
    inner = HomogeneousBall((k, k), rank, radius=1.0, dtype=torch.float64)
    features = _weight((m, k)), _weight((n, k))
    return Inductive(inner, *features, orthonormal=orthonormal)


def _weighted(shape: Shape, rank: int) -> Weighted:
    inner = HomogeneousBall(shape, rank, radius=1.0, dtype=torch.float64)
    return Weighted(inner, torch.linspace(0.5, 1.0, shape[0], dtype=torch.float64))


def _offset(shape: Shape, rank: int) -> Offset:
    inner = NBLoRA(shape, rank, radius=1.0, dtype=torch.float64)
    return Offset(inner.assign(_weight(shape), project=True))


def _decomposed(shape: Shape, rank: int) -> WeightDecomposed:
    return WeightDecomposed(Factored(shape, rank, dtype=torch.float64), _weight(shape))


def _of(
    make: Callable[..., Parameterization], **options: object
) -> Callable[..., Parameterization]:
    return partial(make, dtype=torch.float64, **options)


_INVERSE, _QR, _NONE = "one r x r inverse", "two thin QR", "none"

METHODS: tuple[Method, ...] = (
    Method("Factored", _of(Factored), _NONE, "arXiv 2106.09685"),
    Method("rslora", _of(rslora), _NONE, "arXiv 2312.03732"),
    Method("NBLoRA(radius)", _of(NBLoRA, radius=1.0), _INVERSE, "arXiv 2501.19050"),
    Method("NBLoRA(radius, p)", _of(NBLoRA, radius=1.0, p=3.0), _INVERSE, "arXiv 2501.19050"),
    Method("NBLoRA(ky_fan)", _of(NBLoRA, radius=1.0, ky_fan=2), _INVERSE, "arXiv 2501.19050"),
    Method("NBLoRA(bounds)", _of(NBLoRA, bounds=[3, 2, 1]), _INVERSE, "arXiv 2501.19050"),
    Method("Contractions(radius, p)", _of(Contractions, radius=1.0, p=3.0),
           "two r x r inverses", "Horn and Johnson, theorem 3.3.16"),
    Method("Contractions(bounds)", _of(Contractions, bounds=[3, -2, 1]),
           "two r x r inverses", "Horn and Johnson, theorem 3.3.16"),
    Method("SpectralLoRA(radius)", _of(SpectralLoRA, radius=1.0),
           _QR + ", three r x r inverses, 2 r columns", "double angle of arXiv 2106.09685"),
    Method("HomogeneousBall(radius)", _of(HomogeneousBall, radius=1.0), _NONE,
           "NIPS 2004, lemma 1"),
    Method("HomogeneousBall(radius, p)", _of(HomogeneousBall, radius=1.0, p=3.0),
           "r x r eigenvalues", "NIPS 2004, lemma 1"),
    Method("RadialBall(radius)", _of(RadialBall, radius=1.0), _QR + ", 2 r columns",
           "von Neumann (1937)"),
    Method("RadialBall(radius, norm)", _of(RadialBall, radius=1.0, norm=partial(KyFanBall, 2)),
           _QR + ", r x r singular values, 2 r columns", "von Neumann (1937)"),
    Method("DeLoRA(radius)", _of(DeLoRA, radius=1.0), _NONE, "arXiv 2503.18225"),
    Method("SimplexRankOnes(radius)", _of(SimplexRankOnes, radius=1.0), _NONE, "ICML 2010"),
    Method("SVDFrames", _of(SVDFrames), "two thin SVDs, QRs or Cayley maps", "arXiv 2005.02819"),
    Method("SVDFrames(radius)", _of(SVDFrames, radius=1.0), "two thin SVDs, QRs or Cayley maps",
           "arXiv 2005.02819"),
    Method("AdaLoRA", _of(AdaLoRA), _NONE, "arXiv 2303.10512"),
    Method("DynamicRank", _of(DynamicRank), _NONE, "arXiv 2405.17357"),
    Method("NestedSVD(outer, inner)", _nested, "one thin product", "arXiv 2408.10280"),
    Method("nora", lambda s, r: nora(_weight(s), r, outer_rank=2 * r), "one thin product",
           "arXiv 2408.10280"),
    Method("lora_xs", lambda s, r: lora_xs(_weight(s), r), "one thin product", "arXiv 2405.17604"),
    Method("Weighted(inner, rows, cols)", _weighted, _NONE, "NIPS 2010, equation 3"),
    Method("Inductive(inner, features)", _inductive, "two products with the features",
           "arXiv 1306.0626"),
    Method("Inductive(inner, features, orthonormal)", partial(_inductive, orthonormal=True),
           "two products with the features", "arXiv 1306.0626"),
    Method("Offset(inner)", _offset, "twice the inner columns", "arXiv 2404.02948"),
    Method("pissa", lambda s, r: pissa(_weight(s), r), "twice the columns", "arXiv 2404.02948"),
    Method("olora", lambda s, r: olora(_weight(s), r), "twice the columns", "arXiv 2406.01775"),
    Method("VeRA", _of(VeRA), _NONE, "arXiv 2310.11454",
           "diag(b) B diag(d) A: m + r - 1 dimensions"),
    Method("ETHER(weight, blocks=r)", lambda s, r: ETHER(_weight(s), blocks=r),
           "r products with the weight", "arXiv 2405.20271", "reflections: m - r dimensions"),
    Method("ETHERPlus(weight, blocks=r)", lambda s, r: ETHERPlus(_weight(s), blocks=r),
           "4 r products with the weight", "arXiv 2405.20271",
           "products of reflections: at most 2 (m + n - 2 r) dimensions"),
    Method("WeightDecomposed(inner, weight)", _decomposed, "r products with the weight",
           "arXiv 2402.09353", "D W0 + X without vanishing rows, D diagonal, rank X <= r"),
)  # fmt: skip


def rows() -> list[Row]:
    """Return the table: one line for each of `METHODS`, asked of an instance.

    Examples
    --------
    >>> {row.method: row.norm for row in rows()}["SpectralLoRA(radius)"]
    'spectral'
    """
    return [row_of(method) for method in METHODS]


def row_of(method: Method) -> Row:
    """Return the line of one method."""
    module = method.make(_SHAPE, _RANK)
    if isinstance(module, WeightDecomposed):
        return _row(method, "none", "rows of the sum", onto=False, zero="exact", export="none")
    rank = in_units(module.feasible_set.rank)
    zero = "exact" if starts_at_zero(module) else "none"
    norm = norm_of(module.feasible_set)
    return _row(method, rank, norm, onto=module.complete, zero=zero, export=rank)


def _row(method: Method, rank: str, norm: str, *, onto: bool, zero: str, export: str) -> Row:
    reached = "yes" if onto else f"no; {method.image}"
    return Row(method.name, rank, norm, reached, zero, method.cost, export, method.reference)


def in_units(rank: int) -> str:
    """Return a rank of the example as a multiple of r.

    Examples
    --------
    >>> in_units(6)
    '2 r'
    """
    return "r" if rank == _RANK else f"{rank // _RANK} r"


def starts_at_zero(module: Parameterization) -> bool:
    """Return whether `zero_` gives W = 0 in every entry; False if there is no such start."""
    try:
        op = module.zero_().factors().detach()
    except NotImplementedError:
        return False
    rows = torch.arange(op.shape[0]).repeat_interleave(op.shape[1])
    cols = torch.arange(op.shape[1]).repeat(op.shape[0])
    return not bool(op.entries(rows, cols).any())


def norm_of(feasible_set: FeasibleSet) -> str:
    """Return the name of the norm that a set bounds, "none" for an unbounded one."""
    match feasible_set:
        case RankAtMost():
            return "none"
        case SchattenBall(p=p):
            return _NORMS.get(p, "Schatten p")
        case KyFanBall():
            return "Ky Fan"
        case SingularValueBox():
            return "each singular value"
        case WeightedSet(inner=inner):
            name = norm_of(inner)
            return "none" if name == "none" else f"weighted {name}"
        case NestedSet(inner=inner):
            return norm_of(inner)
        case ImageSet(inner=inner):
            name = norm_of(inner)
            return "none" if name == "none" else f"{name} between features"
        case ShiftedSet(inner=inner):
            name = norm_of(inner)
            return "none" if name == "none" else f"shifted {name}"
        case _:
            return type(feasible_set).__name__


def markdown() -> str:
    """Return the table as Markdown, ending with a newline.

    Examples
    --------
    >>> markdown().splitlines()[0].startswith("| method | rank at most |")
    True
    """
    head = ("method", "rank at most", "norm bounded", "onto its set", "zero start",
            "extra cost", "LoRA rank for export", "reference")  # fmt: skip
    lines = [head, tuple(":--" for _ in head)]
    lines += [(f"`{row.method}`", *_cells(row)) for row in rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (row.rank, row.norm, row.onto, row.zero_start, row.cost, row.export_rank, row.reference)
