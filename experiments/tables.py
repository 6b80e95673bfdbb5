"""Plain-text tables for the terminal, Markdown for the documentation."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table; the first column to the left, the others to the right.

    Examples
    --------
    >>> print(text_table(["method", "RMSE"], [["mean", "1.15"], ["biases", "0.96"]]))
    method  RMSE
    ------  ----
    mean    1.15
    biases  0.96
    """
    widths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [line[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
    return "  ".join(cells).rstrip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Examples
    --------
    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    | :-- | --: |
    | 1 | 2 |
    """
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Return ``mean ± standard deviation`` (of the sample), or the value alone.

    Examples
    --------
    >>> mean_and_spread([1.0, 3.0], digits=1)
    '2.0 ± 1.4'
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return f"{mean:.{digits}f} ± {variance**0.5:.{digits}f}"
