"""Write the table of solvers into the pages that show it: ``python docs/solver_table.py``."""

from pathlib import Path

from lowrank_opt.completion.catalog import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/how-to/choose-a-solver.md")
BEGIN, END = "<!-- solver-table -->\n", "<!-- /solver-table -->\n"


def with_table(text: str, table: str) -> str:
    """Return a page with the part between the two marks replaced by the table."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"a page needs the lines {BEGIN!r} and {END!r}; one is missing")
    return f"{before}{BEGIN}{table}{END}{after}"


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(with_table(path.read_text("utf-8"), markdown()), encoding="utf-8")
