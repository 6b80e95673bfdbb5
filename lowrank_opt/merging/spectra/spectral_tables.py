"""What is known about the intruder dimensions of one matrix, and of a model: numbers and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from lowrank_opt.operator import LowRankOperator

_HEAD = (
    *("weight", "shape", "intruders", "by span", "positions", "energy"),
    *("|dW|/|W0|", "stable rank", "power"),
)


@dataclass(frozen=True, eq=False, repr=False)
class SpectralReport:
    r"""The leading singular vectors of :math:`W_0 + \Delta W` against those of :math:`W_0`.

    Attributes
    ----------
    name : str
        Of the weight; empty for a single matrix.
    shape : tuple of int
    side : {"left", "right", "both"}
    threshold : float
    triples : LowRankOperator
        The leading k singular triples of the sum, float64.
    cosines : Tensor, shape (k,)
        :math:`\max_i |\langle x_i, u_j\rangle|`, for ``both`` the larger one of the two sides.
    span_cosines : Tensor, shape (k,)
        The norm of :math:`u_j` within the span of all :math:`x_i` whose singular values are near
        that of the best match; at least `cosines`.
    gaps : Tensor, shape (k,)
        Distance of each singular value of the sum to its nearest neighbour, relative to it.
    power : float
        The probability that a random direction would count as an intruder.
    relative_size : float
        :math:`\|\Delta W\|_2 / \|W_0\|_2`.
    stable_rank : float
        :math:`\|\Delta W\|_F^2 / \|\Delta W\|_2^2`, between 1 and the rank; 0 for no update.
    closeness : float
        Relative distance of singular values that count as near.
    """

    name: str
    shape: tuple[int, int]
    side: str
    threshold: float
    triples: LowRankOperator
    cosines: Tensor
    span_cosines: Tensor
    gaps: Tensor
    power: float
    relative_size: float
    stable_rank: float
    closeness: float

    @property
    def values(self) -> Tensor:
        """The leading singular values of the sum, shape (k,)."""
        return self.triples.scale

    @property
    def intruders(self) -> Tensor:
        """Whether each of the vectors is an intruder, shape (k,)."""
        return self.cosines < self.threshold

    @property
    def count(self) -> int:
        """How many intruders there are."""
        return int(self.intruders.sum())

    @property
    def span_count(self) -> int:
        """How many there are by `span_cosines`, whatever the basis among near values."""
        return int((self.span_cosines < self.threshold).sum())

    @property
    def positions(self) -> tuple[int, ...]:
        """The ranks of the intruders among the singular vectors; 1 is the leading one."""
        return tuple(int(j) + 1 for j in self.intruders.nonzero().flatten())

    @property
    def energy(self) -> tuple[float, float]:
        """The sum of squared singular values of the intruders, and of all k."""
        # Relative to the largest one: squares may overflow.
        squares = (self.values / self.values[:1]).square()
        return float(squares[self.intruders].sum()), float(squares.sum())

    @property
    def energy_share(self) -> float:
        """The share of the intruders in the energy of the leading k; zero for none."""
        part, total = self.energy
        return part / total if total else 0.0

    def undetermined(self, matched: float = 0.9) -> tuple[int, ...]:
        """Return the positions of vectors with near neighbours and without a clear match.

        Parameters
        ----------
        matched : float
            The cosine from which on a match is clear.
        """
        unclear = (self.gaps < self.closeness) & (self.cosines < matched)
        return tuple(int(j) + 1 for j in unclear.nonzero().flatten())

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        positions = ", ".join(map(str, self.positions)) or "-"
        return (
            self.name or "-",
            f"{self.shape[0]} x {self.shape[1]}",
            f"{self.count} of {len(self.cosines)}",
            str(self.span_count),
            positions,
            f"{self.energy_share:.1%}",
            f"{self.relative_size:.3g}",
            f"{self.stable_rank:.2f}",
            f"{self.power:.0%}",
        )

    def __repr__(self) -> str:
        m, n = self.shape
        found = f"{self.count} of {len(self.cosines)} intruders"
        return f"SpectralReport({m} x {n}, {found}, threshold={self.threshold:.3g})"

    def __str__(self) -> str:
        return _text([self.cells()])

    def _repr_html_(self) -> str:
        return _html([self.cells()], repr(self))


@dataclass(frozen=True, eq=False, repr=False)
class ModelSpectralReport(Mapping[str, SpectralReport]):
    """The reports of several matrices, by the names of their weights, and totals.

    Attributes
    ----------
    sites : mapping of str to SpectralReport
    """

    sites: Mapping[str, SpectralReport]

    def __getitem__(self, name: str) -> SpectralReport:
        return self.sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def count(self) -> int:
        """Intruders of all matrices: the score of the paper."""
        return sum(site.count for site in self.sites.values())

    @property
    def span_count(self) -> int:
        """Intruders by spans of near singular values."""
        return sum(site.span_count for site in self.sites.values())

    @property
    def looked_at(self) -> int:
        """The number of singular vectors that were compared."""
        return sum(len(site.cosines) for site in self.sites.values())

    @property
    def energy_share(self) -> float:
        """The mean over matrices of the intruders' shares in the leading energy."""
        return sum(site.energy_share for site in self.sites.values()) / max(len(self.sites), 1)

    def _rows(self) -> list[tuple[str, ...]]:
        total = (
            "total",
            f"{len(self.sites)} matrices",
            f"{self.count} of {self.looked_at}",
            str(self.span_count),
            "",
            f"{self.energy_share:.1%}",
            "",
            "",
            "",
        )
        return [*(site.cells() for site in self.sites.values()), total]

    def __repr__(self) -> str:
        found = f"{self.count} of {self.looked_at} intruders"
        return f"ModelSpectralReport({len(self.sites)} matrices, {found})"

    def __str__(self) -> str:
        return _text(self._rows())

    def _repr_html_(self) -> str:
        return _html(self._rows(), repr(self))


def _text(rows: Sequence[Sequence[str]]) -> str:
    lines = [_HEAD, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _html(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return HTML that needs nothing from elsewhere."""
    style = 'style="text-align:left;padding:1px 12px 1px 0;background:none"'
    head = "".join(f"<th {style}>{escape(cell)}</th>" for cell in _HEAD)
    body = "".join(
        f"<tr>{''.join(f'<td {style}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div style="font-size:90%"><strong>{escape(caption)}</strong>'
        f'<table style="border:none;margin:4px 0"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
