"""Write the tables of methods and solvers into their pages: ``python docs/tables.py``."""

from pathlib import Path

from lowrank_opt.completion import catalog as solvers
from lowrank_opt.parameterizations import catalog as methods

ROOT = Path(__file__).resolve().parent.parent
TABLES = {
    "method-table": (methods.markdown, ("README.md", "docs/explanation/methods.md")),
    "solver-table": (solvers.markdown, ("README.md", "docs/how-to/choose-a-solver.md")),
}


def with_table(text: str, name: str, table: str) -> str:
    """Return a page with the part between the two marks of a name replaced by the table."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"a page needs the lines {begin!r} and {end!r}; one is missing")
    return f"{before}{begin}{table}{end}{after}"


if __name__ == "__main__":
    for name, (markdown, pages) in TABLES.items():
        for path in (ROOT / page for page in pages):
            path.write_text(with_table(path.read_text("utf-8"), name, markdown()), "utf-8")
