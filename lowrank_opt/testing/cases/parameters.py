"""Values for free parameters, from tame to hostile, each named by a few words and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

Structure: TypeAlias = Literal[
    "normal",
    "start",
    "zero",
    "constant",
    "one_hot",
    "zero_columns",
    "parallel",
    "nearly_parallel",
    "mixed_columns",
    "mixed_entries",
    "equal_columns",
    "antiparallel",
    "orthonormal",
    "permutation",
    "signs",
    "negative",
]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

# Powers of ten by which "mixed" columns and entries differ.
_MIXED_DECADES = 8.0


@dataclass(frozen=True)
class FreeParameters:
    """Values for all trainable parameters of a module.

    Parameters
    ----------
    structure : str
        ``normal`` (independent normal entries), ``start`` (as constructed), ``zero``,
        ``constant``, ``one_hot`` (one entry, the rest 0), ``zero_columns`` (every other column is
        zero), ``parallel`` (all columns multiples of one), ``nearly_parallel`` (columns that
        differ by about one where they are large, by the root of machine precision otherwise),
        ``mixed_columns`` and ``mixed_entries`` (sizes spread over 16 decades), ``equal_columns``,
        ``antiparallel`` (columns that cancel in pairs), ``orthonormal`` columns, ``permutation``
        (columns of a permuted identity), ``signs`` (entries of one size), ``negative`` entries.
    magnitudes : tuple of float
        Sizes of the entries; the parameters of a module take them in turn, so ``(1e8, 1e-30)``
        gives two factors of very different sizes, and ``(0.0, 1.0)`` a zero beside another.
    seed : int

    Examples
    --------
    >>> FreeParameters("parallel", (100.0,)).tensor((2, 2)).round()
    tensor([[-336.,   88.],
            [  64.,  -17.]], dtype=torch.float64)
    """

    structure: Structure = "normal"
    magnitudes: tuple[float, ...] = (1.0,)
    seed: int = 0

    @property
    def tame(self) -> bool:
        """Whether maps are expected to vary slowly here: derivatives can be measured."""
        return self.structure in ("normal", "start") and self.magnitudes == (1.0,)

    @property
    def columns(self) -> int:
        """The number of columns that the structure takes."""
        return 2 if self.structure in ("equal_columns", "antiparallel") else 1

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `dtype` holds numbers of these sizes."""
        info = torch.finfo(dtype)
        low, high = info.smallest_normal * info.eps, info.max / 8
        return all(s == 0 or low <= s <= high for s in self.magnitudes)

    def tensor(
        self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64, index: int = 0
    ) -> Tensor:
        """Return the values of the parameter at position `index` of the module.

        Computed in float64 on the CPU and rounded to `dtype`: the same numbers in every dtype.
        """
        size = self.magnitudes[index % len(self.magnitudes)]
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        # Room for sums and for weights that multiply them: gradients stay representable.
        limit = torch.finfo(dtype).max * 2.0**-20
        return self._values(shape, size, generator).clamp(-limit, limit).to(dtype)

    def fill_(self, module: nn.Module) -> nn.Module:
        """Write the values into the trainable parameters of `module`, in place."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        if self.structure == "start":
            return module
        with torch.no_grad():
            for index, p in enumerate(trainable):
                p.copy_(self.tensor(tuple(p.shape), dtype=p.dtype, index=index))
        return module

    def _values(self, shape: tuple[int, ...], size: float, generator: torch.Generator) -> Tensor:
        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64)

        def spread(*sizes: int) -> Tensor:
            uniform = torch.rand(sizes, generator=generator, dtype=torch.float64)
            return 10 ** (_MIXED_DECADES * (2 * uniform - 1))

        rows, cols = shape[:-1], shape[-1:]
        match self.structure:
            case "zero":
                return torch.zeros(shape, dtype=torch.float64)
            case "constant":
                return torch.full(shape, size, dtype=torch.float64)
            case "one_hot":
                return _one_hot(shape, size, generator)
            case "zero_columns":
                return size * normal(*shape) * _every_other(cols, generator)
            case "parallel":
                return size * normal(*rows, *(1 for _ in cols)) * normal(*cols)
            case "nearly_parallel":
                base = size * normal(*rows, *(1 for _ in cols)).expand(shape)
                return base + _difference(size) * normal(*shape)
            case "mixed_columns":
                return size * spread(*cols) * normal(*shape)
            case "mixed_entries":
                return size * spread(*shape) * normal(*shape)
            case "equal_columns":
                return size * normal(*rows, *(1 for _ in cols)).expand(shape)
            case "antiparallel":
                return size * normal(*rows, *(1 for _ in cols)) * _alternating(cols)
            case "orthonormal":
                return size * _orthonormal(normal(*shape))
            case "permutation":
                return size * _permuted_identity(shape, generator)
            case "signs":
                return size * normal(*shape).sign()
            case "negative":
                return -size * normal(*shape).abs()
            case _:
                return size * normal(*shape)


def _difference(size: float) -> float:
    """Return by how much nearly parallel columns differ."""
    return 1.0 if size > 1 else 1e-8 * size


def _one_hot(shape: tuple[int, ...], size: float, generator: torch.Generator) -> Tensor:
    values = torch.zeros(shape, dtype=torch.float64)
    if values.numel():
        place = torch.randint(values.numel(), (1,), generator=generator)
        values.view(-1)[place] = size
    return values


def _every_other(cols: tuple[int, ...], generator: torch.Generator) -> Tensor:
    first = int(torch.randint(2, (), generator=generator))
    places = torch.arange(cols[0] if cols else 1) + first
    return (places % 2 == 0).double().reshape(cols)


def _alternating(cols: tuple[int, ...]) -> Tensor:
    return 1 - 2.0 * (torch.arange(cols[0] if cols else 1, dtype=torch.float64) % 2).reshape(cols)


def _orthonormal(x: Tensor) -> Tensor:
    if x.ndim < 2 or not x.numel():
        return x / x.norm() if x.any() else x
    tall = x.shape[-2] >= x.shape[-1]
    return torch.linalg.qr(x).Q if tall else torch.linalg.qr(x.mT).Q.mT


def _permuted_identity(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    side = max(shape[-2:], default=1)
    square = torch.eye(side, dtype=torch.float64)[torch.randperm(side, generator=generator)]
    rows, cols = (*shape[-2:], 1)[:2] if shape else (1, 1)
    return square[:rows, :cols].reshape(shape[-2:]).expand(shape)


def _sizes(*sizes: float) -> tuple[FreeParameters, ...]:
    return tuple(FreeParameters("normal", (size,)) for size in sizes)


# From simple to hostile: the first that breaks a law is reported.
TAME = (FreeParameters("normal"), FreeParameters("start"))
MODERATE = (
    *TAME,
    FreeParameters("zero"),
    *_sizes(1e2, 1e4, 1e-3, 1e-8),
    FreeParameters("parallel"),
    FreeParameters("nearly_parallel", (1e2,)),
    FreeParameters("one_hot"),
)
HOSTILE = (
    *MODERATE,
    *_sizes(1e8, 1e30, 1e300, 1e-30, 1e-40, 1e-160, 1e-320),
    FreeParameters("constant"),
    FreeParameters("parallel", (1e4,)),
    FreeParameters("parallel", (1e-160,)),
    FreeParameters("nearly_parallel"),
    FreeParameters("nearly_parallel", (1e3,)),
    FreeParameters("nearly_parallel", (1e4,)),
    FreeParameters("nearly_parallel", (1e6,)),
    FreeParameters("mixed_columns"),
    FreeParameters("mixed_entries"),
    FreeParameters("normal", (1e8, 1e-30)),
    FreeParameters("normal", (1e-30, 1e8)),
    FreeParameters("normal", (1e-8, 1e4, 1.0)),
    FreeParameters("zero_columns"),
    FreeParameters("normal", (0.0, 1.0)),
    FreeParameters("normal", (1.0, 0.0)),
)
# Special positions: tied, cancelling, along the axes.
ADVERSARIAL = (
    *HOSTILE,
    FreeParameters("equal_columns"),
    FreeParameters("antiparallel"),
    FreeParameters("orthonormal"),
    FreeParameters("permutation"),
    FreeParameters("signs"),
    FreeParameters("negative"),
)
