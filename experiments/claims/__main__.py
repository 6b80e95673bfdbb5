"""``python -m experiments.claims`` prints verdicts and writes the page as one HTML file.

Records are read from ``docs/_static``, or from another folder of results.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.claims.figure import in_words
from experiments.claims.page import GROUPS, html, rows_of
from experiments.records import prepare_folder
from experiments.tables import text_table

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "_static"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts and write ``claims.html``."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description=__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the page")
    options = parser.parse_args(arguments)
    folder = prepare_folder(options.out)
    lines: list[list[str]] = []
    for claims in GROUPS.values():
        for row in rows_of(options.records, claims):
            first = next((e for e in row.finding.effects if not e.beside), None)
            effect = "-" if first is None else in_words(first)
            lines.append([row.claim.name, row.finding.verdict, effect])
    print(text_table(["claim", "verdict", "effect"], lines))
    (folder / "claims.html").write_text(html(options.records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
