"""Write the table of methods into the pages that show it: ``python docs/method_table.py``."""

from pathlib import Path

from lowrank_opt.parameterizations.catalog import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/explanation/methods.md")
BEGIN, END = "<!-- method-table -->\n", "<!-- /method-table -->\n"


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
